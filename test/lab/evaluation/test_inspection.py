"""`semla benchmark check`: what is there, and what is missing or doubtful, before hours are spent."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semla_ros.cli import main

FILE = """
title: my cameras
licence: ours
classes: {street: [road, sky, car], yard: [ground]}
encodings: {ids: {classes: street, unlabelled: "9, 255"}, yard: {classes: yard}}
domains:
  home: {role: source, val_share: 0.25, layouts: {files: {
    images: "home/{name}.jpg", labels: "home/{name}.png", encoding: ids}}}
  yard: {role: unseen, layouts: {files: {images: "yard/{name}.jpg", labels: "yard/{name}.png", encoding: yard}}}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text(FILE)
    rng = np.random.default_rng(0)
    for domain, count in (("home", 8), ("yard", 2)):
        (tmp_path / domain).mkdir()
        for index in range(count):
            write(tmp_path / domain / f"{index}.jpg", rng.integers(0, 256, (20, 30, 3)))
            labels = np.zeros((20, 30))
            labels[:5, : index + 1] = 0 if domain == "yard" else 1
            labels[5:10] = 255 if domain == "yard" else 9
            write(tmp_path / domain / f"{index}.png", labels)
    write(tmp_path / "yard" / "1.png", np.where(np.arange(30) < 7, 0, 255) * np.ones((20, 1)))
    return tmp_path


def write(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(path)


def check(root: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict]:
    status = main(["benchmark", "check", str(root / "own.yaml"), "--data", str(root), "--json", *more])
    return status, json.loads(capsys.readouterr().out)["domains"]


def test_a_sound_set_is_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, domains = check(root, capsys)
    assert status == 0
    home = domains["home"]
    assert (home["role"], home["images"], home["sizes"]) == ("source", {"train": 6, "val": 2}, {"30x20": 8})
    assert home["unlabelled"] == pytest.approx(0.25)
    sky = 5 * sum(range(1, 9))
    assert home["shares"] == pytest.approx({"road": 1 - sky / (8 * 450), "sky": sky / (8 * 450), "car": 0}, abs=1e-6)
    assert domains["yard"]["shares"] == {"ground": 1}


@pytest.mark.parametrize(
    ("change", "domain", "words"),
    [
        (lambda root: (root / "home/3.png").unlink(), "home", ["home/3.jpg is there, ", "home/3.png is not"]),
        (lambda root: (root / "home/3.jpg").unlink(), "home", ["home/3.png is there, ", "home/3.jpg is not"]),
        (lambda root: write(root / "home/3.png", np.zeros((30, 20))), "home", ["home/3.png is (20, 30)", "(30, 20)"]),
        (lambda root: write(root / "home/3.png", np.full((20, 30), 5)), "home", ["home/3.png: value 5 is none"]),
        (lambda root: write(root / "home/3.png", np.full((20, 30), 9)), "home", ["home/3.png holds no class at all"]),
        (lambda root: (root / "home/3.jpg").write_bytes(b"JPEG"), "home", ["home/3.jpg: not an image file"]),
        (
            lambda root: (root / "home/3.png").write_bytes((root / "home/2.png").read_bytes()),
            "home",
            ["home/3.png is byte for byte ", "home/2.png: is it another image's?"],
        ),
        (
            lambda root: (root / "own.yaml").write_text(FILE.replace("val_share: 0.25, ", "")),
            "home",
            ["8 images both trained and validated on"],
        ),
        (lambda root: (root / "yard").rename(root / "garden"), "yard", ["there is no val image", "yard/{name}.jpg"]),
    ],
)  # fmt: skip
def test_what_is_missing_or_doubtful_is_one_line_of_its_domain(
    root: Path, capsys: pytest.CaptureFixture[str], change: object, domain: str, words: list[str]
) -> None:
    change(root)  # type: ignore[operator]
    status, domains = check(root, capsys)
    assert status == 2
    (line,) = domains[domain]["problems"]
    assert all(word in line for word in words), line
    assert not domains["yard" if domain == "home" else "home"]["problems"]


def test_the_table_and_the_contact_sheet_show_every_domain(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = root / "out" / "sheet.png"
    options = ["--data", str(root), "--out", str(sheet), "--images", "3"]
    assert main(["benchmark", "check", str(root / "own.yaml"), *options]) == 0
    shown = capsys.readouterr().out
    assert "licence: ours" in shown
    assert "every pair is there and sound" in shown
    picture = np.asarray(Image.open(sheet))
    # Road is drawn over the lower half of home's images, where nothing but noise was.
    road = np.abs(picture.astype(int) - (0.7 * np.array([128, 64, 128]) + 0.3 * 127)).max(axis=2) < 45
    assert road.mean() > 0.05


def test_an_unknown_domain_names_those_there_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "check", str(root / "own.yaml"), "--data", str(root), "--domains", "fog"]) == 2
    assert "unknown domain 'fog' of benchmark 'own'; known: home, yard" in capsys.readouterr().err
