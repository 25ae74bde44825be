"""What cameras and folders bring, against the table in docs/topics.md; and the reader that all of it goes through."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import field_images
import numpy as np
import pytest
from field_images import GREY, READ, REFUSED, SCENE, WARNED, Kind, encode, low, pillow, raw
from PIL import Image

import semla_ros.image_bytes
from semla_ros.codec_warnings import caught_warnings
from semla_ros.errors import ImageError
from semla_ros.image_bytes import read_values
from semla_ros.image_codec import ImageDecoder
from semla_ros.image_files import label_values, read_image, read_labels
from semla_ros.image_samples import BitDepth

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    field_images.jpegs, field_images.pngs, field_images.raw_messages, field_images.compressed_messages,
    field_images.files,
)  # fmt: skip
KINDS = [kind for source in SOURCES for kind in source()]
TABLE = field_images.table(ROOT / "docs" / "topics.md")


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semla_ros.image_bytes, "_told", set())


def read(kind: Kind, folder: Path) -> np.ndarray:
    """As a camera's message where it is one, else as a file and as a message that holds it, which must not differ."""
    if not isinstance(kind.message, bytes):
        return ImageDecoder()(kind.message)
    path = folder / "picture"
    path.write_bytes(kind.message)
    return read_image(path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.row}: {kind.name}")
