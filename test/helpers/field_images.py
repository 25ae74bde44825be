"""Images as cameras, drivers and people's folders bring them: every kind small, with what must become of it.

`row` is the line of the table in docs/topics.md that speaks of a kind; the tests hold the two together.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from PIL import Image

READ, WARNED, REFUSED = "read", "read with a warning", "refused"
HEIGHT, WIDTH = 48, 64


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """An RGB picture in which every turn, exchange of channels and loss of brightness shows; full range, smooth."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, blue = rows * 255 // (height - 1), columns * 255 // (width - 1)
    return np.stack([red, (255 - blue) // 2, blue], axis=2).astype(np.uint8)


SCENE = scene()
GREY = cv2.cvtColor(SCENE, cv2.COLOR_RGB2GRAY)
BGR = np.ascontiguousarray(SCENE[..., ::-1])
SITES = {"rggb": (0, 1, 1, 2), "bggr": (2, 1, 1, 0), "gbrg": (1, 2, 0, 1), "grbg": (1, 0, 2, 1)}


@dataclass(frozen=True)
class Kind:
    """One message or file.

    Attributes:
        row: Of the table.
        name: What is special about this one.
        answer: `READ`, `WARNED` or `REFUSED`.
        message: With the fields of an Image or a CompressedImage; of a file, its bytes.
        words: In the warning or the error.
        expected: The picture, RGB.
        tolerance: Largest mean difference from it, grey levels.
    """

    row: str
    name: str
    answer: str
    message: Any
    words: str = ""
    expected: np.ndarray | None = None
    tolerance: float = 0.0


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def raw(encoding: str, pixels: np.ndarray, *, padding: int = 0, is_bigendian: bool = False, cut: int = 0) -> Any:
    """A `sensor_msgs/Image` of pixels (H, W) or (H, W, C), uint8, uint16 or float."""
    swapped = pixels.astype(pixels.dtype.newbyteorder(">" if is_bigendian else "<"))
    rows = np.ascontiguousarray(swapped).view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.concatenate([rows, np.full((len(rows), padding), 0xA5, np.uint8)], axis=1)
    data = rows.tobytes()
    return SimpleNamespace(
        encoding=encoding, width=pixels.shape[1], height=pixels.shape[0], step=rows.shape[1],
        data=data[: len(data) - cut], is_bigendian=int(is_bigendian),
    )  # fmt: skip


def compressed(image_format: str, data: bytes) -> Any:
    """A `sensor_msgs/CompressedImage`."""
    return SimpleNamespace(format=image_format, data=data)


def mosaic(order: str) -> np.ndarray:
    """What a Bayer sensor sees of the scene, shape (H, W)."""
    result = np.empty(GREY.shape, np.uint8)
    for index, channel in enumerate(SITES[order]):
        result[index // 2 :: 2, index % 2 :: 2] = SCENE[index // 2 :: 2, index % 2 :: 2, channel]
    return result


def low(pixels: np.ndarray, bits: int) -> np.ndarray:
    """8-bit pixels as a camera of so many bits delivers them, aligned low in 16."""
    return pixels.astype(np.uint16) << (bits - 8)


def encode(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    """A file of grey or BGR pixels."""
    return bytes(cv2.imencode(suffix, pixels, list(options))[1].tobytes())


def pillow(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A file that Pillow writes."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    """The scene as a camera that was held so stores it: turned, with the EXIF tag that says how to turn it back."""
    stored = {
        1: SCENE, 2: SCENE[:, ::-1], 3: SCENE[::-1, ::-1], 4: SCENE[::-1], 5: SCENE.transpose(1, 0, 2),
        6: np.rot90(SCENE), 7: np.rot90(SCENE)[::-1, ::-1].transpose(1, 0, 2)[::-1].transpose(1, 0, 2)[:, ::-1][::-1],
        8: np.rot90(SCENE, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    return pillow(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)


def without_tables(jpeg: bytes) -> bytes:
    """A JPEG without its Huffman tables, as webcams send them in a stream of MJPEG."""
    kept, place = jpeg[:2], 2
    while jpeg[place + 1] != 0xDA:
        length = 2 + struct.unpack(">H", jpeg[place + 2 : place + 4])[0]
        kept += b"" if jpeg[place + 1] == 0xC4 else jpeg[place : place + length]
        place += length
    return kept + jpeg[place:]


def jpegs() -> Iterator[Kind]:
    """What stands behind, before and in place of the end of a JPEG."""
    noisy = np.clip(BGR.astype(int) + np.random.default_rng(0).integers(-20, 21, BGR.shape), 0, 255).astype(np.uint8)
    whole = encode(".jpg", noisy)
    expected = np.ascontiguousarray(noisy[..., ::-1])
    half = len(whole) * 2 // 3
    thumbnail = whole[:2] + b"\xff\xe1" + struct.pack(">H", 2 + 200 + len(whole)) + bytes(200) + whole + whole[2:]
    behind = {
        **{f"{count} zeros": bytes(count) for count in (1, 63, 64, 65, 5000)},
        "0xFF": b"\xff" * 900,
        "a rest of the frame before": whole[half:],
        "a whole frame": whole,
        "noise": np.random.default_rng(1).integers(0, 256, 3000, np.uint8).tobytes(),
    }
    for name, rest in behind.items():
        yield Kind("JPEG with padding behind its end mark", name, READ, whole + rest, "", expected, 12)
    for name, options in {
        "progressive": (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "restart marks": (cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        "4:4:4": (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    }.items():
        data = encode(".jpg", noisy, *options)
        yield Kind("JPEG with padding behind its end mark", name, READ, data + bytes(100), "", expected, 12)
        cut = data[: len(data) * 2 // 3]
        for rest in (b"", bytes(300), b"\xff" * 70):
            yield Kind("JPEG cut off", f"{name}, {len(rest)} behind", REFUSED, cut + rest, "end mark is missing")
        yield Kind("JPEG cut and closed, or damaged", name, REFUSED, cut + b"\xff\xd9", "damaged (Corrupt JPEG data")
    grey = as_rgb(cv2.cvtColor(expected, cv2.COLOR_RGB2GRAY))
    data = encode(".jpg", cv2.cvtColor(noisy, cv2.COLOR_BGR2GRAY))
    yield Kind("JPEG with padding behind its end mark", "grey", READ, data + bytes(64), "", grey, 12)
    yield Kind("MJPEG frame without Huffman tables", "plain", READ, without_tables(whole), "", expected, 12)
    for name, rest in {"zeros": bytes(900), "few": b"\x12\x34\x56\x78" * 2}.items():
        padded = whole[:-2] + rest + whole[-2:]
        words = "bytes of no meaning before the end mark"
        yield Kind(
            "JPEG with filling, or up to 8 bytes, before its end mark", name, WARNED, padded, words, expected, 12
        )
    for name, part in {"a third": len(whole) // 3, "the header": 60, "all but the end mark": len(whole) - 2}.items():
        yield Kind("JPEG cut off", name, REFUSED, whole[:part], "")
    yield Kind("JPEG cut off", "with a whole thumbnail", REFUSED, thumbnail[: -len(whole) // 2], "end mark is missing")
    refused = "JPEG cut and closed, or damaged"
    yield Kind(refused, "closed", REFUSED, whole[:half] + b"\xff\xd9", "Corrupt JPEG data: premature end")
    yield Kind(refused, "the frame before", REFUSED, whole[: half // 2] + whole[half:], "damaged (Corrupt JPEG data")
    hole = whole[: half - 400] + bytes(400) + whole[half:]
    yield Kind(refused, "a hole of zeros", REFUSED, hole, "damaged (Corrupt JPEG data")


def pngs() -> Iterator[Kind]:
    """PNG files, whole and not."""
    whole = encode(".png", BGR)
    for name, rest in {"zeros": bytes(5000), "another PNG": whole, "one byte": b"\n"}.items():
        yield Kind("PNG with bytes behind its end", name, READ, whole + rest, "", SCENE)
    for part in (10, len(whole) // 2, len(whole) - 12, len(whole) - 1):
        yield Kind("PNG cut off", f"{part} bytes", REFUSED, whole[:part], "")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    yield Kind("PNG damaged", "a flipped bit", REFUSED, bytes(flipped), "chunk IDAT has a wrong checksum")
    yield Kind("file of another kind", "video", REFUSED, b"\0\0\0\1\x67\x42" + bytes(99), "not an image file")
    yield Kind("file of another kind", "text", REFUSED, b"no picture", "not an image file")
    yield Kind("file of another kind", "empty", REFUSED, b"", "is empty")


def raw_messages() -> Iterator[Kind]:
    """Messages of sensor_msgs/Image."""
    row = "named encoding, padded rows, either byte order"
    for padding in (0, 6):
        yield Kind(row, f"rgb8+{padding}", READ, raw("rgb8", SCENE, padding=padding), "", SCENE)
        for is_bigendian in (False, True):
            more = {"padding": padding, "is_bigendian": is_bigendian}
            for encoding, pixels, expected in (
                ("rgb16", SCENE, SCENE),
                ("bgr16", BGR, SCENE),
                ("rgba16", np.dstack([SCENE, GREY]), SCENE),
                ("bgra16", np.dstack([BGR, GREY]), SCENE),
                ("mono16", GREY, as_rgb(GREY)),
            ):
                message = raw(encoding, pixels.astype(np.uint16) * 257, **more)
                yield Kind(row, f"{encoding}+{padding} {is_bigendian}", READ, message, "", expected)
    row = "16-bit samples of a camera of 8, 10, 12 or 14 bits, aligned low"
    for bits in (8, 10, 12, 14):
        for is_bigendian in (False, True):
            for encoding, pixels, expected in (("mono16", GREY, as_rgb(GREY)), ("rgb16", SCENE, SCENE)):
                message = raw(encoding, low(pixels, bits), is_bigendian=is_bigendian, padding=4)
                yield Kind(row, f"{encoding} {bits} {is_bigendian}", WARNED, message, f"use {bits} bits", expected)
        for order in SITES:
            message = raw(f"bayer_{order}16", low(mosaic(order), bits))
            yield Kind(row, f"bayer {order} {bits}", WARNED, message, f"use {bits} bits", SCENE, 6)
    row = "8UC1, 8UC3, 8UC4, 16UC3, 16UC4"
    for encoding, pixels, meant, expected in (
        ("8UC1", GREY, "mono8", as_rgb(GREY)),
        ("8UC3", BGR, "bgr8", SCENE),
        ("8UC4", np.dstack([BGR, GREY]), "bgra8", SCENE),
        ("16UC3", BGR.astype(np.uint16) * 257, "bgr16", SCENE),
        ("16UC4", np.dstack([BGR, GREY]).astype(np.uint16) * 257, "bgra16", SCENE),
    ):
        words = f"encoding '{encoding}' is read as {meant}; set assume_encoding"
        yield Kind(row, encoding, WARNED, raw(encoding, pixels, padding=2), words, expected)
    for encoding in ("RGB8", " rgb8", "Rgb8"):
        words = f"encoding '{encoding}' is read as rgb8"
        yield Kind("known encoding in another spelling", encoding, WARNED, raw(encoding, SCENE), words, SCENE)
    words = "unknown encoding '16UC1': that may be depth, which is no picture"
    yield Kind("16UC1", "depth or grey", REFUSED, raw("16UC1", low(GREY, 12)), words)
    for encoding in ("32FC1", "64FC1", "16SC1", "32SC1"):
        kind = {"32F": np.float32, "64F": np.float64, "16S": np.int16, "32S": np.int32}[encoding[:3]]
        words = f"unknown encoding '{encoding}': that may be depth"
        yield Kind("32FC1 and other types of one channel", encoding, REFUSED, raw(encoding, GREY.astype(kind)), words)
    row = "any other encoding, or none"
    two = SCENE[..., :2]
    yield Kind(row, "8UC2", REFUSED, raw("8UC2", two), "set assume_encoding to one of yuv422, uyvy, yuv422_yuy2, yuyv")
    yield Kind(row, "32FC3", REFUSED, raw("32FC3", SCENE.astype(np.float32)), "let the driver convert it")
    yield Kind(row, "none", REFUSED, raw("", SCENE), "unknown encoding ''; set assume_encoding to one of rgb8")
    yield Kind(row, "packed", REFUSED, raw("bayer_rggb12p", GREY), "unknown encoding 'bayer_rggb12p'")
    row = "size, step and data that do not fit"
    yield Kind(row, "cut", REFUSED, raw("rgb8", SCENE, cut=1), "data is truncated: expected")
    message = raw("rgb8", SCENE)
    message.step -= 1
    yield Kind(row, "step", REFUSED, message, "a row takes at least")


def compressed_messages() -> Iterator[Kind]:
    """Messages of sensor_msgs/CompressedImage whose `format` counts."""
    row = "Bayer mosaic in PNG or TIFF"
    for order in SITES:
        for suffix, codec in ((".png", "png"), (".tiff", "tiff")):
            name = f"bayer_{order}8; {codec} compressed "
            yield Kind(row, name, READ, compressed(name, encode(suffix, mosaic(order))), "", SCENE, 6)
            name = f"bayer_{order}16; {codec} compressed "
            data = encode(suffix, mosaic(order).astype(np.uint16) * 257)
            yield Kind(row, name, READ, compressed(name, data), "", SCENE, 6)
    for name in ("bayer_rggb8;png compressed", "BAYER_RGGB8; PNG compressed bayer_rggb8", "bayer_rggb8"):
        yield Kind(row, name, READ, compressed(name, encode(".png", mosaic("rggb"))), "", SCENE, 6)
    grey_jpeg = encode(".jpg", GREY)
    name = "bayer_rggb8; jpeg compressed mono8"  # image_transport demosaiced it to grey
    yield Kind("grey in any file", name, READ, compressed(name, grey_jpeg), "", as_rgb(GREY), 3)
    for name in ("mono8; jpeg compressed ", "8UC1; jpeg compressed ", "jpeg", "rgb8; jpeg compressed bgr8", "odd; ;"):
        yield Kind("grey in any file", name, READ, compressed(name, grey_jpeg), "", as_rgb(GREY), 3)
    row = "16-bit PNG or TIFF of a camera of fewer bits"
    for bits in (8, 10, 12, 14):
        for suffix, codec in ((".png", "png"), (".tiff", "tiff")):
            words = f"use {bits} bits"
            name = f"mono16; {codec} compressed "
            data = encode(suffix, low(GREY, bits))
            yield Kind(row, f"{name}{bits}", WARNED, compressed(name, data), words, as_rgb(GREY))
            name = f"bayer_gbrg16; {codec} compressed "
            data = encode(suffix, low(mosaic("gbrg"), bits))
            yield Kind(row, f"{name}{bits}", WARNED, compressed(name, data), words, SCENE, 6)
        data = encode(".png", low(BGR, bits))
        name = "rgb16; png compressed bgr16"
        yield Kind(row, f"{name} {bits}", WARNED, compressed(name, data), f"use {bits} bits", SCENE)
    row = "colours in JPEG, PNG or TIFF"
    for name in ("bgr8; png compressed bgr8", "rgb8; png compressed bgr8", "png", "", "PNG", "image/png", "bgr8; png"):
        yield Kind(row, name, READ, compressed(name, encode(".png", BGR)), "", SCENE)
    for name, pixels in (("bgr8; tiff compressed ", BGR), ("rgb8; tiff compressed ", SCENE)):  # as OpenCV gets them
        yield Kind(row, name, READ, compressed(name, encode(".tiff", pixels)), "", SCENE)
    row = "colours in JPEG or PNG whose `format` ends with rgb8"
    name, words = "rgb8; png compressed rgb8", "are read as the file has them"
    yield Kind(row, name, WARNED, compressed(name, encode(".png", BGR)), words, SCENE)
    png16, words = encode(".png", low(GREY, 12)), "that may be depth, which is no picture"
    for name, data in (
        ("16UC1; compressedDepth png", bytes(12) + png16),
        ("32FC1; compressedDepth rvl", bytes(99)),
        ("16UC1; png compressed ", png16),
        ("32FC1; tiff compressed ", encode(".tiff", GREY.astype(np.float32))),
        ("tiff", encode(".tiff", GREY.astype(np.float32))),
    ):
        yield Kind("depth, or what may be", name, REFUSED, compressed(name, data), words)
    odd = compressed("bayer_rggb8; png compressed", encode(".png", mosaic("rggb")[:-1]))
    yield Kind("Bayer mosaic of odd size", "png", REFUSED, odd, "are no bayer_rggb8 mosaic")


def files() -> Iterator[Kind]:
    """Files of a folder of images."""
    for orientation in (1, 2, 3, 4, 5, 6, 8):
        for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
            name = f"{kind} {orientation}"
            yield Kind("photo with EXIF orientation", name, READ, turned(kind, orientation), "", SCENE, 2)
    row = "palette, alpha, CMYK, one bit, grey"
    picture = Image.fromarray(SCENE)
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        yield Kind(row, f"palette {kind}", READ, pillow(picture.convert("P"), kind), "", SCENE, 40)
    for kind in ("PNG", "TIFF"):
        alpha = Image.fromarray(np.dstack([SCENE, GREY]))
        yield Kind(row, f"alpha {kind}", READ, pillow(alpha, kind), "", SCENE)
        grey_alpha = Image.fromarray(np.dstack([GREY, GREY]))
        yield Kind(row, f"grey and alpha {kind}", READ, pillow(grey_alpha, kind), "", as_rgb(GREY))
        bits = as_rgb(np.asarray(Image.fromarray(GREY).convert("1")).astype(np.uint8) * 255)
        yield Kind(row, f"one bit {kind}", READ, pillow(Image.fromarray(GREY).convert("1"), kind), "", bits)
    for kind, tolerance in (("TIFF", 1), ("JPEG", 6)):
        yield Kind(row, f"CMYK {kind}", READ, pillow(picture.convert("CMYK"), kind), "", SCENE, tolerance)
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        yield Kind(row, f"grey {kind}", READ, pillow(Image.fromarray(GREY), kind), "", as_rgb(GREY))
    row = "16-bit file that uses 16 bits"
    for suffix in (".png", ".tiff"):
        yield Kind(row, f"grey {suffix}", READ, encode(suffix, GREY.astype(np.uint16) * 257), "", as_rgb(GREY))
        yield Kind(row, f"colour {suffix}", READ, encode(suffix, BGR.astype(np.uint16) * 257), "", SCENE)
    for bits in (10, 12, 14):
        words = f"16-bit samples use {bits} bits"
        row = "16-bit file that uses fewer bits"
        yield Kind(row, f"{bits}", WARNED, encode(".png", low(GREY, bits)), words, as_rgb(GREY))
    row = "float or signed TIFF from 0 to 1, 255 or 65535"
    for largest in (1, 255):
        data = encode(".tiff", GREY.astype(np.float32) / 255 * largest)
        yield Kind(row, f"{largest}", WARNED, data, f"read as 0 to {largest}", as_rgb(GREY))
        plain = cv2.IMWRITE_TIFF_COMPRESSION, 1  # OpenCV 4.11 would lose some of it otherwise
        data = encode(".tiff", BGR.astype(np.float32) / 255 * largest, *plain)
        yield Kind(row, f"{largest} colours", WARNED, data, f"read as 0 to {largest}", SCENE)
    data = encode(".tiff", GREY.astype(np.float32) * 16)
    yield Kind(row, "12 bits", WARNED, data, "read as 0 to 65535", as_rgb(GREY))
    data = encode(".tiff", GREY.astype(np.int16) * 64)
    yield Kind(row, "signed 14 bits", WARNED, data, "int16 samples are read as 0 to 65535", as_rgb(GREY))
    row = "TIFF of values that no picture has"
    for name, value in {"negative": -3.0, "huge": 1e6, "not a number": np.nan}.items():
        pixels = np.full((4, 6), value, np.float32)
        yield Kind(row, name, REFUSED, encode(".tiff", pixels), "is it depth? convert it")
    whole = {"tiff": encode(".tiff", BGR), "bmp": encode(".bmp", BGR), "webp": encode(".webp", BGR)}
    for name, data in whole.items():
        yield Kind("TIFF, BMP or WebP cut off", name, REFUSED, data[: len(data) // 2], "")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield Kind("git-lfs pointer", "png", REFUSED, pointer, "run 'git lfs pull'")


def table(page: Path) -> dict[str, tuple[str, str]]:
    """The table of the page: row -> answer and sentence."""
    rows = [line.strip("|").split("|") for line in page.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    return {row[0].strip(): (row[1].strip(), row[2].strip()) for row in rows if len(row) == 3}
