"""A class list in another order than the labels is seen by what the base model sees; a weak model refuses nothing."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from semla_ros.cli import main
from semla_ros.errors import DatasetError
from semla_ros.lab.training.label_order import check_label_order, misplaced
from semla_ros.lab.training.samples import FolderSamples
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.domains import BENCHMARK, split_seed
from semla_ros.resources import share_folder
from semla_ros.segmentation.checkpoint import LoadedModel, load_model

RECIPE = "adapter: {loop: {steps: 1, batch_size: 1, learning_rate: 0.001, warmup_steps: 1, bfloat16: false}}"
PIXELS = np.array([400, 300, 200, 100, 10])


def seen(accuracy: float, blind: tuple[int, ...] = ()) -> np.ndarray:
    """Counts of a model that is right in a share of the pixels; of blind classes it sees the next one."""
    counts = np.full((5, 6), 0)
    for index, pixels in enumerate(PIXELS):
        counts[index, :5] = pixels * (1 - accuracy) / 5
        counts[index, (index + 1) % 5 if index in blind else index] += int(pixels * accuracy)
    return counts


@pytest.mark.parametrize("accuracy", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("blind", [(), (0,), (3,)])
def test_the_right_order_is_never_refused_however_weak_the_model(accuracy: float, blind: tuple[int, ...]) -> None:
    assert misplaced(seen(accuracy, blind)) is None


@pytest.mark.parametrize("order", [[1, 0, 2, 3, 4], [1, 2, 3, 4, 0], [4, 3, 2, 1, 0], [2, 1, 0, 3, 4]])
def test_another_order_is_told_with_the_class_and_what_lies_in_its_place(order: list[int]) -> None:
    found = misplaced(seen(0.9)[order])
    assert found is not None
    index, instead, overlap, own = found
    assert order[index] == instead != index
    assert overlap > 0.5 > own


def folders(root: Path, domain: str, count: int = 4) -> tuple[Path, Path]:
    for index in range(count):
        scene = BENCHMARK[domain].scene(split_seed("val", index)).render()
        for folder, picture in (("images", scene.image[..., ::-1]), ("labels", scene.mask)):
            (root / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(root / folder / f"{index}.png"), picture)
    return root / "images", root / "labels"


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(share_folder() / "models" / "semla-tiny")


def check(base: LoadedModel, images: Path, labels: Path, names: tuple[str, ...]) -> None:
    tokens = base.tokenizer.tokenize(names, base.template)
    check_label_order(base.model, FolderSamples(images, labels, names), tokens, names, torch.device("cpu"))


@pytest.mark.parametrize("domain", ["old-town-night", "harbour-dusk", "downtown-tunnel"])
def test_domains_that_the_base_model_is_lost_in_are_not_refused(base: LoadedModel, tmp_path: Path, domain: str) -> None:
    check(base, *folders(tmp_path, domain), CLASS_NAMES)


def test_shuffled_class_lists_are_refused_and_the_right_one_is_not(base: LoadedModel, tmp_path: Path) -> None:
    images, labels = folders(tmp_path, "suburb-clear")
    check(base, images, labels, CLASS_NAMES)
    for seed in range(4):
        names = tuple(np.random.default_rng(seed).permutation(CLASS_NAMES).tolist())
        with pytest.raises(DatasetError, match=r"lie where the base model sees .*put the class list into the order"):
            check(base, images, labels, names)


def test_the_command_refuses_in_one_line_and_goes_on_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = folders(tmp_path, "suburb-clear")
    (tmp_path / "classes.txt").write_text("\n".join(reversed(CLASS_NAMES)))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    options = ["--images", str(images), "--labels", str(labels), "--classes", str(tmp_path / "classes.txt")]
    options += ["--name", "suburb", "--library", str(tmp_path / "library"), "--recipe", str(tmp_path / "recipe.yaml")]
    assert main(["train", "adapter", *options, "--device", "cpu"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "--trust-labels" in line
    assert not (tmp_path / "library").exists()
    assert main(["train", "adapter", *options, "--device", "cpu", "--trust-labels"]) == 0
    assert (tmp_path / "library" / "suburb" / "adapter_model.safetensors").is_file()
