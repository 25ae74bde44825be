"""Image messages to RGB arrays and back, with numpy and OpenCV only.

Raw images are read where they lie: `rgb8` is returned as a view of the message's own buffer, whatever its `step`; every
other encoding costs one conversion and no copy before it. What does not add up is refused with the encoding, size and
step in the message, because a picture read with the wrong step looks plausible and is wrong. So is what has too many
pixels, before any of them is decoded: a PNG of 250 kB may hold 250 megapixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from semla_ros.config import MAX_IMAGE_PIXELS
from semla_ros.errors import ImageError
from semla_ros.results import ImageArray

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]


@dataclass(frozen=True)
class _Layout:
    """How one encoding lies in memory.

    Attributes:
        pixel_bytes: Bytes per pixel of a row.
        to_rgb: From an array of shape (rows, W) or (rows, W, pixel_bytes), uint8, to RGB of shape (H, W, 3).
        rows_per_height: Rows of data per image row as a fraction: (1, 1), or (3, 2) with a half-height chroma plane.
        block: Width and height must be multiples of these.
        is_16_bit: Each sample has two bytes, in the byte order of the message.
    """

    pixel_bytes: int
    to_rgb: Callable[[ImageArray], ImageArray]
    rows_per_height: tuple[int, int] = (1, 1)
    block: tuple[int, int] = (1, 1)
    is_16_bit: bool = False


def _with(code: int) -> Callable[[ImageArray], ImageArray]:
    return lambda array: cv2.cvtColor(array, code)


def _demosaic(code: int) -> Callable[[ImageArray], ImageArray]:
    # The demosaicing of 16-bit samples works on a strided view of their high bytes: it needs them side by side.
    return lambda array: cv2.cvtColor(np.ascontiguousarray(array), code)


# By ROS habit a Bayer name spells the first two rows, left to right: rggb = R G / G B. OpenCV's short names do not.
_BAYER = {
    "rggb": cv2.COLOR_BayerRGGB2RGB,
    "bggr": cv2.COLOR_BayerBGGR2RGB,
    "gbrg": cv2.COLOR_BayerGBRG2RGB,
    "grbg": cv2.COLOR_BayerGRBG2RGB,
}
_UYVY = _Layout(2, _with(cv2.COLOR_YUV2RGB_UYVY), block=(2, 1))
_YUY2 = _Layout(2, _with(cv2.COLOR_YUV2RGB_YUY2), block=(2, 1))

_LAYOUTS: dict[str, _Layout] = {
    "rgb8": _Layout(3, lambda array: array),
    "bgr8": _Layout(3, _with(cv2.COLOR_BGR2RGB)),
    "rgba8": _Layout(4, _with(cv2.COLOR_RGBA2RGB)),
    "bgra8": _Layout(4, _with(cv2.COLOR_BGRA2RGB)),
    "mono8": _Layout(1, _with(cv2.COLOR_GRAY2RGB)),
    "mono16": _Layout(2, _demosaic(cv2.COLOR_GRAY2RGB), is_16_bit=True),
    "yuv422": _UYVY,
    "uyvy": _UYVY,  # the name of `yuv422` since Humble
    "yuv422_yuy2": _YUY2,
    "yuyv": _YUY2,  # likewise
    "nv12": _Layout(1, _with(cv2.COLOR_YUV2RGB_NV12), rows_per_height=(3, 2), block=(2, 2)),
    "nv21": _Layout(1, _with(cv2.COLOR_YUV2RGB_NV21), rows_per_height=(3, 2), block=(2, 2)),
    **{f"bayer_{order}8": _Layout(1, _demosaic(code), block=(2, 2)) for order, code in _BAYER.items()},
    **{f"bayer_{order}16": _Layout(2, _demosaic(code), block=(2, 2), is_16_bit=True) for order, code in _BAYER.items()},
}
ENCODINGS = tuple(_LAYOUTS)

_COMPRESSED_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # the camera's own orientation, as in raw images
_HEADER_BYTES = 1 << 16  # hold the size in nearly all files; the rest is copied only where they do not


def decode_message(message: Any, max_pixels: int = MAX_IMAGE_PIXELS) -> ImageArray:
    """`decode` a `sensor_msgs/Image`, or `decode_compressed` a `CompressedImage`, which has no `encoding`."""
    if not hasattr(message, "encoding"):
        return decode_compressed(message.data, message.format, max_pixels)
    return decode(
        encoding=message.encoding,
        width=message.width,
        height=message.height,
        step=message.step,
        data=message.data,
        is_bigendian=bool(message.is_bigendian),
        max_pixels=max_pixels,
    )


def decode(
    *,
    encoding: str,
    width: int,
    height: int,
    step: int,
    data: Buffer,
    is_bigendian: bool = False,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> ImageArray:
    """Read the fields of a `sensor_msgs/Image`.

    Args:
        encoding: One of `ENCODINGS`. 16-bit samples keep their high byte.
        width: Pixels per row.
        height: Rows of the picture (for nv12 and nv21: of its luma plane).
        step: Bytes per row, padding included.
        data: `step` bytes for each row; the padding of the last row may be missing.
        is_bigendian: Byte order of 16-bit samples.
        max_pixels: Of one picture.

    Returns:
        RGB, shape (height, width, 3), uint8; for `rgb8` a view of `data`.

    Raises:
        ImageError: The encoding is not known, there are too many pixels, or width, height, step and length of the data
            do not fit each other.
    """
    layout = _LAYOUTS.get(encoding)
    if layout is None:
        raise ImageError(
            f"unknown encoding '{encoding}' of a {width}x{height} image; expected one of {', '.join(ENCODINGS)}"
        )
    what = f"{encoding} image of {width}x{height} pixels with step {step}"
    if width < 1 or height < 1:
        raise ImageError(f"{what}: width and height must be at least 1; check the camera driver")
    check_pixels(what, width, height, max_pixels)
    if width % layout.block[0] or height % layout.block[1]:
        raise ImageError(f"{what}: expected a width and height in multiples of {layout.block[0]}x{layout.block[1]}")
    row_bytes = width * layout.pixel_bytes
    if step < row_bytes:
        raise ImageError(f"{what}: a row takes at least {row_bytes} bytes; check the driver's step")
    rows = height * layout.rows_per_height[0] // layout.rows_per_height[1]
    samples = np.frombuffer(data, np.uint8)
    shortest, longest = step * (rows - 1) + row_bytes, step * rows
    if not shortest <= samples.size <= longest:
        kind = "truncated" if samples.size < shortest else "too long"
        raise ImageError(f"{what}: data is {kind}: expected {longest} bytes, got {samples.size}")
    pixel_shape = (rows, width) if layout.pixel_bytes == 1 else (rows, width, layout.pixel_bytes)
    strides = (step, layout.pixel_bytes, 1)[: len(pixel_shape)]
    pixels: ImageArray = np.lib.stride_tricks.as_strided(samples, pixel_shape, strides)
    if layout.is_16_bit:
        pixels = pixels[..., 0 if is_bigendian else 1]
    return layout.to_rgb(pixels)


def is_tight(*, encoding: str, width: int, height: int, step: int, size: int) -> bool:
    """Whether `size` bytes hold exactly the pixels of a known 8-bit encoding in one plane, without padding."""
    layout = _LAYOUTS.get(encoding)
    if layout is None or layout.is_16_bit or layout.rows_per_height != (1, 1):
        return False
    return width > 0 and height > 0 and step == width * layout.pixel_bytes and size == step * height


def check_pixels(what: str, width: int, height: int, max_pixels: int = MAX_IMAGE_PIXELS) -> None:
    """Raise ImageError where an image, named by `what`, has more pixels than are taken."""
    if width * height > max_pixels:
        raise ImageError(
            f"{what}: {width}x{height} pixels are more than max_image_pixels ({max_pixels}); send smaller images or "
            "raise that"
        )


def decode_compressed(data: Buffer, image_format: str = "", max_pixels: int = MAX_IMAGE_PIXELS) -> ImageArray:
    """Read the fields of a `sensor_msgs/CompressedImage` that holds a JPEG or PNG.

    Args:
        data: The file's bytes.
        image_format: The message's `format`, for the error message; what the bytes say counts.
        max_pixels: Of one picture; the file's header is asked before anything is decoded.

    Returns:
        RGB, shape (H, W, 3), uint8.

    Raises:
        ImageError: The bytes are no complete JPEG or PNG, or there are too many pixels.
    """
    encoded = np.frombuffer(data, np.uint8)
    what = f"compressed image of {encoded.size} bytes (format '{image_format}')"
    if not _is_complete(encoded):
        raise ImageError(f"{what}: no complete JPEG or PNG; check the transport and image_transport's settings")
    check_pixels(what, *_size_of(encoded, what), max_pixels)
    try:
        image = cv2.imdecode(encoded, _COMPRESSED_FLAGS)
    except cv2.error as error:
        raise ImageError(f"{what}: {error.err}") from None
    if image is None:
        raise ImageError(f"{what}: the bytes cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[no-any-return]


def _is_complete(encoded: NDArray[np.uint8]) -> bool:
    """Whether the end mark of the file is there: a decoder fills up what is missing with grey and says nothing."""
    head, tail = encoded[:8].tobytes(), encoded[-64:].tobytes()  # some encoders pad after the end mark
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    return head.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" in tail


def _size_of(encoded: NDArray[np.uint8], what: str) -> tuple[int, int]:
    """Width and height by the header of a JPEG or PNG, which is read no further."""
    reader = JpegImageFile if encoded[0] == 0xFF else PngImageFile
    for part in (encoded[:_HEADER_BYTES], encoded):
        try:
            width, height = reader(BytesIO(part.tobytes())).size
        except Exception as error:  # Pillow's readers raise errors of many types
            reason = error
        else:
            return width, height
    raise ImageError(f"{what}: its header cannot be read ({reason})")
