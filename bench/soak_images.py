"""Camera images as a long drive may bring them: every encoding, many sizes, and messages that do not add up."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from semla_ros.image_codec import ENCODINGS
from semla_ros.lab.world.drive import demo_drive

SIZES = ((96, 128), (192, 256), (240, 320), (480, 640), (134, 218), (720, 1280))  # height, width
SIZE_SHARES = (0.2, 0.3, 0.2, 0.2, 0.08, 0.02)  # one in fifty is large
Stamp = tuple[int, int]  # seconds and nanoseconds
PADDINGS = (0, 0, 4, 36)  # bytes behind each row


@dataclass(frozen=True)
class Picture:
    """The fields of a `sensor_msgs/Image` without its header, or those of a `CompressedImage`.

    Attributes:
        fault: What is wrong with it; empty where nothing is.
        must_be_refused: Whether a fault leaves no picture; some damage inside a JPEG can only be seen by looking.
        is_compressed: Whether `encoding` is the format, and `data` the bytes, of a JPEG or PNG file.
    """

    encoding: str
    width: int
    height: int
    step: int
    data: bytes
    is_bigendian: bool = False
    fault: str = ""
    must_be_refused: bool = True
    is_compressed: bool = False


def make_pictures(
    count: int, seed: int | Sequence[int], size: tuple[int, int] | None = None, is_compressed: bool = False
) -> list[Picture]:
    """Valid pictures of a drive through changing weather, in the order of the drive.

    Args:
        count: How many; encodings come in turn.
        seed: Of sizes and paddings.
        size: Height and width of all; None: mixed.
        is_compressed: Files of JPEG and PNG instead of raw encodings.
    """
    rng = np.random.default_rng(seed)
    drive = demo_drive(7)
    pictures = []
    for index in range(count):
        scene = drive.render(drive.duration_s * index / count).image
        height, width = size or SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
        pixels = cv2.resize(scene, (width, height), interpolation=cv2.INTER_LINEAR)
        if is_compressed:
            pictures.append(compress(pixels, FORMATS[index % len(FORMATS)]))
            continue
        padding, is_bigendian = int(rng.choice(PADDINGS)), bool(rng.integers(2))
        pictures.append(encode(pixels, ENCODINGS[index % len(ENCODINGS)], padding, is_bigendian))
    return pictures


def encode(image: np.ndarray, encoding: str, padding: int = 0, is_bigendian: bool = False) -> Picture:
    """An RGB image of even size in one of the codec's encodings, each row followed by `padding` bytes."""
    height, width = image.shape[:2]
    rows = _rows(image, encoding, is_bigendian)
    rows = np.concatenate([rows, np.zeros((len(rows), padding), np.uint8)], axis=1)
    return Picture(encoding, width, height, rows.shape[1], rows.tobytes(), is_bigendian)


