"""Every encoding against an image whose colours are known; what does not add up is refused by name."""

from __future__ import annotations

import struct
import time
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from decoding import decode, decode_compressed

from semla_ros.errors import ImageError
from semla_ros.image_codec import ENCODINGS, ImageDecoder, check_pixels
from semla_ros.nodes.cv_bridge_codec import CvBridgeDecoder, choose_decoder, why_unsafe

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (90, 90, 90)}
BAYER_SITES = {"rggb": "RGGB", "bggr": "BGGR", "gbrg": "GBRG", "grbg": "GRBG"}


def encode(image: np.ndarray, encoding: str, *, padding: int = 0, is_bigendian: bool = False) -> dict:
    """An RGB picture of one colour per image as the fields of a message, written independently of the codec."""
    height, width = image.shape[:2]
    grey = image.mean(axis=2).astype(np.uint8)
    if encoding.endswith("16"):
        rows = np.frombuffer(encode(image, encoding.removesuffix("16") + "8")["data"], np.uint8)
        rows = (
            (rows.reshape(height, -1).astype(np.uint16) * 257).astype(">u2" if is_bigendian else "<u2").view(np.uint8)
        )
    elif encoding in ("rgb8", "bgr8", "rgba8", "bgra8"):
        pixels = image if encoding.startswith("rgb") else image[..., ::-1]
        if "a" in encoding:
            pixels = np.concatenate([pixels, np.full((height, width, 1), 7, np.uint8)], axis=2)
        rows = pixels.reshape(height, -1)
    elif encoding == "mono8":
        rows = grey
    elif encoding.startswith("bayer"):
        sites = BAYER_SITES[encoding.removeprefix("bayer_").rstrip("0123456789")]
        mosaic = np.zeros((height, width), np.uint8)
        for index, site in enumerate(sites):
            mosaic[index // 2 :: 2, index % 2 :: 2] = image[index // 2 :: 2, index % 2 :: 2, "RGB".index(site)]
        rows = mosaic
    else:
        red, green, blue = (image[..., channel].astype(float) for channel in range(3))
        luma = 16 + (65.738 * red + 129.057 * green + 25.064 * blue) / 256  # ITU-R BT.601, limited range
        u = 128 + (-37.945 * red - 74.494 * green + 112.439 * blue) / 256
        v = 128 + (112.439 * red - 94.154 * green - 18.285 * blue) / 256
        luma, u, v = (np.round(plane).astype(np.uint8) for plane in (luma, u, v))
        if encoding in ("nv12", "nv21"):
            chroma = np.stack([u, v] if encoding == "nv12" else [v, u], axis=2)[::2, ::2].reshape(height // 2, width)
            rows = np.concatenate([luma, chroma])
        else:
            chroma = np.where(np.arange(width) % 2 == 0, u, v)
            order = [chroma, luma] if encoding in ("yuv422", "uyvy") else [luma, chroma]
            rows = np.stack(order, axis=2).reshape(height, -1)
    rows = np.concatenate([rows, np.full((len(rows), padding), 0xAA, np.uint8)], axis=1)
    return {
        "encoding": encoding, "width": width, "height": height, "step": rows.shape[1], "data": rows.tobytes(),
        "is_bigendian": is_bigendian,
    }  # fmt: skip


@pytest.mark.parametrize("padding", [0, 5], ids=["tight", "padded"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_each_encoding_gives_the_colour_that_was_put_in(encoding: str, padding: int) -> None:
    for colour in COLOURS.values():
        image = np.full((8, 12, 3), colour, np.uint8)
        decoded = decode(**encode(image, encoding, padding=padding))
        expected = np.full_like(image, image.mean(axis=2)[0, 0]) if encoding.startswith("mono") else image
        assert decoded.shape == image.shape
        assert decoded.dtype == np.uint8
        assert np.abs(decoded.astype(int) - expected).max() <= 3, (encoding, colour)  # rounding of YUV


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name.endswith("16")])
def test_both_byte_orders_give_the_same_picture(encoding: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    little, big = (decode(**encode(image, encoding, padding=3, is_bigendian=order)) for order in (False, True))
    assert np.array_equal(little, big)


def test_rgb8_is_a_view_of_the_message_whatever_its_step() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    message = encode(image, "rgb8", padding=4)
    message["data"] = bytearray(message["data"])
    decoded = decode(**message)
    assert np.array_equal(decoded, image)
    message["data"][0] ^= 0xFF
    assert decoded[0, 0, 0] == image[0, 0, 0] ^ 0xFF


def test_the_padding_of_the_last_row_may_be_missing() -> None:
    message = encode(np.zeros((4, 4, 3), np.uint8), "bgr8", padding=4)
    message["data"] = message["data"][:-4]
    assert decode(**message).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoding": "32FC1"}, ["unknown encoding '32FC1'", "rgb8"]),
        ({"encoding": ""}, ["unknown encoding ''"]),
        ({"width": 0}, ["0x4", "at least 1"]),
        ({"height": 0}, ["4x0", "at least 1"]),
        ({"step": 11}, ["step 11", "at least 12 bytes"]),
        ({"step": 13}, ["truncated", "52", "48"]),
        ({"data": b""}, ["truncated", "got 0"]),
        ({"data": bytes(49)}, ["too long", "expected 48", "got 49"]),
        ({"encoding": "nv12", "height": 3}, ["nv12", "4x3", "2x2"]),
        ({"encoding": "yuv422", "width": 3}, ["yuv422", "2x1"]),
        ({"encoding": "bayer_rggb8", "height": 1}, ["bayer_rggb8", "2x2"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_does_not_add_up_is_refused_by_name(changes: dict, words: list[str]) -> None:
    message = encode(np.zeros((4, 4, 3), np.uint8), "rgb8") | changes
    with pytest.raises(ImageError) as caught:
        decode(**message)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".jpg", 12)])
def test_compressed_images_come_back_as_rgb(suffix: str, tolerance: int) -> None:
    image = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    _, encoded = cv2.imencode(suffix, image[..., ::-1])
    decoded = decode_compressed(encoded.tobytes())
    assert np.abs(decoded.astype(int) - image).max() <= tolerance


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_file_is_refused_rather_than_filled_with_grey(suffix: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    encoded = cv2.imencode(suffix, picture)[1].tobytes()
    for data in (encoded[: len(encoded) // 2], encoded[:10], b"", b"\0" * 100):
        with pytest.raises(ImageError, match="compressed image of"):
            decode_compressed(data, "bgr8; jpeg compressed bgr8")


def bomb(width: int, height: int) -> bytes:
    """A PNG of one grey, small enough for a message and as large as it says."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row, packer = bytes(1 + width), zlib.compressobj()
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_what_has_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = bomb(16_000, 16_000)
    assert len(picture) < 300_000
    monkeypatch.setattr(cv2, "imdecode", None)
    for decoded in (
        lambda: decode_compressed(picture, "png"),
        lambda: decode(encoding="rgb8", width=16_000, height=16_000, step=48_000, data=b""),
        lambda: ImageDecoder()(SimpleNamespace(format="png", data=picture)),
        lambda: decode(encoding="mono8", width=2**32 - 1, height=2**32 - 1, step=2**32 - 1, data=b""),
    ):
        started_s = time.perf_counter()
        with pytest.raises(ImageError, match=r"\d+x\d+ pixels are more than max_image_pixels \(50000000\)"):
            decoded()
        assert time.perf_counter() - started_s < 0.5


def test_8k_is_taken_by_default_and_the_limit_is_the_largest_that_is() -> None:
    check_pixels("8K", 8192, 4320)
    image = np.zeros((6, 8, 3), np.uint8)
    for name in (".png", ".jpg"):
        encoded = cv2.imencode(name, image)[1].tobytes()
        assert decode_compressed(encoded, name, max_pixels=48).shape == image.shape
        with pytest.raises(ImageError, match="8x6 pixels are more than max_image_pixels"):
            decode_compressed(encoded, name, max_pixels=47)


@pytest.mark.parametrize("name", [".png", ".jpg"])
def test_whatever_stands_before_the_size_a_damaged_header_is_an_error_and_a_whole_one_is_read(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    encoded = cv2.imencode(name, image)[1].tobytes()
    if name == ".jpg":  # more than the part of a file that is looked at first
        encoded = encoded[:2] + (b"\xff\xe1\xff\xff" + bytes(0xFFFD)) * 3 + encoded[2:]
    assert decode_compressed(encoded).shape == image.shape
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(encoded)
        for place in rng.integers(0, 40, 3):
            damaged[place] = rng.integers(0, 256)
        try:
            decoded = decode_compressed(bytes(damaged), max_pixels=10_000)
        except ImageError:
            continue
        assert decoded.shape[0] * decoded.shape[1] <= 10_000


def test_cv_bridge_is_refused_where_it_would_crash_or_is_missing() -> None:
    assert choose_decoder("never", 9)[1] == "built in"
    reason = why_unsafe()
    if reason:
        assert choose_decoder("auto", 9)[1] == "built in"
        with pytest.raises(Exception, match="cv_bridge is set to 'always', but"):
            choose_decoder("always", 9)
    else:  # both exist: they must agree
        from sensor_msgs.msg import Image

        by_cv_bridge = choose_decoder("auto", 96)[0]
        assert isinstance(by_cv_bridge, CvBridgeDecoder)
        with pytest.raises(ImageError, match="max_image_pixels"):
            choose_decoder("auto", 95)[0](
                Image(**{**encode(np.zeros((8, 12, 3), np.uint8), "rgb8"), "is_bigendian": 0})
            )
        image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
        for encoding in ("rgb8", "bgr8", "rgba8", "bgra8", "mono8"):
            message = Image(**{**encode(image, encoding), "is_bigendian": 0})
            assert np.abs(by_cv_bridge(message).astype(int) - ImageDecoder()(message)).max() <= 1, encoding


def test_numpy_2_alone_is_reason_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(np, "__version__", "2.1.0")
    assert "crashes with numpy 2.1.0" in why_unsafe()
    monkeypatch.setattr(np, "__version__", "1.26.4")
    assert why_unsafe() == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv_bridge.boost" else object())
    assert "cv_bridge.boost is missing" in why_unsafe()
