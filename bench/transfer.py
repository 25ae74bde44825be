"""What makes a few images of a domain worth most: the recipe of `semla train library` with single settings changed.

    python -m bench.transfer base --benchmark camvid --data DIR --out out/transfer --steps 300
    python -m bench.transfer adapters --benchmark camvid --data DIR --out out/transfer --model MY/model --steps 150

Scored on validation images. "base" trains the base model alone and scores every domain; "adapters" trains one adapter a
domain on a finished model and scores each on its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from semla_ros.engines.torch_engine import choose_device
from semla_ros.errors import SemlaError
from semla_ros.lab.evaluation.datasets.benchmark import load_benchmark
from semla_ros.lab.training.library_training import LibraryRecipe, library_run, train_library
from semla_ros.resources import find_model, share_folder

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
    },
}


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
        print(f"{arguments.part}, {name}:", flush=True)
        train_library(library, stage="segmenter" if arguments.part == "base" else "adapters")


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except SemlaError as error:
        sys.exit(f"error: {error}")
