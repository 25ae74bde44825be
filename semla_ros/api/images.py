"""What counts as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from semla_ros.errors import ImageError
from semla_ros.image_files import read_image, rgb_of
from semla_ros.image_samples import check_pixels
from semla_ros.results import ImageArray

ImageLike = str | Path | Image.Image | NDArray[Any]


def name_of(image: ImageLike) -> str:
    """That of a file without its suffix; "image" for what has none."""
    return Path(image).stem if isinstance(image, str | Path) else "image"


def pixels_of(image: ImageLike) -> ImageArray:
    """Any image as RGB, shape (H, W, 3), uint8; a copy, so that the caller may change what was handed in.

    Raises:
        ImageError: It cannot be read, or is none.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image).expanduser())
    if isinstance(image, Image.Image):
        check_pixels("image", image.width, image.height)
        image = ImageOps.exif_transpose(image)
        is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        image = np.asarray(image if is_deep else image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise ImageError(f"image: expected a file, a Pillow image or an array, got {type(image).__name__}")
    is_grey = image.ndim == 2
    if 0 in image.shape or not (is_grey or (image.ndim == 3 and image.shape[2] == 3)) or image.dtype.kind not in "uif":
        raise ImageError(
            f"image: expected RGB of shape (H, W, 3) or grey (H, W), got {image.dtype} of shape {image.shape}"
        )
    check_pixels("image", image.shape[1], image.shape[0])
    return np.array(rgb_of(np.ascontiguousarray(image), "image"))
