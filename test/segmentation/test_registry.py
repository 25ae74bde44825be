"""Any kind of model goes the whole way: SED, and a toy that another package brings by entry point."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_sed import write_sed
from tiny_parts import CLASSES, write_library
from toy_package import install_toy, write_toy

from semla_ros.cli import main
from semla_ros.errors import CheckpointError, ConfigError
from semla_ros.lab.bags.writer import BagWriter
from semla_ros.segmentation.checkpoint import load_model

RECIPE = "adapter: {loop: {steps: 3, batch_size: 2, learning_rate: 0.01, warmup_steps: 1, bfloat16: false}}"


@pytest.fixture(params=["sed", "toy"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if kind == "toy":
        monkeypatch.syspath_prepend(str(install_toy(tmp_path / "site")))
    return (write_sed if kind == "sed" else write_toy)(tmp_path / "models" / kind)


@pytest.fixture
def library(model: Path, tmp_path: Path) -> Path:
    folder = write_library(tmp_path / "library", load_model(model).model)
    (folder / "library.yaml").write_text("retrieval: {fade_out_of_library: false}")  # noise is strange to it
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index in range(4):
        labels = rng.integers(0, len(CLASSES), (4, 6)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        image = np.clip(labels[..., None] * 60 + rng.integers(0, 40, (64, 96, 3)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), image)
        cv2.imwrite(str(tmp_path / "labels" / f"{index}.png"), labels)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def segment(model: Path, library: Path, pictures: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict:
    images = [str(pictures / "images" / f"{index}.png") for index in range(2)]
    options = ["--model", str(model), "--library", str(library), "--out", str(pictures / "out"), "--json"]
    assert main(["segment", *images, *options, *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_images_are_segmented_with_adapters_that_act(
    model: Path, library: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = []
    for scale in (1.0, -1.0):
        for file in library.glob("*/adapter_model.safetensors"):
            tensors = {name: item * scale if "lora_B" in name else item for name, item in load_file(file).items()}
            save_file(tensors, file)
        summary = segment(model, library, pictures, capsys)
        assert all(record["mix"] for record in summary["images"])
        masks.append([cv2.imread(record["mask"], cv2.IMREAD_UNCHANGED) for record in summary["images"]])
    assert all(mask.shape == (64, 96) for pair in masks for mask in pair)
    assert any((first != second).any() for first, second in zip(*masks, strict=True))


def test_another_vocabulary_is_encoded_by_the_model_s_own_prompts(
    model: Path, library: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = segment(model, library, pictures, capsys, "--classes", "bus,sky")
    assert summary["classes"] == ["bus", "sky"]


def test_an_adapter_is_trained_and_serves(
    model: Path, library: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--images", str(pictures / "images"), "--labels", str(pictures / "labels"), "--model", str(model),
        "--classes", str(pictures / "classes.txt"), "--recipe", str(pictures / "recipe.yaml"), "--device", "cpu",
        "--trust-labels",  # which are noise to a model of noise
    ]  # fmt: skip
    assert main(["train", "adapter", "--name", "mist", "--library", str(library), *options]) == 0
    capsys.readouterr()
    trained = load_file(library / "mist" / "adapter_model.safetensors")
    assert any(item.abs().max() > 0 for name, item in trained.items() if "lora_B" in name)
    summary = segment(model, library, pictures, capsys)
    assert "mist" in summary["images"][0]["distances"]


def test_a_recording_is_replayed_twice_with_the_same_masks(
    model: Path, library: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    with BagWriter(pictures / "bag") as bag:
        for index in range(4):
            bag.image("/camera/image", rng.integers(0, 256, (48, 64, 3), np.uint8), (index + 1) * 10**9, "camera")
    digests = []
    for _ in range(2):
        options = ["--model", str(model), "--library", str(library), "--out", str(pictures / "replay")]
        assert main(["replay", str(pictures / "bag"), *options, "--no-bag", "--no-report", "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        digests.append({name: entry["mask_sha256"] for name, entry in summary["variants"].items()})
        shutil.rmtree(pictures / "replay")
    assert digests[0] == digests[1]


def test_an_adapter_of_another_backbone_is_refused_in_one_clear_line(
    model: Path, tiny_library_folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(pictures / "images" / "0.png")
    assert main(["segment", image, "--model", str(model), "--library", str(tiny_library_folder)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "another base model" in line


def test_sliding_windows_are_refused_where_a_model_has_none(
    model: Path, library: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(model), "--library", str(library), "--inference", "sliding"]
    assert main(["segment", str(pictures / "images" / "0.png"), *options]) == 2
    assert "'whole', not 'sliding'" in capsys.readouterr().err


def test_pooling_and_grid_are_refused_where_a_model_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install_toy(tmp_path / "site")))
    toy = load_model(write_toy(tmp_path / "toy")).model
    assert toy.trainable_copy(1).kind == "toy"
    with pytest.raises(ConfigError, match="no class attention"):
        toy.trainable_copy(2)
    with pytest.raises(ConfigError, match="leave both out"):
        toy.regridded((2, 2), 0)


def test_tensors_alone_tell_a_kind_that_another_package_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install_toy(tmp_path / "site")))
    folder = write_toy(tmp_path / "toy")
    tensors = load_file(folder / "segmenter.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "plain.pth")
    assert load_model(tmp_path / "plain.pth").model.kind == "toy"


def test_a_kind_that_no_package_brings_is_named(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toy")
    with pytest.raises(CheckpointError, match="no installed package brings models of the kind 'toy'"):
        load_model(folder)


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install_toy(tmp_path / "site", module="no_such_module:Toy")))
    with pytest.raises(CheckpointError, match="of the kind 'toy' cannot be imported: No module named"):
        load_model(write_toy(tmp_path / "toy"))


def test_no_adapter_is_trained_into_a_library_of_another_model(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = pictures / "of-another"
    library.mkdir()
    (library / "library.yaml").write_text("base: {id: somebody-else}", encoding="utf-8")
    options = ["--images", str(pictures / "images"), "--labels", str(pictures / "labels"), "--device", "cpu"]
    more = ["--classes", str(pictures / "classes.txt"), "--model", str(model), "--library", str(library)]
    assert main(["train", "adapter", "--name", "mist", *options, *more]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "made for the base model with id 'somebody-else', not '" in line
    assert not (library / "mist").exists()


def refused_commands(model: str, library: str, pictures: Path) -> dict[str, list[str]]:
    """Commands that would bring a library's adapters and another model together."""
    adapter = str(Path(library) / "fog")
    named = ["--model", model, "--library", library]
    return {
        "segment": ["segment", str(pictures / "images" / "0.png"), *named],
        "replay": ["replay", str(pictures / "bag"), *named, "--out", str(pictures / "replay"), "--no-report"],
        "evaluate": ["evaluate", *named, "--images", "1", "--jobs", "1", "--domains", "old-town-fog"],
        "library check": ["library", "check", library, "--model", model],
        "library add": ["library", "add", adapter, "--library", str(pictures / "own"), "--model", model],
        "library import": ["library", "import", library, "--model", model],
    }


@pytest.mark.parametrize("command", refused_commands("", "", Path()))
def test_each_command_refuses_adapters_of_another_backbone(
    command: str, model: Path, library_copy: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BagWriter(pictures / "bag") as bag:
        bag.image("/camera/image", np.zeros((48, 64, 3), np.uint8), 10**9, "camera")
    assert main(refused_commands(str(model), str(library_copy), pictures)[command]) != 0
    said = "".join(capsys.readouterr())
    assert "another base model" in said
    assert "Traceback" not in said
