"""An adapter from a domain of a benchmark file: trained on its train split, measured on its val as evaluate does."""

import json
import re
from pathlib import Path

import cv2
import pytest

from semla_ros.cli import main
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.domains import BENCHMARK, split_seed

RECIPE = "adapter: {loop: {steps: 2, batch_size: 1, learning_rate: 0.01, warmup_steps: 1, bfloat16: false}}"
FILE = f"""
classes: {{own: [{", ".join(CLASS_NAMES)}, bicyclist]}}
encodings: {{own: {{classes: own, first: 10}}}}
domains:
  suburb: {{val_share: 0.4, layouts: {{files: {{
    images: "images/{{name}}.png", labels: "labels/{{name}}.png", encoding: own}}}}}}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(5):
        scene = BENCHMARK["suburb-clear"].scene(split_seed("train", 8000 + index)).render()
        for folder, picture in (("images", scene.image[..., ::-1]), ("labels", scene.mask + 10)):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{index}.png"), picture)
    (tmp_path / "own.yaml").write_text(FILE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def train(root: Path, *more: str) -> int:
    return main([
        "train", "adapter", "--benchmark", str(root / "own.yaml"), "--data", str(root), "--domain", "suburb",
        "--library", str(root / "library"), "--recipe", str(root / "recipe.yaml"), "--device", "cpu", *more,
    ])  # fmt: skip


def test_the_validation_is_that_of_evaluate_on_images_that_were_not_trained_on(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(root) == 0
    shown = capsys.readouterr()
    assert "no words for them: bicyclist" in shown.err
    assert "centroid of 3 images" in shown.out
    (figures,) = re.findall(r"on 2 images .*, 11 classes: (\S+) before, (\S+) with the adapter", shown.out)
    command = ["evaluate", "--benchmark", str(root / "own.yaml"), "--data", str(root), "--images", "0", "--jobs", "1"]
    command += ["--library", str(root / "library"), "--variants", "zero_shot", "oracle", "--device", "cpu"]
    assert main([*command, "--json", str(root / "results.json")]) == 0
    results = json.loads((root / "results.json").read_text())
    assert results["subject"]["classes not scored"] == "bicyclist"
    measured = results["domains"]["suburb"]
    assert [f"{100 * measured[key]:.1f}" for key in ("zero_shot", "oracle")] == list(figures)


def test_a_class_list_in_another_order_is_refused_in_training_and_told_in_evaluation(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = ", ".join(CLASS_NAMES)
    (root / "own.yaml").write_text(FILE.replace(listed, ", ".join(reversed(CLASS_NAMES))))
    assert train(root) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "lie where the base model sees" in line
    assert "--trust-labels" in line
    command = ["evaluate", "--benchmark", str(root / "own.yaml"), "--data", str(root), "--images", "0", "--jobs", "1"]
    assert main([*command, "--variants", "zero_shot", "--domains", "suburb", "--device", "cpu"]) == 0
    assert "warning: domain 'suburb': the labels of class" in capsys.readouterr().err
    (root / "own.yaml").write_text(FILE)
    assert main([*command, "--variants", "zero_shot", "--domains", "suburb", "--device", "cpu"]) == 0
    assert "warning: domain" not in capsys.readouterr().err


def test_a_library_is_not_begun_with_a_class_list_in_another_order(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = FILE.replace(", ".join(CLASS_NAMES), ", ".join(reversed(CLASS_NAMES)))
    lines = [line for line in other.splitlines() if "images/" in line]
    home = ["  home: {role: source, val_share: 0.4, layouts: {files: {", *lines]
    (root / "own.yaml").write_text("\n".join([*other.splitlines(), *home]))
    options = ["--benchmark", str(root / "own.yaml"), "--data", str(root), "--out", str(root / "my")]
    assert main(["train", "library", *options, "--device", "cpu"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "domain 'home': the labels of class" in shown
    assert not (root / "my").exists()


def test_a_domain_without_a_val_split_of_its_own_is_trained_and_not_measured(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "own.yaml").write_text(FILE.replace("val_share: 0.4, ", ""))
    assert train(root, "--name", "street") == 0
    shown = capsys.readouterr().out
    assert "validation: none, trained on 5 of its images; give 'suburb' a 'val_share'" in shown
    assert (root / "library" / "street" / "adapter_model.safetensors").is_file()


def test_a_validation_image_that_cannot_be_read_is_named_and_costs_neither_adapter_nor_figures(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, last = sorted((root / "images").iterdir())
    last.write_bytes(last.read_bytes()[:40])
    assert train(root) == 0
    shown = capsys.readouterr()
    assert "validation mIoU of 'suburb' on 1 image not trained on" in shown.out
    (told,) = (line for line in shown.err.splitlines() if line.startswith("left out of the validation"))
    assert last.name in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--domain", "fog"], "unknown domain 'fog' of benchmark 'own'; known: suburb"),
        (["--labels", "labels"], "--labels goes with --images"),
        (["--images", "images"], "in one way"),
        (["--benchmark", "cityscape"], "there is no benchmark 'cityscape'"),
    ],
)
def test_options_that_do_not_fit_are_one_clear_line(
    root: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert train(root, *options) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
    assert not (root / "library").exists()
