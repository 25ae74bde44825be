"""Pictures as the bytes of a file, from a message or a disk: the one decoder, which takes nothing that is not whole.

The header is read before anything is decoded: a PNG of 250 kB may hold 250 megapixels. OpenCV decodes, but for WebP and
GIF, and what its codecs only print is heard: they fill up what is missing or damaged with grey and go on.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
import zlib
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from semla_ros.codec_warnings import caught_warnings
from semla_ros.config import MAX_IMAGE_PIXELS
from semla_ros.errors import ImageError
from semla_ros.file_integrity import foreign
from semla_ros.image_samples import Buffer, check_pixels

logger = logging.getLogger(__name__)
warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of a header is checked here
_PICTURE = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR  # grey or BGR, of any type, upright by its EXIF data
_READERS = {
    b"\xff\xd8": "Jpeg",
    b"\x89PNG\r\n\x1a\n": "Png",
    b"II*\0": "Tiff",
    b"MM\0*": "Tiff",
    b"BM": "Bmp",
    b"RIFF": "WebP",
    b"GIF8": "Gif",
    b"P5": "Ppm",
    b"P6": "Ppm",
}  # first bytes -> module of Pillow that reads the header
# Bytes between the picture and its end mark: some webcams leave a few, others fill up with one value.
_STRAY = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_FEW_STRAY = 8
_EXIF_DETAILS = 0x8769
_DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression", "libpng error")
_told: set[str] = set()


def read_values(
    data: Buffer, what: str, max_pixels: int = MAX_IMAGE_PIXELS, *, is_upright: bool = False
) -> NDArray[Any]:
    """Decode a picture file.

    Args:
        data: Its bytes; what stands behind its end is left alone.
        what: What they are, for messages.
        max_pixels: Of one picture.
        is_upright: Turn it by its EXIF data; else it is as the sensor saw it, like raw images.

    Returns:
        Grey (H, W) or RGB (H, W, 3), uint8 or uint16, or of a TIFF whatever it holds.

    Raises:
        ImageError: The bytes are no picture, or not a whole and sound one, or there are too many pixels.
    """
    encoded = np.frombuffer(data, np.uint8)
    reader = check_header(encoded, what, max_pixels)
    if reader == "Tiff" and _has_8_bit_alpha(encoded):
        return by_pillow(encoded, what, "RGB")  # OpenCV would multiply by alpha
    if reader in ("WebP", "Gif"):  # OpenCV until 4.11 reads no GIF, and no EXIF data of a WebP
        return by_pillow(encoded, what, "RGB", is_upright=is_upright)
    flags = _PICTURE if is_upright else _PICTURE | cv2.IMREAD_IGNORE_ORIENTATION
    reason = "its bytes do not add up"
    with caught_warnings() as lines:
        try:
            values = cv2.imdecode(encoded, flags)
        except cv2.error as error:
            values, reason = None, error.err
    for line in lines:
        _judge(line, encoded, what)
    if values is None:
        raise ImageError(f"{what}: cannot be decoded ({reason})")
    return np.asarray(values if values.ndim == 2 else cv2.cvtColor(values, cv2.COLOR_BGR2RGB))


def exif_of(data: bytes, what: str) -> dict[int, Any]:
    """Exif tags by number, those of the picture's details included.

    Raises:
        ImageError: It is no image, or its tags are damaged.
    """
    try:
        with Image.open(BytesIO(data)) as picture:
            exif = picture.getexif()
            return {**exif, **exif.get_ifd(_EXIF_DETAILS)}
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{what}: its EXIF data cannot be read: {error}") from None


def tell_once(text: str, kind: str) -> None:
    """Log a warning unless one of its kind has been logged by this process."""
    if kind not in _told:
        _told.add(kind)
        logger.warning(text)


def check_header(encoded: NDArray[np.uint8], what: str, max_pixels: int) -> str:
    """The name of Pillow's reader; ImageError for what is no picture, too large, or cut off."""
    start = encoded[:16].tobytes()
    reader = next((name for mark, name in _READERS.items() if start.startswith(mark)), "")
    if not reader:
        reason = foreign(start) or "not an image file: expected JPEG, PNG, TIFF, BMP, WebP, GIF or PPM"
        raise ImageError(f"{what}: {reason if start else 'is empty'}")
    try:
        width, height = _size_of(reader, encoded.tobytes())
    except Exception as error:  # Pillow's readers raise errors of many types
        raise ImageError(f"{what}: its header cannot be read ({_first_line(error)})") from None
    check_pixels(what, width, height, max_pixels)
    if reader == "Jpeg" and not _jpeg_end(encoded):
        raise ImageError(f"{what}: cut off, its end mark is missing; copy or send it whole")
    if reader == "Png":
        _check_chunks(encoded, what)
    return reader


