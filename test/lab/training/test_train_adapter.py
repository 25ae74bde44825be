"""An adapter trained here has the published layout, fuses, and helps on what it was trained for."""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.cli import main
from semla_ros.commands import train as train_command
from semla_ros.lab.training.adapter_training import published_adapter_training
from semla_ros.lab.training.recipe import Recipe
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.domains import BENCHMARK, split_seed
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.resources import share_folder
from semla_ros.segmentation.checkpoint import load_model
from semla_ros.segmentation.targets import lora_signature

RECIPE = """
adapter: {loop: {steps: 4, batch_size: 2, learning_rate: 0.01, warmup_steps: 1, bfloat16: false}}
"""

STOPPED = """
import os, sys
from contextlib import contextmanager
import torch
from semla_ros.cli import main
from semla_ros.commands import train

@contextmanager
def stopping(title, total):
    yield None, lambda step, loss: os.kill(os.getpid(), int(sys.argv[1])) if step == 1 else None

torch.set_num_threads(1)  # as here: the count decides the last bits
train.training_progress = stopping
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fog")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for index in range(6):
        scene = BENCHMARK["old-town-fog"].scene(split_seed("train", 5000 + index)).render()
        cv2.imwrite(str(folder / "images" / f"{index}.png"), scene.image[..., ::-1])
        cv2.imwrite(str(folder / "labels" / f"{index}.png"), scene.mask)
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def options(pictures: Path, library: Path, *more: str, name: str = "mist") -> list[str]:
    return [
        "train", "adapter", "--name", name, "--images", str(pictures / "images"), "--labels", str(pictures / "labels"),
        "--classes", str(pictures / "classes.txt"), "--library", str(library),
        "--recipe", str(pictures / "recipe.yaml"), "--device", "cpu", *more,
    ]  # fmt: skip


def train(pictures: Path, library: Path, *more: str, name: str = "mist") -> int:
    return main(options(pictures, library, *more, name=name))


def test_the_command_writes_the_published_layout(pictures: Path, tmp_path: Path) -> None:
    assert train(pictures, tmp_path / "library") == 0
    folder = tmp_path / "library" / "mist"
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "mist_statistics.npz"}
    base = load_model(share_folder() / "models" / "semla-tiny")
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (8, 16, "LORA")
    assert sorted(settings["target_modules"]) == sorted(base.model.lora_targets())
    library = AdapterLibrary.load(tmp_path / "library", targets=lora_signature(base.model))
    layers = library.adapter("mist").layers
    assert set(layers) == set(base.model.lora_targets())
    assert any(bool(b.abs().max() > 0) for _, b in layers.values())
    assert library.centroids.shape[0] == 1
    assert library.entry("mist").images == 6
    assert 0 < library.spread[0] < np.inf  # without it a scene far away would not fade to the base model


def test_a_recipe_may_train_a_part_of_the_targets_and_names_one_where_it_misses(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    visual = "sem_seg_head.predictor.clip_model.visual."
    recipe.write_text(RECIPE.replace("adapter: {", f"adapter: {{targets: ['{visual}'], "), encoding="utf-8")
    assert train(pictures, tmp_path / "library", "--recipe", str(recipe)) == 0
    base = load_model(share_folder() / "models" / "semla-tiny")
    expected = {path for path in base.model.lora_targets() if path.startswith(visual)}
    settings = json.loads((tmp_path / "library" / "mist" / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(settings["target_modules"]) == expected
    library = AdapterLibrary.load(tmp_path / "library", targets=lora_signature(base.model))
    assert set(library.adapter("mist").layers) == expected
    recipe.write_text(RECIPE.replace("adapter: {", "adapter: {targets: [visual], "), encoding="utf-8")
    assert train(pictures, tmp_path / "library", "--recipe", str(recipe), name="haze") == 2
    assert "visual: no target of the model begins so; one of them is sem_seg_head." in capsys.readouterr().err


def test_an_existing_adapter_is_not_overwritten(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mist").mkdir()
    assert train(pictures, tmp_path) == 2
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "mist").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_goes_on_to_the_same_adapter(
    pictures: Path, tmp_path: Path, number: signal.Signals
) -> None:
    # In a process of its own: where tests run in several, theirs may not be the main thread.
    command = [sys.executable, "-c", STOPPED, str(int(number)), *options(pictures, tmp_path / "library")]
    assert subprocess.run(command, check=False).returncode == 130
    assert [path.name for path in (tmp_path / "library").iterdir()] == [".mist.training"]
    assert train(pictures, tmp_path / "library", "--seed", "4") == 2  # a state of another run
    assert train(pictures, tmp_path / "library") == 0
    assert {path.name for path in (tmp_path / "library").iterdir()} == {"mist", "library.yaml"}
    assert train(pictures, tmp_path / "whole") == 0
    for name in ("adapter_model.safetensors", "mist_statistics.npz"):
        assert (tmp_path / "library/mist" / name).read_bytes() == (tmp_path / "whole/mist" / name).read_bytes()


@pytest.mark.parametrize("recipe", [True, False])
def test_what_the_command_line_names_counts_before_the_recipe(pictures: Path, recipe: bool) -> None:
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    options = ["adapter", "--name", "mist", "--library", "library", "--steps", "7", "--batch-size", "3", "--seed", "5"]
    arguments = parser.parse_args([*options, *(["--recipe", str(pictures / "recipe.yaml")] if recipe else [])])
    loop = train_command.adapter_config(arguments).loop
    assert (loop.steps, loop.batch_size, loop.seed) == (7, 3, 5)
    assert loop.learning_rate == (0.01 if recipe else 1e-4)


@pytest.mark.parametrize(("name", "words"), [("../mist", "plain folder name"), ("", "plain folder name")])
def test_a_name_that_leaves_the_library_is_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    library = tmp_path / "library"
    assert train(pictures, library, name=name) == 2
    assert words in capsys.readouterr().err
    assert not library.exists() or list(library.iterdir()) == []


def test_a_class_the_model_has_no_word_for_is_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "classes.txt"
    other.write_text("road\nhelicopter\n", encoding="utf-8")
    assert train(pictures, tmp_path / "library", "--classes", str(other)) == 2
    assert "helicopter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("segmenter: {loop: {steps: 1}}", "there is no part 'adapter' in it"),
        ("adapter: {rank: 4}", "adapter: 'loop' is missing"),
        ("seed: 1.5\nadapter: {loop: {steps: 1}}", "'seed'"),
        ("adapter: {loop: {steps: 0}}", "'steps' and 'batch_size' must be >= 1"),
        ("adapter: {loop: {steps: 1}, ranks: 4}", "adapter: unknown setting 'ranks'"),
        ("- 1", "there is no part 'adapter' in it"),
        ("a: [", "recipe.yaml"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_clear_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, words: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert train(pictures, tmp_path / "library", "--recipe", str(tmp_path / "recipe.yaml")) == 2
    assert words in capsys.readouterr().err


def test_the_shipped_recipe_is_that_of_the_shipped_model() -> None:
    recipe = Recipe.load(share_folder() / "config" / "training.yaml")
    loaded = load_model(share_folder() / "models" / "semla-tiny")
    assert loaded.model.config == recipe.untrained_model(len(loaded.tokenizer)).config
    tower = SceneEncoder.load(share_folder() / "models" / "semla-tiny").tower.config
    made = ("patch", "visual_width", "visual_layers", "native_grid", "working_grid", "embed_dim", "pool")
    assert all(getattr(tower, name) == getattr(recipe.scene_tower, name) for name in made)


def test_the_default_settings_are_the_published_ones() -> None:
    config = published_adapter_training()
    assert (config.rank, config.alpha, config.loss, config.pooling) == (8, 16, "sigmoid", 2)
    assert (config.loop.learning_rate, config.loop.weight_decay, config.loop.gradient_clip) == (1e-4, 1e-4, 0.01)
    assert config.augment.crop_size == 384


def test_shipped_adapters_are_stored_whole_and_small() -> None:
    total = 0
    for path in [*(share_folder() / "models").rglob("*"), *(share_folder() / "adapters").rglob("*")]:
        if path.is_file():
            total += path.stat().st_size
            assert path.suffix in {".safetensors", ".json", ".npz", ".yaml", ".md"}, path
    assert 5e6 < total <= 16 * 2**20
    folder = share_folder() / "adapters/semla-tiny/old-town-fog"
    statistics = np.load(folder / "old-town-fog_statistics.npz", allow_pickle=False)
    assert statistics["train_average_embedding"].dtype == np.float32
    assert torch.isfinite(torch.from_numpy(statistics["train_average_embedding"])).all()
