"""From small probability maps to a mask at the camera's size.

The mask is the arg-max of the bilinearly resized maps, found with a running maximum over the classes: the resized maps
of all classes together (T x H x W) never exist. Of an image above 4K it is found for every second pixel in both
directions, or fewer: the maps have one value for dozens of pixels there, and 8K would take seconds on a CPU.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from semla_ros.engines.base import mask_dtype
from semla_ros.results import MaskArray

CLASSES_AT_ONCE = 8  # resized together on a GPU
MOST_PIXELS, LONGEST_SIDE = 4096 * 2160, 1 << 14  # 4K of cinema; a larger mask is enlarged

Answer = tuple[MaskArray, NDArray[np.uint8] | None]  # a mask, and the confidence where it was wanted


def mask_from_maps(maps: Tensor, size: tuple[int, int], want_confidence: bool) -> Answer:
    """Most probable class of each pixel, found on the CPU.

    Args:
        maps: Class probabilities, shape (T, h, w), 0..1, on a CPU.
        size: Height and width of the mask.
        want_confidence: Also give the probability of the chosen class.

    Returns:
        Mask, shape `size`, uint8 (uint16 above 254 classes), the first of equally probable classes; confidence, shape
        `size`, 0..255, or None.
    """
    best, index = _on_cpu(maps.numpy(), _sampled(size))
    confidence = np.rint(np.clip(best, 0.0, 1.0) * 255.0).astype(np.uint8) if want_confidence else None
    return _enlarged(index, size), None if confidence is None else _enlarged(confidence, size)


def packed_mask(maps: Tensor, size: tuple[int, int], want_confidence: bool, is_sound: Tensor) -> Tensor:
    """The same on the maps' device, as bytes in one piece: one transfer to the host, see `unpacked_mask`.

    Args:
        maps: Class probabilities, shape (T, h, w), 0..1.
        size: Height and width of the mask.
        want_confidence: Also give the probability of the chosen class.
        is_sound: One truth value on the device that goes along.

    Returns:
        Shape (N,), uint8.
    """
    best, index = _on_device(maps, _sampled(size))
    # Sixteen bits are the same whether they count as signed; few operators know the unsigned type.
    numbers = index.to(torch.uint8 if mask_dtype(len(maps)) is np.uint8 else torch.int16)
    parts = [numbers.flatten().view(torch.uint8)]
    if want_confidence:
        parts.append(best.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).flatten())
    return torch.cat([*parts, is_sound.reshape(1).to(torch.uint8)])


def unpacked_mask(
    data: NDArray[np.uint8], size: tuple[int, int], class_count: int, want_confidence: bool
) -> Answer | None:
    """What `packed_mask` gave, copied; None where it is not sound."""
    small, dtype = _sampled(size), mask_dtype(class_count)
    if not data[-1]:
        return None
    split = math.prod(small) * np.dtype(dtype).itemsize
    index = data[:split].view(dtype).reshape(small).copy()
    confidence = data[split:-1].reshape(small).copy() if want_confidence else None
    return _enlarged(index, size), None if confidence is None else _enlarged(confidence, size)


def _sampled(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that the mask is found at."""
    step = max(1, math.ceil(math.sqrt(math.prod(size) / MOST_PIXELS)), math.ceil(max(size) / LONGEST_SIDE))
    return -(-size[0] // step), -(-size[1] // step)


def _enlarged(picture: Any, size: tuple[int, int]) -> Any:
    if picture.shape == size:
        return picture
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _on_cpu(maps: NDArray[np.float32], size: tuple[int, int]) -> tuple[NDArray[np.float32], MaskArray]:
    height, width = size
    index: MaskArray = np.zeros(size, mask_dtype(len(maps)))  # type: ignore[assignment]
    # OpenCV's linear resize has the sampling of the published one (pixel centres, clamped at the border) and is
    # several times faster than torch's on one core.
    best = np.asarray(cv2.resize(maps[0], (width, height), interpolation=cv2.INTER_LINEAR))
    resized = np.empty_like(best)  # one for all: fresh pages cost more than what is written to them
    for number, one in enumerate(maps[1:], start=1):
        cv2.resize(one, (width, height), dst=resized, interpolation=cv2.INTER_LINEAR)
        index[resized > best] = number
        np.maximum(best, resized, out=best)
    return best, index


def _on_device(maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    best = maps.new_full(size, -torch.inf)
    index = torch.zeros(size, dtype=torch.int32, device=maps.device)
    for start in range(0, len(maps), CLASSES_AT_ONCE):
        part = F.interpolate(
            maps[None, start : start + CLASSES_AT_ONCE], size=size, mode="bilinear", align_corners=False
        )[0]
        value, number = part.max(dim=0)
        index = torch.where(value > best, number.int() + start, index)
        best = torch.maximum(best, value)
    return best, index
