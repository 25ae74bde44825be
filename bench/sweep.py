"""Choose how retrieval is set: temperature, top_k and distance, measured on validation scenes, never on test ones.

    python -m bench.sweep --images 10 --json out/sweep.json
    python -m bench.sweep --temperatures 0.05 0.1 0.3 --top-ks 3 5 --full-grid

Model, library, domains, seeds and workers are chosen as in `semla evaluate`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from semla_ros.commands import evaluate
from semla_ros.commands.tables import print_table
from semla_ros.config import DistanceName, RetrievalConfig
from semla_ros.errors import SemlaError
from semla_ros.lab.evaluation.aggregate import Evaluation, harmonic_mean, number
from semla_ros.lab.evaluation.protocol import Benchmark, make_plan
from semla_ros.lab.evaluation.sources import WorldBenchmark
from semla_ros.lab.evaluation.subject import PipelineSpec
from semla_ros.lab.evaluation.variants import WITHOUT_OWN, Variant

ZERO_SHOT = Variant(name="zero_shot", kind="zero_shot")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Values to try.

    Attributes:
        temperatures: Softmax temperatures, > 0.
        top_ks: Adapters per scene, >= 1.
        distances: Names of distances.
        is_full: Every combination; otherwise one setting at a time is moved from the present ones.
    """

    temperatures: Sequence[float]
    top_ks: Sequence[int]
    distances: Sequence[DistanceName]
    is_full: bool = False

    def settings(self, present: RetrievalConfig) -> list[RetrievalConfig]:
        """All settings to measure, without repetition; the present ones are always among them."""
        if self.is_full:
            combinations = itertools.product(self.temperatures, self.top_ks, self.distances)
            found = [replace(present, temperature=t, top_k=k, distance=d) for t, k, d in combinations]
        else:
            found = [replace(present, temperature=value) for value in self.temperatures]
            found += [replace(present, top_k=value) for value in self.top_ks]
            found += [replace(present, distance=value) for value in self.distances]
        return list(dict.fromkeys([present, *found]))


def setting_name(settings: RetrievalConfig) -> str:
    """Short and unique among the settings of a sweep."""
    return f"temperature {settings.temperature:g}, top_k {settings.top_k}, {settings.distance}"


def sweep_variants(settings: Sequence[RetrievalConfig]) -> tuple[Variant, ...]:
    """Each setting with and without the target's own adapter, after the base model."""
    variants = [ZERO_SHOT]
    for item in settings:
        overrides = {"temperature": item.temperature, "top_k": item.top_k, "distance": item.distance}
        variant = Variant(name=setting_name(item), kind="retrieved", overrides=overrides)
        variants += [variant, variant.leave_one_out()]
    return tuple(variants)


def sweep_json(
    evaluation: Evaluation, settings: Sequence[RetrievalConfig], present: RetrievalConfig, split: str
) -> dict[str, Any]:
    """The figures of a sweep, best leave-one-out h-mean first."""
    rows: list[dict[str, Any]] = []
    for item in settings:
        name = setting_name(item)
        unseen = [evaluation.mean_miou(domain, name) for domain in evaluation.plan.unseen]
        rows.append(
            {
                "temperature": item.temperature,
                "top_k": item.top_k,
                "distance": item.distance,
                "is_present": item == present,
                "h_mean": number(evaluation.h_mean(name)),
                "h_mean_without_own": number(evaluation.h_mean(name + WITHOUT_OWN)),
                "unseen": number(harmonic_mean(unseen)),
            }
        )
    rows.sort(key=lambda row: (-row["h_mean_without_own"], -row["h_mean"]))
    return {
        "benchmark": evaluation.plan.benchmark.name,
        "split": split,
        "seeds": list(evaluation.plan.seeds),
        "images": evaluation.plan.images,
        "zero_shot": number(evaluation.h_mean("zero_shot")),
        "settings": rows,
        "best": {key: rows[0][key] for key in ("temperature", "top_k", "distance")},
    }


def sweep_table(sweep: Mapping[str, Any]) -> Table:
    """A table for rich, best first; the present settings are marked."""
    table = Table(
        title=f"h-mean of mIoU (%) on {sweep['split']} scenes; zero-shot {_percent(sweep['zero_shot'])}",
        title_justify="left",
        header_style="bold",
        show_edge=False,
        pad_edge=False,
    )
    for column in ("temperature", "top_k", "distance", "with own", "without own", "unseen", ""):
        table.add_column(column, justify="left" if column in ("distance", "") else "right")
    for row in sweep["settings"]:
        table.add_row(
            f"{row['temperature']:g}",
            str(row["top_k"]),
            row["distance"],
            _percent(row["h_mean"]),
            _percent(row["h_mean_without_own"]),
            _percent(row["unseen"]),
            "present" if row["is_present"] else "",
            style="bold" if row["is_present"] else None,
        )
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def run(
    options: Sequence[str], *, spec: PipelineSpec | None = None, benchmark: Benchmark | None = None
) -> dict[str, Any]:
    """Measure and print the table; `spec` and `benchmark` stand in for what the options describe.

    Raises:
        SemlaError: An option, the model or the library cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    evaluate.add_arguments(parser)
    parser.set_defaults(images=10)
    values = parser.add_argument_group("values to try")
    values.add_argument("--temperatures", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.3, 1.0], metavar="T")
    values.add_argument("--top-ks", type=int, nargs="+", default=[1, 3, 5, 8], metavar="K")
    values.add_argument("--distances", nargs="+", choices=("euclidean", "cosine"), default=["euclidean", "cosine"])
    values.add_argument("--full-grid", action="store_true", help="every combination; otherwise one at a time")
    arguments = parser.parse_args(options)
    evaluate.check(arguments)
    spec = spec or evaluate.make_spec(arguments)
    subject = spec.load(0)
    grid = Grid(
        temperatures=arguments.temperatures,
        top_ks=arguments.top_ks,
        distances=arguments.distances,
        is_full=arguments.full_grid,
    )
    settings = grid.settings(subject.recommended)
    plan = make_plan(
        benchmark or WorldBenchmark(split="val"),
        subject.adapter_names,
        sweep_variants(settings),
        domains=arguments.domains,
        seeds=arguments.seeds,
        images=arguments.images,
    )
    evaluation = Evaluation.collect(plan, evaluate.run_with_progress(plan, spec, subject, arguments))
    sweep = sweep_json(evaluation, settings, subject.recommended, "val")
    print_table(sweep_table(sweep))
    if arguments.json:
        evaluate.write_json(sweep, arguments.json)
    return sweep


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except SemlaError as error:
        sys.exit(f"error: {error}")
