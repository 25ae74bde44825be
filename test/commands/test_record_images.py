"""Folders of images become recordings that `semla replay` reads and scores."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semla_ros.cli import main
from semla_ros.errors import ConfigError
from semla_ros.image_files import read_image
from semla_ros.lab.bags.frames import FrameOptions, FrameSource, ReplayFrame
from semla_ros.lab.bags.image_bag import exif_stamp_ns, name_stamp_ns
from semla_ros.lab.bags.reader import BagReader

CLASSES = ("road", "sky", "car")
STEP_NS = 200_000_000


def picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def record(out: Path, *options: object) -> list[ReplayFrame]:
    assert main(["record-images", *map(str, options), "--out", str(out)]) == 0
    with BagReader(out) as bag:
        return list(FrameSource(bag, FrameOptions(), CLASSES).frames())


def refused(capsys: pytest.CaptureFixture[str], out: Path, *options: object) -> str:
    assert main(["record-images", *map(str, options), "--out", str(out)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_folders_follow_each_other_as_named_stretches_in_natural_order(tmp_path: Path) -> None:
    order = [("day", 2), ("day", 10), ("dusk", 1), ("dusk", 9)]
    for folder, number in order:
        save(tmp_path / folder / f"frame{number}.png", picture(number))
    frames = record(tmp_path / "bag", tmp_path / "day", tmp_path / "dusk", "--rate", 5)
    assert [frame.segment for frame in frames] == [folder for folder, _ in order]
    assert np.diff([frame.frame.stamp_ns for frame in frames]).tolist() == [STEP_NS] * 3
    for frame, (_, number) in zip(frames, order, strict=True):
        assert np.array_equal(frame.frame.image, picture(number))
        assert frame.truth is None


@pytest.mark.parametrize("transport", ["png", "raw"])
def test_what_is_recorded_is_what_the_one_reader_reads(tmp_path: Path, transport: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    turned = save(tmp_path / "images" / "0.jpg", picture(0), exif=exif, quality=95)
    deep = save(tmp_path / "images" / "1.png", picture(1)[..., 0].astype(np.uint16) * 16)
    frames = record(tmp_path / "bag", tmp_path / "images", "--transport", transport)
    for frame, path in zip(frames, (turned, deep), strict=True):
        assert np.array_equal(frame.frame.image, read_image(path))
    assert frames[0].frame.image.shape == (32, 24, 3)


def test_labels_become_ground_truth_where_there_are_any(tmp_path: Path) -> None:
    names = {7: "sky", 8: "car", 9: "void"}
    (tmp_path / "map.yaml").write_text("\n".join(f"{value}: {name}" for value, name in names.items()))
    values = np.array([7, 8, 9], np.uint8)[np.arange(24 * 32).reshape(24, 32) % 3]
    for number in range(3):
        save(tmp_path / "images" / "a" / f"{number}_leftImg8bit.png", picture(number))
    save(tmp_path / "labels" / "a" / "1_gtFine_labelIds.png", values)
    options = ["--labels", tmp_path / "labels", "--label-map", tmp_path / "map.yaml"]
    frames = record(tmp_path / "bag", tmp_path / "images", *options)
    expected = np.full(256, 255)
    expected[[7, 8]] = 1, 2  # by name, in the vocabulary of the reader
    assert [frame.truth is None for frame in frames] == [True, False, True]
    assert np.array_equal(frames[1].truth, expected[values])


def test_an_image_that_cannot_be_used_is_named_and_the_others_are_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    for number in range(4):
        save(tmp_path / "images" / f"170000000{number}.png", picture(number))
        save(tmp_path / "labels" / f"170000000{number}.png", np.full((24, 32), number % 2, np.uint8))
    (tmp_path / "images" / "1700000000.png").write_bytes(b"no image")
    (tmp_path / "labels" / "1700000002.png").write_bytes(b"no labels")
    save(tmp_path / "images" / "thumbnail.png", picture(9))
    labels = ["--labels", str(tmp_path / "labels"), "--classes", str(tmp_path / "classes.txt")]
    for stamps, used in (("rate", (1, 3, 9)), ("names", (1, 3))):
        bag = tmp_path / stamps
        assert main(["record-images", str(tmp_path / "images"), *labels, "--stamps", stamps, "--out", str(bag)]) == 1
        said = capsys.readouterr()
        assert "1700000000.png: not an image file" in said.err
        assert "1700000002.png" in said.err
        assert ("thumbnail.png: its name holds no time" in said.err) == (stamps == "names")
        assert said.err.count("left out") == 5 - len(used)
        assert f"{len(used)} images over" in said.out
        with BagReader(bag) as reader:
            frames = list(FrameSource(reader, FrameOptions(), CLASSES).frames())
        assert len(frames) == len(used)
        assert all(np.array_equal(frame.frame.image, picture(n)) for frame, n in zip(frames, used, strict=True))
        assert [frame.truth is None for frame in frames] == [n == 9 for n in used]


def test_where_no_image_can_be_used_there_is_no_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    assert main(["record-images", str(tmp_path / "images"), "--out", str(tmp_path / "bag")]) == 2
    left_out, error = capsys.readouterr().err.splitlines()
    assert "0.png: not an image file" in left_out
    assert error.endswith("none of its images can be used")
    assert not (tmp_path / "bag").exists()


def test_a_benchmarks_domains_are_recorded_with_their_labels(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("""
classes: {own: [road, sky, car]}
encodings: {own: {classes: own, first: 1, unlabelled: "0"}}
domains:
  home: {role: source, family: day, layouts: {files: &files {
    images: "home/{name}.png", labels: "gt/{name}.png", encoding: own}}}
  dusk: {layouts: {files: {<<: *files, images: "dusk/{name}.png", labels: "gt2/{name}.png"}}}