def test_every_kind_becomes_what_the_table_says_and_prints_nothing(
    kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    answer, sentence = TABLE[kind.row]
    assert answer == kind.answer
    if kind.answer == REFUSED:
        with pytest.raises(ImageError) as caught:
            read(kind, tmp_path)
        said = str(caught.value)
        assert "\n" not in said
    else:
        picture = read(kind, tmp_path)
        said = " ".join(record.getMessage() for record in caplog.records)
        assert bool(said) == (kind.answer == WARNED), said
        assert kind.expected is not None
        assert picture.shape == kind.expected.shape
        assert picture.dtype == np.uint8
        assert np.abs(picture.astype(int) - kind.expected).mean() <= kind.tolerance
    assert kind.words in said
    sentences = sentence.strip("`").split("`, `")  # "…" stands for what differs
    assert any(re.search(re.escape(text).replace("…", ".*"), said) for text in sentences), said
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_what_an_older_opencv_reads_otherwise_or_not_at_all_is_none_of_its_business(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = field_images.turned(kind, 6) if kind == "WEBP" else pillow(Image.fromarray(GREY), kind)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("OpenCV was asked"))
    upright = read_values(data, "a file", is_upright=True)
    assert np.array_equal(upright, SCENE if kind == "WEBP" else field_images.as_rgb(GREY))
    assert read_values(data, "a message").shape[:2] == (SCENE.shape[1::-1] if kind == "WEBP" else GREY.shape)


def test_the_table_speaks_of_no_kind_that_is_not_made_here() -> None:
    assert {row for row, (answer, _) in TABLE.items() if answer in (READ, WARNED, REFUSED)} == {
        kind.row for kind in KINDS
    }


def test_a_jpeg_or_png_changed_anywhere_is_read_or_refused_by_name_and_never_prints(
    capfd: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(5)
    wholes = [kind.message for kind in KINDS if kind.name in ("1 zeros", "progressive", "restart marks", "one byte")]
    wholes = [data for data in wholes if data[:2] == b"\xff\xd8" or data[:4] == b"\x89PNG"]
    refused: list[str] = []
    for _ in range(600):
        data = bytearray(wholes[rng.integers(len(wholes))])
        place, count = int(rng.integers(len(data))), int(rng.integers(1, 400))
        change = rng.integers(4)
        if change == 0:
            data[place] ^= 1 << rng.integers(8)
        elif change == 1:
            del data[place : place + count]
        elif change == 2:
            data[place : place + count] = bytes(len(data[place : place + count]))
        else:
            data[place:] = b"\xff\xd9"
        try:
            values = read_values(bytes(data), "changed", 10_000)
        except ImageError as error:
            refused.append(str(error))
        else:
            assert values.shape[0] * values.shape[1] <= 10_000
    assert len(refused) > 300
    assert all(text.startswith("changed: ") for text in refused)
    assert capfd.readouterr().err == ""


def test_a_warning_of_a_codec_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    stray = next(kind.message for kind in KINDS if kind.row.startswith("JPEG with filling"))
    for _ in range(5):
        read_values(stray, "frame")
    assert [record.getMessage() for record in caplog.records] == ["frame: bytes of no meaning before the end mark"]


def test_only_what_codecs_print_is_caught_and_other_threads_and_processes_keep_their_stderr(
    capfd: pytest.CaptureFixture[str],
) -> None:
    libc = ctypes.CDLL(None)

    def print_through_c(text: bytes) -> None:
        libc.fputs(text, ctypes.c_void_p.in_dll(libc, "stderr"))

    with caught_warnings() as lines:
        print_through_c(b"Corrupt JPEG data: premature end of data segment\n")
        thread = threading.Thread(target=print_through_c, args=(b"[INFO] of another thread\n",))
        thread.start()
        thread.join()
        command = [sys.executable, "-c", "import sys; print('of a process', file=sys.stderr)"]
        subprocess.run(command, check=True)
    assert lines == ["Corrupt JPEG data: premature end of data segment"]
    assert capfd.readouterr().err == "of a process\n[INFO] of another thread\n"
    print_through_c(b"later\n")
    libc.fflush(None)
    assert capfd.readouterr().err == "later\n"


def test_a_process_forked_while_another_thread_decodes_has_its_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    is_caught, may_end = threading.Event(), threading.Event()

    def catch() -> None:
        with caught_warnings():
            is_caught.set()
            may_end.wait(0.3)

    thread = threading.Thread(target=catch)
    thread.start()
    is_caught.wait()
    child = os.fork()  # waits for the block to end
    if child == 0:
        libc = ctypes.CDLL(None)
        libc.fputs(b"of a fork\n", ctypes.c_void_p.in_dll(libc, "stderr"))
        os._exit(0)
    os.waitpid(child, 0)
    thread.join()
    assert capfd.readouterr().err == "of a fork\n"


# Bits in use


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_range_in_use_is_found_and_a_dark_image_does_not_decide_for_good(bits: int) -> None:
    depth = BitDepth()
    dark = np.full((40, 60), 3, np.uint16)
    assert depth.to_8_bit(dark).max() == 3
    assert np.array_equal(depth.to_8_bit(low(GREY, bits)), GREY)
    assert depth.bits == bits
    depth.to_8_bit(dark)
    assert depth.bits == bits  # no picture gets brighter because the scene got darker


def test_a_dead_pixel_does_not_decide_and_saturates() -> None:
    depth, image = BitDepth(), low(scene := field_images.scene(100, 100)[..., 0], 12)
    image[50, 50] = 65535
    read_as = depth.to_8_bit(image)
    assert depth.bits == 12
    assert read_as[50, 50] == 255
    scene[50, 50] = 255
    assert np.array_equal(read_as, scene)


@pytest.mark.parametrize("height", [40, 512, 1024, 2048])
def test_every_colour_of_a_mosaic_is_looked_at(height: int) -> None:
    mosaic = np.zeros((height, height), np.uint16)
    mosaic[1::2, 0::2] = 4000  # the green of every other row alone is bright
    depth = BitDepth()
    depth.to_8_bit(mosaic)
    assert depth.bits == 12


def test_bits_that_are_given_count_whatever_the_images_hold(caplog: pytest.LogCaptureFixture) -> None:
    decoder = ImageDecoder(bits=16)
    assert np.array_equal(decoder(raw("mono16", low(GREY, 12)))[..., 0], low(GREY, 12) >> 8)
    assert decoder.read_as == "mono16, 16 of 16 bits"
    decoder = ImageDecoder(bits=12)
    assert np.array_equal(decoder(raw("mono16", low(GREY, 12)))[..., 0], GREY)
    assert decoder.read_as == "mono16, 12 of 16 bits"
    assert decoder.assumptions == []
    assert not caplog.records


def test_a_camera_says_once_per_growth_what_its_samples_use(caplog: pytest.LogCaptureFixture) -> None:
    decoder = ImageDecoder()
    for bits in (10, 10, 12, 10, 12, 16, 12):
        decoder(raw("mono16", low(GREY, bits)))
    assert [record.getMessage()[:26] for record in caplog.records] == [
        "16-bit samples use 10 bits", "16-bit samples use 12 bits",
    ]  # fmt: skip
    assert decoder.read_as == "mono16, 16 of 16 bits"
    assert decoder.assumptions == []


# Encodings that leave something open


def test_assume_encoding_settles_what_is_open_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    decoder = ImageDecoder(assume_encoding="rgb8")
    assert np.array_equal(decoder(raw("8UC3", SCENE)), SCENE)
    assert np.array_equal(decoder(raw("", SCENE)), SCENE)
    assert np.array_equal(decoder(raw("bgr8", SCENE)), SCENE[..., ::-1])  # has a name of its own
    with pytest.raises(ImageError, match="8UC1 has 1 bytes per pixel, assume_encoding rgb8 3"):
        decoder(raw("8UC1", GREY))
    decoder = ImageDecoder(assume_encoding="mono16")
    assert np.array_equal(decoder(raw("16UC1", GREY.astype(np.uint16) * 257))[..., 0], GREY)
    packed = field_images.compressed("16UC1; png compressed ", encode(".png", GREY.astype(np.uint16) * 257))
    assert np.array_equal(decoder(packed)[..., 0], GREY)
    with pytest.raises(ImageError, match="may be depth"):
        decoder(field_images.compressed("16UC1; compressedDepth png", packed.data))
    decoder = ImageDecoder(assume_encoding="bayer_rggb8")
    for message in (
        raw("8UC1", field_images.mosaic("rggb")),
        field_images.compressed("8UC1; png compressed", encode(".png", field_images.mosaic("rggb"))),
    ):
        assert np.abs(decoder(message).astype(int) - SCENE).mean() < 6
    assert not caplog.records
    assert decoder.assumptions == []


def test_an_assumption_is_logged_once_and_stays_to_be_told(caplog: pytest.LogCaptureFixture) -> None:
    decoder = ImageDecoder()
    for _ in range(3):
        decoder(raw("8UC3", SCENE[..., ::-1]))
    assert len(caplog.records) == 1
    assert decoder.assumptions == ["encoding '8UC3' is read as bgr8; set assume_encoding to what it is"]
    assert decoder.read_as == "bgr8"


# Files


def test_there_is_one_reader_of_pictures() -> None:
    found = {
        path.relative_to(ROOT / "semla_ros").as_posix()
        for path in (ROOT / "semla_ros").rglob("*.py")
        if re.search(r"imread|imdecode|Image\.open|ImageFile\b", path.read_text(encoding="utf-8"))
    }
    assert found == {"image_bytes.py"}


def test_orientation_counts_for_files_and_not_for_messages(tmp_path: Path) -> None:
    turned = field_images.turned("JPEG", 6)
    path = tmp_path / "turned.jpg"
    path.write_bytes(turned)
    assert read_image(path).shape == SCENE.shape
    assert ImageDecoder().decode_compressed(turned, "jpeg").shape == (SCENE.shape[1], SCENE.shape[0], 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_too_many_pixels_are_refused_before_anything_is_decoded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"large.{kind}"
    options = {"compression": "tiff_deflate"} if kind == "TIFF" else {}
    Image.new("1", (20_000, 10_000)).save(path, kind, **options)
    monkeypatch.setattr(cv2, "imdecode", None)
    monkeypatch.setattr(Image, "open", None)
    for reads in (read_image, read_labels):
        with pytest.raises(ImageError, match=r"20000x10000 pixels are more than max_image_pixels \(50000000\)"):
            reads(path)


def test_labels_are_values_and_not_colours_and_never_of_a_jpeg(tmp_path: Path) -> None:
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8) % 5
    palette = Image.fromarray(ids, mode="P")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    for name, data in {
        "palette": pillow(palette, "PNG"),
        "grey": pillow(Image.fromarray(ids), "PNG"),
        "16 bits": encode(".png", ids.astype(np.uint16)),
        "tiff": pillow(Image.fromarray(ids), "TIFF"),
        "padded": pillow(Image.fromarray(ids), "PNG") + bytes(100),
    }.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(data)
        assert np.array_equal(read_labels(path), ids), name
    one_bit = pillow(Image.fromarray(ids % 2 == 1), "PNG")
    assert np.array_equal(label_values(one_bit, "labels"), ids % 2)
    with pytest.raises(ImageError, match="labels must be lossless"):
        label_values(encode(".jpg", ids), "labels")
    with pytest.raises(ImageError, match="labels: cut off"):
        label_values(one_bit[:-20], "labels")


def test_a_file_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        read_image(tmp_path / "missing.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "."):
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(tmp_path / name)


def test_a_folder_of_12_bit_files_is_spoken_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for index in range(3):
        path = tmp_path / f"{index}.png"
        path.write_bytes(encode(".png", low(GREY, 12)))
        assert np.array_equal(read_image(path)[..., 0], GREY)
    assert len(caplog.records) == 1


def test_opencv_is_silent_meanwhile_wherever_a_release_has_its_log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [3]
    monkeypatch.setattr(cv2, "setLogLevel", lambda level: levels.append(level) or levels[-2], raising=False)  # 4.11
    with caught_warnings():
        assert levels == [3, 0]
    assert levels == [3, 0, 3]
