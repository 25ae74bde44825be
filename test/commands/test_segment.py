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
    tiny_library_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, library, out = str(tiny_model_folder), str(tiny_library_folder), tmp_path / "out"
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
        (["{picture}", "--classes", "unicorn"], "unicorn"),
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
    arguments = [item.format(picture=picture, text=text) for item in arguments]
    folders = {"--model": tiny_model_folder, "--library": tiny_library_folder, "--out": tmp_path / "out"}
    for option, folder in folders.items():
        if option not in arguments:
            arguments += [option, str(folder)]
    assert main(["segment", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()
