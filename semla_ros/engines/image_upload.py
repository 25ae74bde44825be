"""Camera images on their way to a device, through page-locked memory that is kept from frame to frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from semla_ros.results import ImageArray


def _page_locked(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


class ImageUpload:
    """Copies images to a device.

    Locking pages takes longer than the copy itself, so the buffer of the last shape is used again. The caller waits
    for the device before it uploads the same number of images again, as `TorchEngine` does with each forward pass.

    Args:
        device: Where images are needed.
        allocate: Makes a host buffer of a shape, uint8; for tests without a GPU.
    """

    def __init__(self, device: torch.device, allocate: Callable[[tuple[int, ...]], Tensor] = _page_locked) -> None:
        self._device, self._allocate = device, allocate
        self._buffers: dict[int, Tensor] = {}  # by place in the batch: none is overwritten while another is copied

    def __call__(self, image: ImageArray, place: int = 0) -> Tensor:
        """An image (H, W, 3), uint8, of any strides and read-only or not, as (3, H, W) on the device.

        Args:
            image: RGB.
            place: Its number among the images that are uploaded before the device is waited for.
        """
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != image.shape:
            buffer = self._buffers[place] = self._allocate(image.shape)
        np.copyto(buffer.numpy(), image)
        return buffer.to(self._device, non_blocking=True).permute(2, 0, 1)
