"""Benchmark files: what ships, what a user may write, and what is said where a file or the data do not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semla_ros.cli import main
from semla_ros.errors import ConfigError, DatasetError
from semla_ros.lab.evaluation.datasets.benchmark import DiskBenchmark, load_benchmark

OWN = """
title: my cameras
licence: mine
classes:
  street: [road, sky, car]
  yard: [ground, wall]
encodings:
  ids: {classes: street, what: ids 7 to 9, unlabelled: "0-6, 255", values: {7: road, 8: sky, 9: car, 10: car}}
  yard: {classes: yard}
domains:
  home: {role: source, family: day, layouts: {files: &files {
    images: "images/{split}/{name}.*", labels: "labels/{split}/{name}_ids.png", encoding: ids}}}
  fog: {family: fog, layouts: {files: {<<: *files, images: "fog/{name}.jpg", labels: "fog/{name}.png"}}}
  yard: {role: unseen, layouts: {files: {images: "yard/{name}.jpg", labels: "yard/{name}.png", encoding: yard}}}
"""


def save(path: Path, values: np.ndarray | int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (8, 12, 3) if path.suffix == ".jpg" else (8, 12)
    Image.fromarray(np.full(shape, values, np.uint8) if isinstance(values, int) else values).save(path)
    return path


@pytest.fixture
def own(tmp_path: Path) -> DiskBenchmark:
    (tmp_path / "own.yaml").write_text(OWN)
    return load_benchmark(str(tmp_path / "own.yaml"), tmp_path / "data")


def test_roles_families_and_one_class_list_for_each_domain(own: DiskBenchmark) -> None:
    assert (own.name, own.source_names, own.domain_names, own.unseen_names) == ("own", ("home",), ("fog",), ("yard",))
    assert own.class_names("fog") == ("road", "sky", "car")
    assert own.class_names("yard") == ("ground", "wall")
    assert own.are_relatives("home", "home")
    assert not own.are_relatives("home", "fog")
    assert own.family("an adapter of another library") == "an adapter of another library"


def test_values_become_the_classes_that_the_file_gives_them(own: DiskBenchmark) -> None:
    values = np.arange(96, dtype=np.uint8).reshape(8, 12) % 11
    save(own.root / "images/val/0.jpg", 5)
    save(own.root / "labels/val/0_ids.png", values)
    labels = own.open("home").read(0, 0).labels
    expected = np.full(256, 255)
    expected[[7, 8, 9, 10]] = 0, 1, 2, 2
    assert np.array_equal(labels, expected[values])
    save(own.root / "labels/val/0_ids.png", values + 1)
    with pytest.raises(DatasetError, match="value 11 is none of the ids 7 to 9"):
        own.open("home").read(0, 0)


def test_the_same_file_names_in_each_drive_keep_their_own_labels(own: DiskBenchmark) -> None:
    for value, drive in enumerate(("north/am", "north", "south"), start=7):
        save(own.root / f"images/val/{drive}/000000.jpg", 10 * value)
        save(own.root / f"labels/val/{drive}/000000_ids.png", value)
    images = own.open("home")
    pairs = {
        (round(float(one.image.mean()) / 10), int(one.labels[0, 0])) for one in (images.read(0, i) for i in range(3))
    }
    assert pairs == {(7, 0), (8, 1), (9, 2)}


def test_a_star_for_a_folder_is_the_same_folder_for_an_image_and_its_labels(tmp_path: Path) -> None:
    patterns = 'images: "*/cam_*/{name}.*", labels: "*/gt_*/{name}_*.png"'
    old = 'images: "images/{split}/{name}.*", labels: "labels/{split}/{name}_ids.png"'
    assert old in OWN
    (tmp_path / "own.yaml").write_text(OWN.replace(old, patterns))
    root = tmp_path / "data"
    for value, (drive, camera) in enumerate((("north", "left"), ("north", "right"), ("south", "left")), start=7):
        save(root / drive / f"cam_{camera}" / "000.jpg", 10 * value)
        save(root / drive / f"gt_{camera}" / "000_ids.png", value)
    images = load_benchmark(str(tmp_path / "own.yaml"), root).open("home")
    seen = {(round(float(images.image(index).mean()) / 10), int(images.mask(index)[0, 0])) for index in range(3)}
    assert seen == {(7, 0), (8, 1), (9, 2)}
    (root / "south" / "gt_left" / "000_ids.png").rename(root / "south" / "gt_left" / "001_ids.png")
    with pytest.raises(DatasetError, match=r"cam_left/000\.jpg is there, .*south/gt_left/000_\*\.png is not"):
        load_benchmark(str(tmp_path / "own.yaml"), root).open("home")


def test_what_is_missing_and_what_is_there_twice_is_named(own: DiskBenchmark) -> None:
    for name in ("a", "b"):
        save(own.root / f"images/val/{name}.jpg", 0)
        save(own.root / f"labels/val/{name}_ids.png", 7)
    assert len(own.open("home").paths) == 2
    save(own.root / "images/val/c.jpg", 0)
    with pytest.raises(DatasetError, match=r"val/c\.jpg is there, .*c_ids\.png is not"):
        replace(own).open("home")
    (own.root / "images/val/c.jpg").unlink()
    save(own.root / "labels/val/d_ids.png", 7)
    with pytest.raises(DatasetError, match=r"d_ids\.png is there, .*val/d\.\* is not"):
        replace(own).open("home")
    (own.root / "labels/val/d_ids.png").unlink()
    save(own.root / "images/val/b.png", 0)
    with pytest.raises(DatasetError, match=r"b\.jpg and .*b\.png have the same name: remove all but one"):
        replace(own).open("home")
    with pytest.raises(DatasetError, match="2 domains cannot be read") as caught:
        replace(own).check(["home", "fog"])
    assert "'--domains' runs the others" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "titel:", "unknown setting 'titel'"),
        ("classes: yard}", "classes: garden}", "encoding 'yard': unknown class list 'garden'; did you mean 'yard'?"),
        ("9: car,", "9: truck,", "class 'truck' is not in the class list 'street': road, sky, car"),
        ('"0-6, 255"', '"0-x"', "'unlabelled' must be numbers and ranges"),
        ("role: source", "role: target", "'role' must be one of domain, source, unseen"),
        ("encoding: yard}", "encoding: garden}", "domain 'yard': unknown encoding 'garden'; did you mean 'yard'?"),
        ("images/{split}/{name}.*", "images/{weather}/{name}.*", "domain 'home': '{weather}' is none of name, split"),
        (
            "fog/{name}.jpg",
            "*/{name}.jpg",
            "domain 'fog': each '*' that stands for a folder must be in 'images' and in",
        ),
        ("fog/{name}.jpg", "fog/*.jpg", "domain 'fog': 'images' and 'labels' must hold {name} once"),
        ("family: fog,", "family: fog, val_share: 1.5,", "domain 'fog': 'val_share' must be"),
        ("domains:", "root: /data\ndomains:", "unknown setting 'root'"),
        (OWN[OWN.index("  home:") :], "  home: {}", "domain 'home': 'layouts' must name at least one"),
        (OWN, "- home", "expected a mapping of settings"),
        (OWN, "a: [", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_is_refused_in_one_clear_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in OWN
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_benchmark(str(path), tmp_path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_layouts_of_different_class_lists_in_one_domain_are_refused(tmp_path: Path) -> None:
    other = '{files: {<<: *files}, other: {images: "a/{name}.jpg", labels: "b/{name}.png", encoding: yard}}'
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace('{files: {<<: *files, images: "fog/{name}.jpg", labels: "fog/{name}.png"}}', other))
    with pytest.raises(ConfigError, match="domain 'fog': its layouts must have one class list"):
        load_benchmark(str(path), tmp_path)


def test_an_unknown_benchmark_names_those_that_ship(capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "--benchmark", "cityscape", "--data", "."]) == 2
    assert "known: world, camvid, idd_lite, semla20, or the path of a file" in capsys.readouterr().err


def test_camvids_drives_are_told_apart_and_the_end_of_a_drive_is_kept_for_validation(tmp_path: Path) -> None:
    for split, drive, count in (
        ("train", "0016E5", 3),
        ("val", "0016E5", 2),
        ("train", "0001TP", 8),
        ("test", "Seq05VD", 4),
    ):
        for index in range(count):
            save(tmp_path / split / f"{drive}_{index:04}.jpg", 0)
            save(tmp_path / f"{split}annot" / f"{drive}_{index:04}.png", index % 12)
    val, train = (load_benchmark("camvid", tmp_path, split) for split in ("val", "train"))
    assert (val.source_names, val.unseen_names, val.domain_names) == (("day-b",), ("day-a",), ("day-c", "dusk"))
    counts = {name: [len(one.open(name).paths) for one in (train, val)] for name in ("day-b", "day-c", "dusk")}
    assert counts == {"day-b": [3, 2], "day-c": [3, 1], "dusk": [6, 2]}
    assert [path.image.stem for path in val.open("dusk").paths] == ["0001TP_0006", "0001TP_0007"]
    assert (load_benchmark("camvid", tmp_path).open("dusk").read(0, 1).labels == 7).all()
    with pytest.raises(DatasetError, match=r"domain 'day-a' .* wants a split 'train'; not found"):
        train.open("day-a")


def test_void_of_camvid_and_of_idd_lite_is_not_scored(tmp_path: Path) -> None:
    save(tmp_path / "val/0016E5_0.jpg", 0)
    save(tmp_path / "valannot/0016E5_0.png", np.array([[0, 10, 11]], np.uint8).repeat(8, 0).repeat(4, 1))
    assert set(np.unique(load_benchmark("camvid", tmp_path).open("day-b").read(0, 0).labels)) == {0, 10, 255}
    save(tmp_path / "leftImg8bit/val/0/024541_image.jpg", 0)
    save(tmp_path / "gtFine/val/0/024541_label.png", np.array([[0, 6, 255]], np.uint8).repeat(8, 0).repeat(4, 1))
    lite = load_benchmark("idd_lite", tmp_path)
    assert set(np.unique(lite.open("idd-lite").read(0, 0).labels)) == {0, 6, 255}
    assert lite.class_names("idd-lite")[6] == "sky"
