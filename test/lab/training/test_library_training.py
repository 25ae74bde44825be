"""From a benchmark file to a library: it goes on where it was stopped, and refuses what it was not begun with."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from semla_ros.cli import main
from semla_ros.config import SemlaConfig
from semla_ros.lab.evaluation.datasets.benchmark import load_benchmark
from semla_ros.lab.training.library_training import LibraryRecipe, library_run
from semla_ros.library.manifest import read_manifest
from semla_ros.pipeline_parts import load_parts
from semla_ros.resources import find_model, share_folder

SEED = int(os.environ.get("SEMLA_TEST_SEED", "0"))
DRIVES = {"home": 6, "evening": 6, "fog": 5, "elsewhere": 3}
BENCHMARK = """
licence: CC0
classes: {street: [sky, road, helicopter, car]}
encodings: {street: {classes: street, unlabelled: "255"}}
domains:
  home: {role: source, family: day, val_share: 0.3, words: {drive: home}, layouts: {folder: &folder {
    images: "{drive}/images/{name}.png", labels: "{drive}/labels/{name}.png", encoding: street,
    splits: {train: train, val: train}}}}
  evening: {val_share: 0.3, words: {drive: evening}, layouts: {folder: *folder}}
  fog: {val_share: 0.3, words: {drive: fog}, layouts: {folder: *folder}}
  elsewhere: {role: unseen, words: {drive: elsewhere}, layouts: {folder: {<<: *folder, splits: {val: train}}}}
