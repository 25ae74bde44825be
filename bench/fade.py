"""What the fade knows: strange images, the library's own domains and unseen combinations.

    python -m bench.fade --seeds 0 1 2 --images 34 --json out/fade.json
    python -m bench.fade --pictures screenshots/

Model and library are chosen as in `semla evaluate`, which tells of labelled photographs (`--benchmark`). `--pictures`
are images that no adapter is for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from semla_ros.commands import evaluate
from semla_ros.commands.tables import print_table
from semla_ros.errors import SemlaError
from semla_ros.lab.evaluation.aggregate import Evaluation, number
from semla_ros.lab.evaluation.protocol import Benchmark, make_plan
from semla_ros.lab.evaluation.sources import WorldBenchmark
from semla_ros.lab.evaluation.subject import PipelineSpec, PipelineSubject
from semla_ros.lab.evaluation.variants import choose_variants
from semla_ros.lab.training.samples import image_files, training_image
from semla_ros.results import ImageArray

VARIANTS = ("zero_shot", "semla")
HEIGHT, WIDTH = 480, 640


def strange_pictures(seed: int = 0) -> dict[str, ImageArray]:
    """Frames that no adapter is for, drawn otherwise than those that the library was held against."""
    rng = np.random.default_rng(seed)
    flat = {"black": (0, 0, 0), "white": (255, 255, 255), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    pictures = {name: np.full((HEIGHT, WIDTH, 3), colour, np.uint8) for name, colour in flat.items()}
    pictures["noise"] = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pictures["covered lens"] = np.abs(rng.normal(0, 4, (HEIGHT, WIDTH, 3))).astype(np.uint8)
    pictures["overexposed"] = np.clip(rng.normal(255, 4, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
    pictures["page of text"] = _page(rng, ground=255, ink=0)
    pictures["terminal"] = _page(rng, ground=15, ink=210)
    columns = np.arange(WIDTH) * 8 // WIDTH
    bars = np.stack([(~columns & bit) // bit * 255 for bit in (2, 4, 1)], axis=-1)
    pictures["colour bars"] = np.repeat(bars[None], HEIGHT, axis=0).astype(np.uint8)
    return pictures


def _page(rng: np.random.Generator, *, ground: int, ink: int) -> ImageArray:
    image = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
    for line in range(20, HEIGHT, 16):
        words = " ".join(rng.choice(["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs"], 10))
        cv2.putText(image, words, (16, line), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (ink,) * 3, 1, cv2.LINE_AA)
    return image


def judged(subject: PipelineSubject, images: Mapping[str, ImageArray]) -> dict[str, dict[str, Any]]:
    """Name -> whether the scene counts as out of the library, and what the base model gets of it."""
    retriever = subject.retriever(subject.recommended)
    mixes = {name: retriever.retrieve(subject.embed(image)) for name, image in images.items()}
    return {
        name: {"flagged": mix.is_out_of_library, "base_weight": number(mix.base_weight)} for name, mix in mixes.items()
    }


def own_domains(
    subject: PipelineSubject, benchmark: Benchmark, seeds: Sequence[int], images: int
) -> dict[str, dict[str, Any]]:
    """Domain -> share of its test scenes that count as out of the library, and the base model's mean share."""
    retriever, found = subject.retriever(subject.recommended), {}
    for name in [name for name in benchmark.domain_names if name in subject.adapter_names]:
        source = benchmark.open(name)
        scenes = [source.read(seed, index).scene for seed in seeds for index in source.indices(seed, images)]
        mixes = [retriever.retrieve(subject.embed(scene)) for scene in scenes]
        found[name] = {
            "flagged": number(float(np.mean([mix.is_out_of_library for mix in mixes]))),
            "base_weight": number(float(np.mean([mix.base_weight for mix in mixes]))),
        }
    return found


def unseen_domains(
    arguments: argparse.Namespace, spec: PipelineSpec, subject: PipelineSubject, benchmark: Benchmark
) -> dict[str, dict[str, Any]]:
    """Unseen combination -> mIoU by variant."""
    plan = make_plan(
        benchmark,
        subject.adapter_names,
        choose_variants(VARIANTS),
        domains=benchmark.unseen_names,
        seeds=arguments.seeds,
        images=arguments.images,
    )
    evaluation = Evaluation.collect(plan, evaluate.run_with_progress(plan, spec, subject, arguments))
    return {name: {item: number(evaluation.mean_miou(name, item)) for item in VARIANTS} for name in plan.unseen}


def run(
    options: Sequence[str], *, spec: PipelineSpec | None = None, benchmark: Benchmark | None = None
) -> dict[str, Any]:
    """Measure and print the tables; `spec` and `benchmark` stand in for what the options describe.

    Raises:
        SemlaError: An option is wrong, or a file cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.fade", description=__doc__)
    evaluate.add_arguments(parser)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="images that no adapter is for")
    arguments = parser.parse_args(options)
    evaluate.check(arguments)
    spec, benchmark = spec or evaluate.make_spec(arguments), benchmark or WorldBenchmark()
    subject = spec.load(0)
    pictures = strange_pictures(arguments.seeds[0])
    if arguments.pictures:
        pictures |= {path.name: training_image(path) for path in image_files(arguments.pictures, "pictures")}
    found: dict[str, Any] = {
        "strange": judged(subject, pictures),
        "own": own_domains(subject, benchmark, arguments.seeds, arguments.images),
        "unseen": unseen_domains(arguments, spec, subject, benchmark),
    }
    found["mean"] = {
        kind: {key: _mean([row[key] for row in rows.values()]) for key in next(iter(rows.values()))}
        for kind, rows in found.items()
        if kind in ("own", "unseen")
    }
    for kind, rows in found.items():
        if kind != "mean":
            print_table(_table(kind, rows, found["mean"].get(kind)))
            print()
    if arguments.json:
        evaluate.write_json(found, arguments.json)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return number(float(np.mean(known))) if known else None


def _table(title: str, rows: Mapping[str, Mapping[str, Any]], mean: Mapping[str, Any] | None) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    keys = list(next(iter(rows.values())))
    for column in ("", *keys):
        table.add_column(column.replace("_", " "), justify="left" if not column else "right")
    for name, row in rows.items():
        table.add_row(name, *(_cell(key, row[key]) for key in keys))
    if mean is not None:
        table.add_row("mean", *(_cell(key, mean[key]) for key in keys), style="bold")
    return table


def _cell(key: str, value: Any) -> str:
    formats: dict[str, Callable[[Any], str]] = {
        "flagged": lambda flag: ("yes" if flag else "no") if isinstance(flag, bool) else f"{flag:.1%}",
        "base_weight": "{:.2f}".format,
        "images": str,
    }
    return "-" if value is None else formats.get(key, lambda share: f"{100 * share:.1f}")(value)


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except SemlaError as error:
        sys.exit(f"python -m bench.fade: {error}")
