"""What every image is held to, from wherever it comes: how many pixels, and how many bits its samples use."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from semla_ros.config import MAX_IMAGE_PIXELS
from semla_ros.errors import ImageError
from semla_ros.results import ImageArray

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras fill of a 16-bit sample
OUTLIERS = 1000  # one sample of so many may lie above the range: a dead pixel decides nothing
_LOOKED_AT = 1 << 16  # samples of an image that the range is judged by


def as_rgb(values: NDArray[Any]) -> ImageArray:
    """RGB of shape (H, W, 3) from grey (H, W) or itself, uint8."""
    return np.asarray(cv2.cvtColor(values, cv2.COLOR_GRAY2RGB) if values.ndim == 2 else values)


def check_pixels(what: str, width: int, height: int, max_pixels: int = MAX_IMAGE_PIXELS) -> None:
    """Raise ImageError where an image, named by `what`, has more pixels than are taken."""
    if width * height > max_pixels:
        raise ImageError(
            f"{what}: {width}x{height} pixels are more than max_image_pixels ({max_pixels}); send smaller images or "
            "raise that"
        )


class BitDepth:
    """How many bits of their 16 the samples of a camera use, counted from the lowest, found from its images.

    They only grow: a dark image decides nothing for good, and no picture gets brighter because the scene got darker.

    Args:
        bits: 8 to 16 where they are known; 0 = to be found.

    Attributes:
        bits: In use.
    """

    def __init__(self, bits: int = 0) -> None:
        self._is_known = bool(bits)
        self.bits = bits or DEPTHS[0]

    def to_8_bit(self, values: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Samples of any shape, 0 to 2**bits - 1, brought to 0 to 255; those above are 255."""
        if not self._is_known:
            self._look_at(values)
        return np.asarray(np.minimum(values >> (self.bits - 8), 255), np.uint8)

    def _look_at(self, values: NDArray[np.uint16]) -> None:
        every = round((values.size / _LOOKED_AT) ** 0.5) | 1  # odd, so that of a mosaic all colours are seen
        samples = values[::every, ::every]
        for bits in DEPTHS:
            if bits >= self.bits:
                self.bits = bits
                if np.count_nonzero(samples >> bits) * OUTLIERS <= samples.size:
                    return
