"""A mask made on a GPU: what `mask_from_maps` gives, in the bytes of one transfer to the host."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from semla_ros.engines.base import mask_dtype
from semla_ros.engines.mask_from_maps import Answer, enlarged, sampled_size

CLASSES_AT_ONCE = 8  # resized together


def packed_mask(maps: Tensor, size: tuple[int, int], want_confidence: bool, is_sound: Tensor) -> Tensor:
    """Most probable class of each pixel, found on the maps' device, as bytes in one piece: one transfer to the host.

    Args:
        maps: Class probabilities, shape (T, h, w), 0..1.
        size: Height and width of the mask.
        want_confidence: Also give the probability of the chosen class.
        is_sound: One truth value on the device that goes along.

    Returns:
        Shape (N,), uint8, for `unpacked_mask`.
    """
    best, index = _on_device(maps, sampled_size(size))
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
    small, dtype = sampled_size(size), mask_dtype(class_count)
    if not data[-1]:
        return None
    split = math.prod(small) * np.dtype(dtype).itemsize
    index = data[:split].view(dtype).reshape(small).copy()
    confidence = data[split:-1].reshape(small).copy() if want_confidence else None
    return enlarged(index, size), None if confidence is None else enlarged(confidence, size)


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