def _rows(image: np.ndarray, encoding: str, is_bigendian: bool) -> np.ndarray:
    """Bytes of each row, shape (rows, bytes)."""
    height, width = image.shape[:2]
    if encoding.endswith("16"):
        high = _rows(image, encoding.removesuffix("16") + "8", is_bigendian)
        return (high.astype(np.uint16) << 8).astype(">u2" if is_bigendian else "<u2").view(np.uint8)
    if encoding.startswith("bayer"):
        return _mosaic(image, encoding)
    if encoding in ("nv12", "nv21"):
        planes = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)  # Y, then quarter-size U and V
        u, v = planes[height:].reshape(2, height // 2, width // 2)
        chroma = np.stack((u, v) if encoding == "nv12" else (v, u), axis=2).reshape(height // 2, width)
        return np.concatenate([planes[:height], chroma])
    codes = {
        "rgb8": None, "bgr8": cv2.COLOR_RGB2BGR, "rgba8": cv2.COLOR_RGB2RGBA, "bgra8": cv2.COLOR_RGB2BGRA,
        "mono8": cv2.COLOR_RGB2GRAY, "yuv422": cv2.COLOR_RGB2YUV_UYVY, "uyvy": cv2.COLOR_RGB2YUV_UYVY,
        "yuv422_yuy2": cv2.COLOR_RGB2YUV_YUY2, "yuyv": cv2.COLOR_RGB2YUV_YUY2,
    }  # fmt: skip
    code = codes[encoding]
    return (image if code is None else cv2.cvtColor(image, code)).reshape(height, -1)


def _mosaic(image: np.ndarray, encoding: str) -> np.ndarray:
    """What a Bayer sensor with that order sees, shape (H, W)."""
    mosaic = np.empty(image.shape[:2], np.uint8)
    for index, site in enumerate(encoding.removeprefix("bayer_")[:4]):
        row, column = divmod(index, 2)
        mosaic[row::2, column::2] = image[row::2, column::2, "rgb".index(site)]
    return mosaic


FAULTS: dict[str, Callable[[Picture], Picture]] = {
    "no pixels": lambda good: replace(good, width=0, height=0, step=0, data=b""),
    "no data": lambda good: replace(good, data=b""),
    "truncated": lambda good: replace(good, data=good.data[: len(good.data) // 2]),
    "too long": lambda good: replace(good, data=good.data + bytes(good.step + 1)),
    "step too small": lambda good: replace(good, step=good.width // 2),
    "step too large": lambda good: replace(good, step=good.step + 1000),
    "huge width": lambda good: replace(good, width=2**32 - 2),
    "huge step": lambda good: replace(good, step=2**32 - 2),
    "unknown encoding": lambda good: replace(good, encoding="jpeg2000"),
    "no encoding": lambda good: replace(good, encoding=""),
    "odd width": lambda good: replace(good, encoding="yuv422", width=good.width - 1),
    "odd height": lambda good: replace(good, encoding="nv12", height=good.height - 1),
}


FORMATS = ("jpeg", "png", "grey jpeg", "grey png", "16-bit png", "rgba png")


def compress(image: np.ndarray, kind: str) -> Picture:
    """An RGB image as a file of one of the `FORMATS`."""
    height, width = image.shape[:2]
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if "grey" in kind or "16" in kind else cv2.COLOR_RGB2BGR)
    if kind.startswith("16"):
        pixels = pixels.astype(np.uint16) << 8
    elif kind.startswith("rgba"):
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
    _, data = cv2.imencode(".jpg" if kind.endswith("jpeg") else ".png", pixels)
    return Picture(f"rgb8; {kind} compressed bgr8", width, height, 0, data.tobytes(), is_compressed=True)


def _png(width: int, height: int) -> bytes:
    """A whole PNG of one chunk of pixel data that says it had so many."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _damaged(data: bytes) -> bytes:
    """A file with 64 bytes in its middle turned around: its header and end stay."""
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 64]) + data[middle + 64 :]


COMPRESSED_FAULTS: dict[str, Callable[[Picture], Picture]] = {
    "no file": lambda good: replace(good, data=b""),
    "cut off": lambda good: replace(good, data=good.data[: len(good.data) // 2]),
    "start alone": lambda good: replace(good, data=good.data[:20]),
    "noise": lambda good: replace(good, data=good.data[::-1]),
    "text": lambda good: replace(good, data=b"<html>404</html>" * 10),
    "damaged start": lambda good: replace(good, data=bytes(8) + good.data[8:]),
    "huge png": lambda good: replace(good, data=_png(100_000, 100_000)),
    "absurd png": lambda good: replace(good, data=_png(2**31 - 1, 2**31 - 1)),
    "empty png": lambda good: replace(good, data=_png(0, 0)),
    "damaged header": lambda good: replace(
        good, data=good.data[:8] + b"\xff" * 12 + good.data[20:], must_be_refused=False
    ),
    "damaged inside": lambda good: replace(good, data=_damaged(good.data), must_be_refused=False),
    "png without its pixels": lambda good: replace(good, data=_png(640, 480), must_be_refused=False),
}


def broken(good: Picture, fault: str) -> Picture:
    """A picture with one of the `FAULTS`, or `COMPRESSED_FAULTS` where it is compressed."""
    return replace((COMPRESSED_FAULTS if good.is_compressed else FAULTS)[fault](good), fault=fault)


class Stamps:
    """Stamps as a broken driver makes them: most are of now, the others anything.

    Args:
        rng: Decides.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._last: Stamp = (0, 0)

    def next(self) -> Stamp:
        """The stamp of the next image."""
        now, ns = divmod(time.time_ns(), 1_000_000_000)
        kinds: tuple[Stamp, ...] = (
            (0, 0),  # none
            self._last,  # repeated
            (now - 3600, ns),
            (now - 1, ns),
            (now, max(0, ns - 50_000_000)),  # a little late
            (now + 1, ns),
            (now + 3600, ns),
            (2**31 - 1, 999_999_999),  # the last one there is
            (-1, 0),
            (-(2**31), 0),
            (now, 2**32 - 1),  # no such nanosecond
        )
        self._last = kinds[self._rng.integers(len(kinds))] if self._rng.random() < 0.4 else (now, ns)
        return self._last