"""
RECIPE = """
seed: 3
grid: [4, 4]
window: 2
shares: {segmenter: 0.5, scene_encoder: 0.1, adapter: 0.2}
validation_images: 1
validations: 2
segmenter: {loop: &loop {steps: 20, batch_size: 2, learning_rate: 1.0e-3, warmup_steps: 1, average: 0.5}}
scene_encoder: {loop: {<<: *loop, average: 0.0}}
adapter: {loop: {<<: *loop, steps: 8}}
retrieval: {top_k: 2, temperature: 0.03}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured bands with a box, lit by drive."""
    root = tmp_path_factory.mktemp("drives")
    rng = np.random.default_rng(5)
    for number, (drive, count) in enumerate(DRIVES.items()):
        for kind in ("images", "labels"):
            (root / drive / kind).mkdir(parents=True)
        for index in range(count):
            mask = np.repeat(np.repeat([[0], [1]], 32, 0), 64, 1).astype(np.uint8)
            left = int(rng.integers(40))
            mask[30:44, left : left + 20] = 3
            mask[:6, :6] = 2
            picture = np.array([[150, 180, 220], [90, 90, 95], [0, 0, 0], [200, 40, 40]])[mask] * (1 - 0.2 * number)
            picture = (picture + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(root / drive / "images" / f"{index}.png")
            Image.fromarray(mask).save(root / drive / "labels" / f"{index}.png")
    (root / "benchmark.yaml").write_text(BENCHMARK, encoding="utf-8")
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return root


def options(data: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "library", "--benchmark", str(data / "benchmark.yaml"), "--data", str(data), "--out", str(out),
        "--recipe", str(data / "recipe.yaml"), "--device", "cpu", *more,
    ]  # fmt: skip


def start(data: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "semla_ros.cli", *options(data, out, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def contents(out: Path) -> dict[str, bytes]:
    files = [path for folder in ("model", "library") for path in (out / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that was trained in one go."""
    out = tmp_path_factory.mktemp("whole") / "my"
    process = start(data, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return out


def test_model_and_library_fit_each_other_and_say_what_they_are(trained: Path) -> None:
    out = trained
    parts = load_parts(SemlaConfig(model=str(out / "model"), library=str(out / "library")))
    assert parts.library.names == ("evening", "fog")
    assert parts.class_names == ("sky", "road", "car")
    assert parts.model.config.working_resolution == (64, 64)
    manifest = parts.library.manifest
    assert parts.library.base_statistics is not None
    assert manifest.base_domain is not None
    assert manifest.base_domain.images == 4
    assert (manifest.base_domain.family, manifest.domain) == ("day", "camera")
    assert parts.retrieval.top_k == 2
    assert {entry.licence for entry in manifest.adapters.values()} == {"CC0"}
    assert "home (benchmark); images: 4" in (out / "model" / "README.md").read_text(encoding="utf-8")
    assert "for fog" in (out / "library" / "fog" / "CARD.md").read_text(encoding="utf-8")


def test_every_file_is_readable_for_others(trained: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in trained.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


def test_what_is_done_is_kept(data: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained
    before = contents(out)
    assert main(options(data, out)) == 0
    assert contents(out) == before
    told = capsys.readouterr().out
    assert "no word for helicopter" in told
    for name, variants in (("home", "zero-shot"), ("evening", "oracle"), ("elsewhere", "semla")):
        assert any(name in line and variants in line for line in told.splitlines())


def test_a_run_that_was_interrupted_five_times_gives_the_same_to_the_last_bit(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    out, chance = tmp_path / "my", random.Random(SEED)
    numbers = [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    for number in chance.sample(numbers, 5):
        process = start(data, out, "--jobs", str(chance.randint(1, 2)))
        assert process.stdout is not None
        told = (line for line in process.stdout if b": step" in line or b"adapter '" in line)
        for _ in range(chance.randint(1, 4)):
            assert next(told, b""), "it ended before it could be interrupted"
        process.send_signal(number)
        process.communicate()
        assert process.returncode in (-number, 130)
    process = start(data, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert contents(out) == contents(trained)


def test_a_folder_that_was_begun_with_something_else_is_refused_by_name(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained
    other = tmp_path / "recipe.yaml"
    other.write_text(RECIPE.replace("batch_size: 2", "batch_size: 3"), encoding="utf-8")
    assert main(options(data, out, "--recipe", str(other))) == 2
    assert "begun with another recipe" in capsys.readouterr().err
    assert main(options(data, out, "--minutes", "5")) == 2
    assert "another number of minutes (0)" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(data, copy, copy_function=shutil.copyfile)  # its files are new, their contents are not
    assert main(options(copy, out)) == 0
    labels = copy / "fog" / "labels" / "0.png"
    Image.fromarray(np.asarray(Image.open(labels))[:, ::-1].copy()).save(labels)
    assert main(options(copy, out)) == 2
    assert "another set of images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("adapters", "run the stages 'segmenter' and 'scene_encoder' first"),
        ("library", "run the stages 'segmenter' and 'scene_encoder' first"),
        ("adapter", "unknown stage 'adapter'"),
    ],
)
def test_a_stage_without_what_it_stands_on_says_what_to_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, words: str
) -> None:
    assert main(options(data, tmp_path / "my", "--stage", stage)) == 2
    assert words in capsys.readouterr().err


def test_minutes_become_steps_by_the_shares_of_the_stages(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "my"
    assert main(options(data, out, "--minutes", "0.05", "--stage", "segmenter")) == 0
    plan = yaml.safe_load((out / "work" / "plan.json").read_text(encoding="utf-8"))
    assert plan["minutes"] == 0.05
    assert set(plan["steps"]) == {"segmenter", "scene_encoder", "adapter"}
    assert all(count >= 1 for count in plan["steps"].values())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("role: source", "role: unseen", "no domain has the role 'source'"),
        (
            "[sky, road, helicopter, car]",
            "[gondola, raft, helicopter, car]",
            "has words for 1 of its classes",
        ),
    ],
)
def test_a_benchmark_that_nothing_can_be_trained_on_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    other = tmp_path / "benchmark.yaml"
    other.write_text(BENCHMARK.replace(old, new), encoding="utf-8")
    assert main(options(data, tmp_path / "my", "--benchmark", str(other), "--base")) == 2
    assert words in capsys.readouterr().err


def test_images_that_are_trained_on_score_nothing(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "benchmark.yaml"
    other.write_text(BENCHMARK.replace("fog: {val_share: 0.3, ", "fog: {"), encoding="utf-8")
    recipe = LibraryRecipe.load(data / "recipe.yaml")
    benchmark = load_benchmark(str(other), data, "train")
    run = library_run(recipe, benchmark, find_model("semla-tiny"), tmp_path / "my", device=torch.device("cpu"))
    assert run.scored("fog") == []
    assert run.scored("evening") == [0, 1]
    assert run.scored("elsewhere", most=2) == [0, 2]


def test_a_base_model_that_is_not_to_be_trained_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "my"
    assert main(options(data, out, "--no-base", "--jobs", "1")) == 0
    assert not (out / "model").exists()
    parts = load_parts(SemlaConfig(model="semla-tiny", library=str(out / "library")))
    shipped = read_manifest(share_folder() / "adapters" / "semla-tiny")
    assert (parts.library.manifest.base, parts.library.manifest.encoder) == (shipped.base, shipped.encoder)
    assert parts.library.names == ("evening", "fog")
