"""Pictures and labels on a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semla_ros.config import MAX_IMAGE_PIXELS
from semla_ros.errors import ImageError
from semla_ros.file_integrity import open_regular
from semla_ros.image_bytes import by_pillow, check_header, exif_of, read_values, tell_once
from semla_ros.image_samples import DEPTHS, BitDepth, Buffer, as_rgb
from semla_ros.results import ImageArray


def read_image(path: Path) -> ImageArray:
    """Read an image file, upright by its EXIF data.

    Alpha is dropped. Of 16-bit files the bits in use are found; floats are taken for 0 to 1, or for 0 to 255 or 65535
    where they go beyond.

    Args:
        path: JPEG, PNG, TIFF, BMP, WebP, GIF or PPM.

    Returns:
        RGB, shape (H, W, 3), uint8.

    Raises:
        ImageError: There is no such file, it is none of these or not whole, or it has too many pixels.
    """
    return rgb_of(read_values(_bytes_of(path), str(path), is_upright=True), str(path))


def rgb_of(values: NDArray[Any], what: str) -> ImageArray:
    """RGB from the values of a picture, by the rules of `read_image`.

    Args:
        values: Grey (H, W) or RGB (H, W, 3), of any type of number.
        what: What they are, for messages.

    Returns:
        Shape (H, W, 3), uint8.

    Raises:
        ImageError: Values that no picture has.
    """
    if values.dtype not in (np.uint8, np.uint16):
        values = _unsigned(values, what)
    if values.dtype == np.uint16:
        depth = BitDepth()
        values = depth.to_8_bit(values)
        if depth.bits < DEPTHS[-1]:
            text = f"16-bit samples use {depth.bits} bits and are read as such"
            tell_once(f"{what}: its {text}, likewise in other files", text)
    return as_rgb(values)


def read_labels(path: Path) -> NDArray[Any]:
    """Stored values of a label file, shape (H, W) or (H, W, C): indices of a palette, not its colours.

    Raises:
        ImageError: As `read_image`, or it is a JPEG, which changes values.
    """
    return label_values(_bytes_of(path), str(path))


def read_exif(path: Path) -> dict[int, Any]:
    """Exif tags of an image file by number; see `exif_of`."""
    return exif_of(_bytes_of(path), f"image {path}")


def label_values(data: Buffer, what: str) -> NDArray[Any]:
    """As `read_labels`, of a file's bytes; `what` they are is for messages."""
    encoded = np.frombuffer(data, np.uint8)
    if check_header(encoded, what, MAX_IMAGE_PIXELS) == "Jpeg":
        raise ImageError(f"{what}: labels must be lossless (PNG), a JPEG has changed their values")
    values = by_pillow(encoded, what)
    return values.astype(np.uint8 if values.dtype == bool else values.dtype.newbyteorder("="))


def _bytes_of(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from None


def _unsigned(values: NDArray[Any], what: str) -> NDArray[Any]:
    """Floats or signed numbers as 8 or 16 bits, whichever they lie in; 0 to 1 becomes 0 to 255."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high < 1 << 16):  # not-a-number, too
        raise ImageError(
            f"{what}: holds {values.dtype} from {low:g} to {high:g}, a picture has 0 to 1, 0 to 255 or 0 to 65535; is "
            "it depth? convert it"
        )
    largest = next(largest for largest in (1, 255, 65535) if high <= largest)
    text = f"{values.dtype} samples are read as 0 to {largest}"
    tell_once(f"{what}: its {text}, likewise in other files", text)
    return np.asarray(np.rint(values * 255 if largest == 1 else values), np.uint16 if largest == 65535 else np.uint8)