def _size_of(reader: str, data: bytes) -> tuple[int, int]:
    """Width and height by the header, which is read no further."""
    module = importlib.import_module(f"PIL.{reader}ImagePlugin")
    if reader != "Tiff":
        width, height = getattr(module, f"{reader}ImageFile")(BytesIO(data)).size
        return width, height
    tags = _tiff_tags(data)  # TiffImageFile refuses types that OpenCV reads
    return int(tags[256]), int(tags[257])


def _tiff_tags(data: bytes) -> Any:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags, file = ImageFileDirectory_v2(data[:8]), BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _has_8_bit_alpha(encoded: NDArray[np.uint8]) -> bool:
    tags = _tiff_tags(encoded.tobytes())
    return 338 in tags and max(tags.get(258, (1,))) == 8  # ExtraSamples, BitsPerSample


def by_pillow(encoded: NDArray[np.uint8], what: str, mode: str = "", *, is_upright: bool = False) -> NDArray[Any]:
    """Decode, and convert to one of Pillow's modes; "" leaves values as they are stored. Raises ImageError."""
    try:
        with Image.open(BytesIO(encoded.tobytes())) as picture:
            turned = ImageOps.exif_transpose(picture) if is_upright else picture
            return np.array(turned.convert(mode) if mode else turned)
    except Exception as error:  # Pillow's readers raise errors of many types
        raise ImageError(f"{what}: cannot be decoded ({_first_line(error)})") from None


def _jpeg_end(encoded: NDArray[np.uint8]) -> int:
    """Where the picture ends, behind its end mark; 0 where there is none. End marks of thumbnails are not it."""
    pairs = np.flatnonzero(encoded[:-1] == 0xFF)
    is_data = np.isin(encoded[pairs + 1], (0x00, 0x01, 0xFF, *range(0xD0, 0xD8)))  # stuffed, filling or restarting
    marks = pairs[~is_data]
    place = 2
    while (index := int(np.searchsorted(marks, place))) < len(marks):
        place = int(marks[index]) + 2
        if encoded[place - 1] == 0xD9:
            return place
        place += int.from_bytes(encoded[place : place + 2].tobytes(), "big")  # a segment says how long it is
    return 0


def _check_chunks(encoded: NDArray[np.uint8], what: str) -> None:
    """Refuse a PNG that ends before its last chunk, or of which one that matters is not what its checksum says."""
    data, place, kind = encoded.data, 8, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[place : place + 4], "big"), bytes(data[place + 4 : place + 8])
        end = place + 8 + length
        if end + 4 > len(data):
            raise ImageError(f"{what}: cut off, its last chunk is missing; copy or send it whole")
        if kind.isupper() and zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ImageError(f"{what}: damaged, chunk {kind.decode(errors='replace')} has a wrong checksum")
        place = end + 4


def _judge(line: str, encoded: NDArray[np.uint8], what: str) -> None:
    """Refuse the picture where a codec says that it is damaged; log once what else it says."""
    if stray := _STRAY.match(line):
        count, end = int(stray[1]), _jpeg_end(encoded) - 2
        if count <= _FEW_STRAY or len(set(encoded[end - count : end].tobytes())) == 1:
            line = "bytes of no meaning before the end mark"
    if line.startswith(_DAMAGE):
        raise ImageError(f"{what}: damaged ({line}); check the camera's connection, or copy the file again")
    tell_once(f"{what}: {line}", re.sub(r"\d+", "", line))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0]
