"""The published resize rules: what size an image is shown to the model at, and what size its answer is scored at."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class SizeRule:
    """How a data set's images are resized for the test.

    Attributes:
        shortest: Length in pixels that the shorter edge is brought to; 0 leaves the image as it is.
        longest: The longer edge's limit in pixels; the image shrinks further where it would pass it.
        fixed: (height, width) that images are brought to first by nearest neighbour, and that the answer is asked for
            at; None asks for the answer at the labels' size.
    """

    shortest: int = 640
    longest: int = 2560
    fixed: tuple[int, int] | None = None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of (height, width) is brought to."""
        if self.fixed is not None:
            height, width = self.fixed
        if self.shortest == 0:
            return height, width
        scale = self.shortest / min(height, width)
        scale = min(scale, self.longest / max(height, width))
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an image.

        Args:
            image: RGB, shape (H, W, 3), uint8.

        Returns:
            RGB, uint8, of `size(H, W)`; bilinear with antialiasing, as Pillow does it.
        """
        if self.fixed is not None:
            height, width = self.fixed
            image = np.asarray(
                cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8
            )
        target = self.size(*image.shape[:2])
        if target == image.shape[:2]:
            return image
        resized = Image.fromarray(image).resize((target[1], target[0]), Image.Resampling.BILINEAR)
        return np.asarray(resized)


def stretch_to(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bring a mask to the size of its labels without inventing classes (nearest neighbour); a no-op at equal size."""
    if mask.shape == (height, width):
        return mask
    stretched = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(stretched, dtype=np.uint8)