""")
    for domain, labels, value in (("home", "gt", 1), ("dusk", "gt2", 3)):
        for number in range(3):
            save(tmp_path / domain / f"{number}.png", picture(number + value))
            save(tmp_path / labels / f"{number}.png", np.full((24, 32), value, np.uint8))
    options = ["--benchmark", tmp_path / "own.yaml", "--data", tmp_path, "--images", 2]
    frames = record(tmp_path / "bag", *options, "--domains", "home", "dusk", "home")
    assert [frame.segment for frame in frames] == ["day", "day", "dusk", "dusk", "day", "day"]
    assert [int(frame.truth.mean()) for frame in frames if frame.truth is not None] == [0, 0, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("1305031102.175304.png", 1305031102.175304),
        ("left_1700000000123456789.png", 1700000000.123456789),
        ("1700000000123.jpg", 1700000000.123),
        ("cam0_1700000000123456.png", 1700000000.123456),
        ("IMG_20231114_221320.jpg", 1700000000),
        ("2023-11-14 22-13-20.5.png", 1700000000.5),
        ("drive7_2023-11-14T22:13:20_250.png", 1700000000.25),
    ],
)
def test_a_name_tells_the_time(name: str, seconds: float) -> None:
    assert name_stamp_ns(Path(name)) == pytest.approx(seconds * 1e9, abs=300)


@pytest.mark.parametrize("name", ["000123.png", "frame.png", "20239914_221320.png", "12345678901234567.png"])
def test_a_name_without_a_time_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"holds no time|is no date"):
        name_stamp_ns(Path(name))


def test_stamps_of_names_and_exif_order_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, second in ((0, 12), (1, 10), (2, 12), (3, 11)):
        exif = Image.Exif()
        exif[0x8769] = {36867: f"2023:11:14 22:13:{second}"}
        save(tmp_path / "images" / f"{1_700_000_000 - number}.png", picture(number), exif=exif)
    frames = record(tmp_path / "exif", tmp_path / "images", "--stamps", "exif")
    order = [np.flatnonzero([np.array_equal(f.frame.image, picture(n)) for n in range(4)])[0] for f in frames]
    assert order == [1, 3, 2, 0]  # the two of one second in the order of their names, over that second
    assert np.diff([frame.frame.stamp_ns for frame in frames]).tolist() == [10**9, 10**9, 5 * 10**8]
    frames = record(tmp_path / "names", tmp_path / "images", "--stamps", "names")
    assert np.array_equal(frames[0].frame.image, picture(3))
    save(tmp_path / "images" / "a" / "1700000000.png", picture(4))
    assert "have the same stamp" in refused(capsys, tmp_path / "x", tmp_path / "images", "--stamps", "names")
    assert "EXIF data say no time" in refused(capsys, tmp_path / "x", tmp_path / "images" / "a", "--stamps", "exif")
    with pytest.raises(ConfigError, match="say no time"):
        exif_stamp_ns(tmp_path / "images" / "a" / "1700000000.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give the folders of the images, or --benchmark"),
        (["nowhere"], "images folder nowhere does not exist"),
        (["IMAGES", "--rate", "0"], "--rate must be above 0"),
        (["IMAGES", "--labels", "IMAGES"], "--labels needs --classes or --label-map"),
        (["IMAGES", "--labels", "a", "b", "--classes", "c"], "--labels names 2 folders for 1 of images"),
        (["--benchmark", "camvid"], "--benchmark needs --data and --domains"),
        (["IMAGES", "--camera", "a/b"], "cannot be part of a topic name"),
    ],
)
def test_bad_options_are_one_clear_line_and_leave_no_bag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    save(tmp_path / "images" / "0.png", picture(0))
    options = [str(tmp_path / "images") if option == "IMAGES" else option for option in options]
    assert words in refused(capsys, tmp_path / "bag", *options)
    assert not (tmp_path / "bag").exists()
