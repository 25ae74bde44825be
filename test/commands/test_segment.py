from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semla_ros.cli import main


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def test_an_image_gets_a_mask_an_overlay_and_a_record(
    picture: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    library_copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, library, out = str(tiny_model_folder), str(library_copy), tmp_path / "out"
    (library_copy / "library.yaml").write_text("retrieval: {fade_out_of_library: false}")  # noise is strange to it
    options = ["--model", model, "--library", library, "--out", str(out)]
    assert main(["segment", str(picture), *options, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    record = summary["images"][0]
    mask = np.array(Image.open(record["mask"]))
    assert mask.shape == (40, 60)
    assert mask.dtype == np.uint8
    assert mask.max() < len(summary["classes"])
    assert Image.open(record["overlay"]).size == (60, 40)
    assert sum(record["mix"].values()) + record["base_weight"] == pytest.approx(1)
    assert record["mix"]
    assert set(record["mix"]) == set(record["distances"]) == {"day", "fog", "night", "snow"}
    assert list(record["distances"].values()) == sorted(record["distances"].values())
    assert record["out_of_library"] is True
    assert sum(record["share_of_pixels"].values()) == pytest.approx(1, abs=1e-3)
    assert summary["peak_memory_mib"] > 10
    assert main(["segment", str(picture), str(picture), *options, "--classes", "sky", "car"]) == 0
    printed = capsys.readouterr().out
    assert "street.png" in printed
    assert "peak memory" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "street-2_mask.png",
        "street-2_overlay.png",
        "street_mask.png",
        "street_overlay.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "missing.png: no such file"),
        (["{text}"], "not an image file"),
        (["{picture}", "--library", "/nowhere"], "/nowhere"),
        (["{picture}", "--classes", "unicorn"], "published models know any word: 'semla fetch catseg-l"),
        (["{picture}", "--model", "catsegl"], "did you mean 'catseg-l'?"),
        (["{picture}", "--model", "catseg-b"], "'semla fetch catseg-b' downloads it"),
        (["{picture}", "--model", "nothing-like-it"], "known: catseg-b, catseg-l, semla-tiny"),
        (["{picture}", "--model", "{cut}"], "cut.safetensors: not a whole safetensors file"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    picture: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_library_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tiny_model_folder / "segmenter.safetensors").read_bytes()[:5000])
    arguments = [item.format(picture=picture, text=text, cut=cut) for item in arguments]
    folders = {"--model": tiny_model_folder, "--library": tiny_library_folder, "--out": tmp_path / "out"}
    for option, folder in folders.items():
        if option not in arguments:
            arguments += [option, str(folder)]
    assert main(["segment", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_one_bad_file_costs_its_own_mask_and_the_exit_status_tells(
    picture: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_library_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, cut = tmp_path / "out", tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:-40])
    options = ["--model", str(tiny_model_folder), "--library", str(tiny_library_folder), "--out", str(out), "--json"]
    assert main(["segment", str(cut), str(picture), str(tmp_path / "missing.png"), *options]) == 1
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert [record["image"] for record in summary["images"]] == [str(picture)]
    assert [record["image"] for record in summary["failed"]] == [str(cut), str(tmp_path / "missing.png")]
    lines = printed.err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"semla segment: {cut}: cut off")
    assert lines[1] == f"semla segment: {tmp_path / 'missing.png'}: no such file"
    assert sorted(path.name for path in out.iterdir()) == ["street_mask.png", "street_overlay.png"]
    assert main(["segment", str(cut), str(cut), *options]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_no_output_replaces_another_one_or_an_image(
    picture: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_library_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["x.png", "x.png", "x-2.png", "other/x.png", "x.bmp", "x_mask.png", "y.png", "y_overlay.png"]
    (tmp_path / "other").mkdir()
    for name in set(names):
        Image.open(picture).save(tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in names}
    images = [str(tmp_path / name) for name in names]
    model, library = str(tiny_model_folder), str(tiny_library_folder)
    assert main(["segment", *images, "--model", model, "--library", library, "--out", str(tmp_path), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["images"]
    assert [record["image"] for record in records] == images
    outputs = [Path(record[kind]) for record in records for kind in ("mask", "overlay")]
    assert len(set(outputs)) == 2 * len(names)
    assert all(path.is_file() for path in outputs)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    assert Path(records[2]["mask"]).name == "x-2_mask.png"  # a name of its own stays


@pytest.mark.parametrize("classes", [["sky,car"], ["sky", "car"], ["sky, car"], ["sky,", "car"]])
def test_classes_are_separated_by_commas_or_spaces(
    classes: list[str],
    picture: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_library_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--model", str(tiny_model_folder), "--library", str(tiny_library_folder), "--out", str(tmp_path / "out")]
    assert main(["segment", str(picture), *options, "--json", "--classes", *classes]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["sky", "car"]
