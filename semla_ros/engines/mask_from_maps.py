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
from numpy.typing import NDArray
from torch import Tensor

from semla_ros.engines.base import mask_dtype
from semla_ros.results import MaskArray

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
    best, index = _on_cpu(maps.numpy(), sampled_size(size))
    confidence = np.rint(np.clip(best, 0.0, 1.0) * 255.0).astype(np.uint8) if want_confidence else None
    return enlarged(index, size), None if confidence is None else enlarged(confidence, size)


def sampled_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that the mask is found at."""
    step = max(1, math.ceil(math.sqrt(math.prod(size) / MOST_PIXELS)), math.ceil(max(size) / LONGEST_SIDE))
    return -(-size[0] // step), -(-size[1] // step)


def enlarged(picture: Any, size: tuple[int, int]) -> Any:
    """A mask or its confidence, found at `sampled_size`, at its own size."""
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
