"""What makes a few images of a domain worth most: the recipe of `semla train library` with single settings changed.

    python -m bench.transfer base --benchmark camvid --data DIR --out out/transfer --steps 300
    python -m bench.transfer adapters --benchmark camvid --data DIR --out out/transfer --model MY/model --steps 150

Scored on validation images. "base" trains the base model alone and scores every domain; "adapters" trains one adapter a
domain on a finished model and scores each on its own. "without labels" trains on what the base model itself sees in the
images, where it is sure (pseudo-labels; Lee, ICML workshop 2013).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semla_ros.engines.torch_engine import choose_device
from semla_ros.errors import SemlaError
from semla_ros.lab.evaluation.datasets.benchmark import DomainImages, load_benchmark
from semla_ros.lab.evaluation.datasets.layouts import SamplePaths
from semla_ros.lab.training.library_training import LibraryRecipe, LibraryRun, library_run, train_library
from semla_ros.resources import find_model, share_folder
from semla_ros.results import ImageArray, MaskArray
from semla_ros.segmentation.checkpoint import load_model
from semla_ros.segmentation.one_image import segment_probabilities

WITHOUT_LABELS = "without labels"
SURE = 0.9  # least probability of a class that counts as a label
UNLABELLED = 255
TRIALS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "base": {
        "as in the recipe": {},
        "192 x 256 pixels": {"grid": (12, 16), "window": 4},
        "384 x 512 pixels": {"grid": (24, 32), "window": 4},
        "twice the rate": {"segmenter.loop.learning_rate": 3e-3, "segmenter.visual_learning_rate": 1.2e-3},
        "half the rate": {"segmenter.loop.learning_rate": 8e-4, "segmenter.visual_learning_rate": 3e-4},
        "rarer classes count more": {"segmenter.rarity_exponent": 0.5},
        "light as it is": {f"segmenter.augment.{name}": 0.0 for name in ("brightness", "colour", "contrast", "gamma")},
        "no running mean": {"segmenter.loop.average": 0.0},
    },
    "adapters": {
        "as in the recipe": {},
        "rank 16": {"adapter.rank": 16, "adapter.alpha": 32},
        "rank 4": {"adapter.rank": 4, "adapter.alpha": 8},
        "twice the rate": {"adapter.loop.learning_rate": 4e-3},
        "half the rate": {"adapter.loop.learning_rate": 1e-3},
        "light as it is": {f"adapter.augment.{name}": 0.0 for name in ("brightness", "colour", "contrast", "gamma")},
        "whole images": {"adapter.augment.min_crop": 1.0},
        "no running mean": {"adapter.loop.average": 0.0},
        "image tower alone": {"adapter.targets": ("sem_seg_head.predictor.clip_model.visual.",)},
        "aggregation alone": {"adapter.targets": ("sem_seg_head.predictor.transformer.",)},
        WITHOUT_LABELS: {},
    },
}


@dataclass(frozen=True)
class PseudoLabelled:
    """Images of a domain, with what the base model is sure of in place of their labels."""

    domain: DomainImages
    masks: Sequence[MaskArray]

    @property
    def paths(self) -> Sequence[SamplePaths]:
        """Of the images, and of the labels that are not read."""
        return self.domain.paths

    def __len__(self) -> int:
        return len(self.domain)

    def image(self, index: int) -> ImageArray:
        """RGB image, shape (H, W, 3), uint8."""
        return self.domain.image(index)

    def mask(self, index: int) -> MaskArray:
        """Class index per pixel, shape (H, W), uint8; 255 where the model is not sure."""
        return self.masks[index]


@dataclass(frozen=True, kw_only=True, eq=False)
class PseudoLabelRun(LibraryRun):
    """A training whose domains have images and no labels."""

    def samples(self, domain: str, split: str) -> Any:
        """Images of a domain, those that an adapter is trained on as `PseudoLabelled`."""
        if split == "train" and domain in self.benchmark.domain_names:
            return _pseudo_labelled(self, domain)
        return super().samples(domain, split)


@cache
def _pseudo_labelled(run: PseudoLabelRun, domain: str) -> PseudoLabelled:
    base = load_model(run.own_model)
    images = replace(run.benchmark, split="train").open(domain)
    masks = []
    with torch.no_grad():
        text = base.model.encode_text(base.tokenizer.tokenize(run.benchmark.class_names(domain), base.template))
        for index in range(len(images)):
            image = torch.from_numpy(np.array(images.image(index))).permute(2, 0, 1)
            size = (int(image.shape[1]), int(image.shape[2]))
            probability, mask = segment_probabilities(base.model.eval(), image, text, size).max(0)
            mask[probability < SURE] = UNLABELLED
            masks.append(mask.to(torch.uint8).numpy())
    return PseudoLabelled(images, masks)


def changed(settings: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with some of its fields changed, by their paths ("adapter.loop.steps")."""
    for path, value in changes.items():
        first, _, rest = path.partition(".")
        settings = replace(settings, **{first: changed(getattr(settings, first), {rest: value}) if rest else value})
    return settings


def run(options: Sequence[str]) -> None:
    """Train and score what is asked for; a line each.

    Raises:
        SemlaError: The benchmark, the model or a setting cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=TRIALS)
    parser.add_argument("--benchmark", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="models and adapters, a folder a trial; resumable")
    parser.add_argument("--model", default="semla-tiny")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--trials", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--jobs", type=int, default=0, help="adapters at once")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args(options)
    benchmark = load_benchmark(arguments.benchmark, arguments.data, "train")
    recipe = LibraryRecipe.load(share_folder() / "config" / "own_camera.yaml")
    stage = {"base": "segmenter", "adapters": "adapter"}[arguments.part]
    for name in arguments.trials or TRIALS[arguments.part]:
        library = library_run(
            changed(recipe, TRIALS[arguments.part][name]).with_steps({stage: arguments.steps}),
            benchmark,
            find_model(arguments.model),
            arguments.out / arguments.part / name.replace(" ", "-"),
            device=choose_device(arguments.device),
            trains_base=arguments.part == "base",
            jobs=arguments.jobs,
        )
        if name == WITHOUT_LABELS:
            library = PseudoLabelRun(**{item.name: getattr(library, item.name) for item in fields(library)})
        print(f"{arguments.part}, {name}:", flush=True)
        train_library(library, stage="segmenter" if arguments.part == "base" else "adapters")


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except SemlaError as error:
        sys.exit(f"error: {error}")
