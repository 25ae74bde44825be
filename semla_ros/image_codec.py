"""Image messages to RGB arrays, with numpy and OpenCV only.

Raw images are read where they lie: `rgb8` is returned as a view of the message's own buffer, whatever its `step`; every
other encoding costs one conversion and no copy before it. What does not add up is refused with the encoding, size and
step in the message, because a picture read with the wrong step looks plausible and is wrong. What a driver leaves open
and can mean one thing only is read, and said; docs/topics.md has a table of all that cameras send.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from semla_ros.config import MAX_IMAGE_PIXELS
from semla_ros.errors import ConfigError, ImageError
from semla_ros.image_samples import DEPTHS, BitDepth, Buffer, as_rgb, check_pixels
from semla_ros.results import ImageArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Layout:
    """How one encoding lies in memory.

    Attributes:
        pixel_bytes: Bytes per pixel of a row.
        to_rgb: From an array of shape (rows, W) or (rows, W, pixel_bytes), uint8, to RGB of shape (H, W, 3).
        rows_per_height: Rows of data per image row as a fraction: (1, 1), or (3, 2) with a half-height chroma plane.
        block: Width and height must be multiples of these.
        is_16_bit: Each sample has two bytes, in the byte order of the message; `to_rgb` gets them as 8 bits.
    """

    pixel_bytes: int
    to_rgb: Callable[[ImageArray], ImageArray]
    rows_per_height: tuple[int, int] = (1, 1)
    block: tuple[int, int] = (1, 1)
    is_16_bit: bool = False


def _with(code: int) -> Callable[[ImageArray], ImageArray]:
    return lambda array: cv2.cvtColor(array, code)


def _demosaic(code: int) -> Callable[[ImageArray], ImageArray]:
    return lambda array: cv2.cvtColor(np.ascontiguousarray(array), code)  # it needs pixels side by side


# By ROS habit a Bayer name spells the first two rows, left to right: rggb = R G / G B. OpenCV's short names do not.
_BAYER = {
    "rggb": cv2.COLOR_BayerRGGB2RGB,
    "bggr": cv2.COLOR_BayerBGGR2RGB,
    "gbrg": cv2.COLOR_BayerGBRG2RGB,
    "grbg": cv2.COLOR_BayerGRBG2RGB,
}
_UYVY = _Layout(2, _with(cv2.COLOR_YUV2RGB_UYVY), block=(2, 1))
_YUY2 = _Layout(2, _with(cv2.COLOR_YUV2RGB_YUY2), block=(2, 1))

_COLOURS: dict[str, tuple[int, Callable[[ImageArray], ImageArray]]] = {
    "rgb": (3, lambda array: array),
    "bgr": (3, _with(cv2.COLOR_BGR2RGB)),
    "rgba": (4, _with(cv2.COLOR_RGBA2RGB)),
    "bgra": (4, _with(cv2.COLOR_BGRA2RGB)),
    "mono": (1, _with(cv2.COLOR_GRAY2RGB)),
}
_LAYOUTS: dict[str, _Layout] = {
    **{f"{name}8": _Layout(channels, to_rgb) for name, (channels, to_rgb) in _COLOURS.items()},
    **{f"{name}16": _Layout(2 * channels, to_rgb, is_16_bit=True) for name, (channels, to_rgb) in _COLOURS.items()},
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

# What `cv2_to_imgmsg` and many drivers write; OpenCV's own order is meant. One channel of 16 bits may be depth.
_MEANT = {"8UC1": "mono8", "8UC3": "bgr8", "8UC4": "bgra8", "16UC3": "bgr16", "16UC4": "bgra16"}
_PLAIN = re.compile(r"(8|16|32|64)[USF]C([1-9])")  # type and channels, without a meaning
_DEPTH = re.compile(r"(16U|16S|32S|32F|64F)C1")
_NO_PICTURE = "that may be depth, which is no picture; choose the topic of a camera's image, such as rgb8 or mono8"


def is_tight(*, encoding: str, width: int, height: int, step: int, size: int) -> bool:
    """Whether `size` bytes hold exactly the pixels of a known 8-bit encoding in one plane, without padding."""
    layout = _LAYOUTS.get(encoding)
    if layout is None or layout.is_16_bit or layout.rows_per_height != (1, 1):
        return False
    return width > 0 and height > 0 and step == width * layout.pixel_bytes and size == step * height


class ImageDecoder:
    """Decodes the images of one camera, whose messages are of one kind, and says once what it had to assume.

    Args:
        max_pixels: Of one picture; larger ones are refused before anything is decoded.
        assume_encoding: One of `ENCODINGS`: what images are read as whose own encoding leaves that open (such as 8UC3,
            16UC1, an empty one); "" = what it can mean alone, else they are refused.
        bits: How many of their 16 bits samples use, counted from the lowest; 0 = found from the images.

    Attributes:
        max_pixels: As given.
        encoding: What of `ENCODINGS` images are read as; empty before the first one.

    Raises:
        ConfigError: `assume_encoding` is none of `ENCODINGS`.
    """

    def __init__(self, max_pixels: int = MAX_IMAGE_PIXELS, assume_encoding: str = "", bits: int = 0) -> None:
        if assume_encoding and assume_encoding not in _LAYOUTS:
            raise ConfigError(f"'assume_encoding' must be one of {', '.join(ENCODINGS)}, got '{assume_encoding}'")
        self.max_pixels, self._assume_encoding, self._bits = max_pixels, assume_encoding, bits
        self._depth = BitDepth(bits)
        self._told_bits = 0
        self.encoding = self._assumed = ""

    @property
    def read_as(self) -> str:
        """The encoding, and of 16-bit samples the bits in use; empty before the first image."""
        return f"{self.encoding}, {self._told_bits} of 16 bits" if self._told_bits else self.encoding

    @property
    def assumptions(self) -> list[str]:
        """What had to be assumed, a sentence each that says how to settle it."""
        return list(filter(None, (self._assumed, self._about_bits)))

    def __call__(self, message: Any) -> ImageArray:
        """RGB of a `sensor_msgs/Image`, or of a `CompressedImage`, which has no `encoding`; shape (H, W, 3), uint8.

        Raises:
            ImageError: It cannot be decoded.
        """
        if not hasattr(message, "encoding"):
            return self.decode_compressed(message.data, message.format)
        size = message.width, message.height
        return self.decode(message.encoding, *size, message.step, message.data, bool(message.is_bigendian))

    def decode(
        self, encoding: str, width: int, height: int, step: int, data: Buffer, is_bigendian: bool = False
    ) -> ImageArray:
        """Read the fields of a `sensor_msgs/Image`.

        Args:
            encoding: One of `ENCODINGS`, or one that `assume_encoding` speaks of.
            width: Pixels per row.
            height: Rows of the picture (for nv12 and nv21: of its luma plane).
            step: Bytes per row, padding included.
            data: `step` bytes for each row; the padding of the last row may be missing.
            is_bigendian: Byte order of 16-bit samples.

        Returns:
            RGB, shape (height, width, 3), uint8; for `rgb8` a view of `data`. Of 16-bit samples the highest 8 of the
            bits in use are kept.

        Raises:
            ImageError: The encoding is not known or can mean several things, there are too many pixels, or width,
                height, step and length of the data do not fit each other.
        """
        what = f"{encoding} image of {width}x{height} pixels with step {step}"
        known = self._meaning_of(encoding, what)
        layout = _LAYOUTS[known]
        if width < 1 or height < 1:
            raise ImageError(f"{what}: width and height must be at least 1; check the camera driver")
        check_pixels(what, width, height, self.max_pixels)
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
        sample_bytes = 2 if layout.is_16_bit else 1
        channels = layout.pixel_bytes // sample_bytes
        shape = (rows, width) if channels == 1 else (rows, width, channels)
        strides = (step, layout.pixel_bytes, sample_bytes)[: len(shape)]
        dtype = np.uint8 if sample_bytes == 1 else np.dtype(">u2" if is_bigendian else "<u2")
        pixels: NDArray[Any] = np.ndarray(shape, dtype, samples.data, strides=strides)
        self.encoding = known
        return layout.to_rgb(self._to_8_bit(pixels) if layout.is_16_bit else pixels)

    def decode_compressed(self, data: Buffer, image_format: str = "") -> ImageArray:
        """Read the fields of a `sensor_msgs/CompressedImage`.

        Args:
            data: The bytes of a JPEG, PNG, TIFF or another file that `image_bytes` reads.
            image_format: The message's `format`, as image_transport writes it: "<encoding>; <codec> compressed
                <encoding>"; it tells a mosaic from grey, and what may be depth.

        Returns:
            RGB, shape (H, W, 3), uint8; a mosaic is demosaiced, see `decode` for 16-bit samples.

        Raises:
            ImageError: The bytes are no whole picture, there are too many pixels, or they are depth or may be.
        """
        from semla_ros.image_bytes import read_values  # raw images, which cameras send by default, need no codec

        what = f"compressed image of {len(data)} bytes (format '{image_format}')"
        if "compresseddepth" in image_format.lower():
            raise ImageError(f"{what}: {_NO_PICTURE}")
        values = read_values(data, what, self.max_pixels)
        source, codec, target = _parts_of(image_format)
        if values.ndim == 2:
            return self._from_one_channel(values, target or source, what)
        if values.dtype == np.uint16:
            values = self._to_8_bit(values)
        elif values.dtype != np.uint8:
            raise ImageError(f"{what}: holds {values.dtype} colours; let the camera send 8 or 16 bits per sample")
        self.encoding = "rgb8"
        if codec == "tiff" and not target and source.startswith("rgb"):
            return np.ascontiguousarray(values[..., ::-1])  # image_transport hands OpenCV RGB as if it were BGR
        if target.startswith("rgb"):
            self._assume(
                f"format '{image_format}' tells image_transport that red and blue are exchanged in the file: they are "
                "read as the file has them; let the sender write 'compressed bgr8'"
            )
        return values

    def _from_one_channel(self, values: NDArray[Any], encoding: str, what: str) -> ImageArray:
        """Grey, or the mosaic that `encoding` says it is."""
        if values.dtype not in (np.uint8, np.uint16):
            raise ImageError(f"{what}: holds {values.dtype} values: {_NO_PICTURE}")
        is_open = _DEPTH.fullmatch(encoding) or (_PLAIN.fullmatch(encoding) and self._assume_encoding)
        known = self._meaning_of(encoding, what) if is_open or encoding.startswith("bayer") else "mono8"
        layout = _LAYOUTS[known]
        height, width = values.shape
        if width % layout.block[0] or height % layout.block[1]:
            raise ImageError(f"{what}: {width}x{height} pixels are no {known} mosaic, which has whole blocks of 2x2")
        if values.dtype == np.uint16:
            values = self._to_8_bit(values)
        self.encoding = known
        return layout.to_rgb(values) if known.startswith("bayer") else as_rgb(values)

    def _meaning_of(self, encoding: str, what: str) -> str:
        """What of `ENCODINGS` an encoding is, or can be alone."""
        if encoding in _LAYOUTS:
            return encoding
        plain = _PLAIN.fullmatch(encoding)
        pixel_bytes = int(plain[1]) // 8 * int(plain[2]) if plain else 0
        if self._assume_encoding:
            needed = _LAYOUTS[self._assume_encoding].pixel_bytes
            if pixel_bytes and needed != pixel_bytes:
                raise ImageError(
                    f"{what}: {encoding} has {pixel_bytes} bytes per pixel, assume_encoding {self._assume_encoding} "
                    f"{needed}; set assume_encoding to one that fits"
                )
            return self._assume_encoding
        known = _MEANT.get(encoding) or encoding.strip().lower()
        if known in _LAYOUTS:
            self._assume(f"encoding '{encoding}' is read as {known}; set assume_encoding to what it is")
            return known
        if _DEPTH.fullmatch(encoding):
            advice = "; if it is grey, set assume_encoding to mono16" if pixel_bytes == 2 else ""
            raise ImageError(f"{what}: unknown encoding '{encoding}': {_NO_PICTURE}{advice}")
        fitting = [
            name
            for name, layout in _LAYOUTS.items()
            if not plain or (layout.pixel_bytes == pixel_bytes and layout.is_16_bit == (plain[1] == "16"))
        ]
        advice = f"set assume_encoding to one of {', '.join(fitting)}" if fitting else "let the driver convert it"
        raise ImageError(f"{what}: unknown encoding '{encoding}'; {advice}")

    def _assume(self, text: str) -> None:
        if text != self._assumed:
            self._assumed = text
            logger.warning(text)

    def _to_8_bit(self, values: NDArray[np.uint16]) -> NDArray[np.uint8]:
        result = self._depth.to_8_bit(values)
        if self._depth.bits != self._told_bits:
            self._told_bits = self._depth.bits
            if text := self._about_bits:
                logger.warning(text)
        return result

    @property
    def _about_bits(self) -> str:
        if self._bits or self._told_bits in (0, DEPTHS[-1]):
            return ""
        return f"16-bit samples use {self._told_bits} bits so far and are read as such; set bits to what the camera has"


def _parts_of(image_format: str) -> tuple[str, str, str]:
    """Of "<encoding>; <codec> compressed <encoding>" the three; empty where they are missing."""
    source, mark, rest = image_format.partition(";")
    codec, _, target = rest.partition("compressed")
    if not mark:
        source = source if source.strip().lower() in _LAYOUTS or _PLAIN.fullmatch(source.strip()) else ""
    known = [name.strip() if _PLAIN.fullmatch(name.strip()) else name.strip().lower() for name in (source, target)]
    return known[0], codec.strip().lower(), known[1]
