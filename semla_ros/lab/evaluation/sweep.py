"""Choose how retrieval is set: temperature, top_k and distance, measured on validation scenes, never on test ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from semla_ros.config import DistanceName, RetrievalConfig
from semla_ros.lab.evaluation.aggregate import Evaluation, harmonic_mean, number
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


def sweep_axes(sweep: Mapping[str, Any]) -> dict[str, tuple[list[float], dict[str, list[float]]]]:
    """For plots: setting -> (values, h-mean per way of adapting), with the other settings as they are at present."""
    present = next(row for row in sweep["settings"] if row["is_present"])
    axes = {}
    for key in ("temperature", "top_k"):
        others = [name for name in ("temperature", "top_k", "distance") if name != key]
        rows = sorted(
            (row for row in sweep["settings"] if all(row[name] == present[name] for name in others)),
            key=lambda row: row[key],
        )
        if len(rows) > 1:
            series = {
                "semla": [row["h_mean"] for row in rows],
                "semla_without_own": [row["h_mean_without_own"] for row in rows],
            }
            axes[key] = ([row[key] for row in rows], series)
    return axes


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
