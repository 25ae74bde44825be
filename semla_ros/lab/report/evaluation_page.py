"""A run's figures for people: the table in the terminal, and one HTML page that needs no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from rich.table import Table

from semla_ros.errors import ConfigError
from semla_ros.lab.report import figures
from semla_ros.results import BASE_MODEL, FloatArray

MOST_POINTS = 60  # embeddings drawn per domain; more hide each other
LABELS = {
    "zero_shot": "zero-shot",
    "uniform": "uniform",
    "semla": "SemLA",
    "late_fusion": "late fusion",
    "oracle": "oracle",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenery:
    """What the embedding map is drawn from.

    Attributes:
        points: Domain -> scene embeddings, shape (N, D).
        centroids: Adapter -> centroid, shape (D,).
        families: Domain or adapter -> family.
    """

    points: Mapping[str, NDArray[np.float32]]
    centroids: Mapping[str, FloatArray]
    families: Mapping[str, str]


def label(variant: str) -> str:
    """A variant's name for people: "semla_without_own" -> "SemLA, own left out"."""
    base = variant.removesuffix("_without_own")
    shown = LABELS.get(base) or base.replace("_", " ").replace("semla", "SemLA")
    return shown if base == variant else f"{shown}, own left out"


def variants_of(results: Mapping[str, Any]) -> list[str]:
    """Variants of a run in the order they were asked for."""
    scores: Mapping[str, Any] = next(iter((results["domains"] or results["unseen"]).values()), {})
    return list(results["h_mean"] or scores)


def terminal_tables(results: Mapping[str, Any]) -> list[Table]:
    """Tables for rich: domains with their h-mean, then unseen domains."""
    variants = variants_of(results)
    tables = []
    titles = {"domains": "mIoU by domain (%)", "unseen": "unseen combinations (%)", "source": "source domain (%)"}
    for key, title in titles.items():
        if not results[key]:
            continue
        shown = [name for name in variants if any(name in scores for scores in results[key].values())]
        table = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
        table.add_column("domain", no_wrap=True)
        for name in shown:
            table.add_column(_narrow(name), justify="right")
        for domain, scores in results[key].items():
            table.add_row(domain, *(_percent(scores.get(name)) for name in shown))
        if key == "domains" and results["h_mean"]:
            spreads = results["spread"]["h_mean"]
            table.add_section()
            table.add_row(
                "h-mean", *(_percent(results["h_mean"][name], spreads.get(name)) for name in shown), style="bold"
            )
        tables.append(table)
    return tables


def _narrow(variant: str) -> str:
    """Column heading on two lines."""
    base = variant.removesuffix("_without_own")
    return label(base) + ("\nwithout own" if base != variant else "")


def _percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" ±{100 * spread:.1f}" if spread is not None else "")


def write_html(results: Mapping[str, Any], path: Path, *, scenery: Scenery | None = None, command: str = "") -> None:
    """Write the page.

    Args:
        results: As written to JSON; see `summary.as_json`.
        path: Where to; its folder is made.
        scenery: For the embedding map; left out where None.
        command: What was typed, shown at the foot of the page.

    Raises:
        ConfigError: The file cannot be written.
    """
    seeds = ", ".join(map(str, results["seeds"]))
    count = "all images" if results["images"] == 0 else f"{results['images']} images"
    _write_page(
        path,
        title=f"SemLA on {_benchmark_title(results['benchmark'])}",
        subtitle=f"{len(results['domains'])} domains, {len(results['unseen'])} unseen combinations, {count} per domain "
        f"and seed, seeds {seeds}. mIoU in percent; ± is the standard deviation over the seeds.",
        cards=_cards(results),
        figures=_figures(results, scenery),
        tables=_tables(results),
        facts={**results.get("subject", {}), **({"command": command} if command else {})},
    )


def _write_page(path: Path, **values: Any) -> None:
    folder = jinja2.PackageLoader("semla_ros.lab.report", "templates")
    page = jinja2.Environment(loader=folder, autoescape=True).get_template("report.html.j2").render(**values)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"report {path} cannot be written: {error}") from None


def _benchmark_title(name: str) -> str:
    return {"world": "the shipped world", "semla20": "the 20-domain benchmark"}.get(name, name)


def _cards(results: Mapping[str, Any]) -> list[dict[str, str]]:
    notes = {
        "zero_shot": "no adapter",
        "uniform_without_own": "every other adapter alike",
        "semla_without_own": "the nearest other adapters",
        "semla": "own adapter in the library",
        "oracle": "own adapter alone",
    }
    means, spreads = results["h_mean"], results["spread"]["h_mean"]
    return [
        {
            "label": label(name),
            "value": f"{100 * means[name]:.1f}",
            "spread": f"{100 * spreads[name]:.1f}" if spreads.get(name) is not None else "",
            "note": f"h-mean; {note}",
            "colour": figures.variant_colour(name),
        }
        for name, note in notes.items()
        if means.get(name) is not None
    ]


def _figures(results: Mapping[str, Any], scenery: Scenery | None) -> list[dict[str, Any]]:
    made: list[tuple[str, str, str]] = []
    if results["h_mean"]:
        made.append(_mean_figure(results))
    for key, title, wanted in (
        ("domains", "Domain by domain", ("zero_shot", "uniform_without_own", "semla_without_own", "semla", "oracle")),
        ("unseen", "Unseen combinations", ("zero_shot", "uniform", "semla", "late_fusion")),
    ):
        made += _bar_figure(results, key, title, wanted)
    chosen = next((name for name in ("semla_without_own", "semla") if _retrieves(results, name)), None)
    if chosen:
        made += _retrieval_figures(results, chosen)
    if scenery and sum(map(len, scenery.points.values())) > 2:
        points = {name: values[:MOST_POINTS] for name, values in scenery.points.items()}
        made.append(
            (
                "Embedding map",
                "Scene embeddings on their two axes of greatest variance, coloured by family; ringed: the adapters' "
                "centroids, which retrieval measures distance to.",
                figures.embedding_map(points, scenery.centroids, scenery.families),
            )
        )
    if chosen:
        made += _class_figure(results, chosen)
    return [{"title": title, "note": note, "svg": Markup(svg)} for title, note, svg in made]


def _mean_figure(results: Mapping[str, Any]) -> tuple[str, str, str]:
    names = [name for name in variants_of(results) if results["h_mean"].get(name) is not None]
    spreads = results["spread"]["h_mean"]
    svg = figures.mean_bars(
        [label(name) for name in names],
        names,
        [results["h_mean"][name] for name in names],
        [_nan(spreads.get(name)) for name in names],
    )
    return "Harmonic mean over the domains", "One weak domain costs more here than in a plain mean.", svg


def _bar_figure(results: Mapping[str, Any], key: str, title: str, wanted: Sequence[str]) -> list[tuple[str, str, str]]:
    table = results[key]
    shown = [name for name in wanted if any(scores.get(name) is not None for scores in table.values())]
    if not shown:
        return []
    series = [
        figures.Bars(
            label=label(name),
            variant=name,
            values=[_nan(scores.get(name)) for scores in table.values()],
            spreads=[_nan(results["spread"][key][domain].get(name)) for domain in table],
        )
        for name in shown
    ]
    note = "Whiskers: standard deviation over the seeds." if len(results["seeds"]) > 1 else "One seed: no spread."
    return [(title, note, figures.grouped_bars(list(table), series))]


def _retrieves(results: Mapping[str, Any], variant: str) -> bool:
    return any(variant in entry for entry in results["retrieval"].values())


def _retrieval_figures(results: Mapping[str, Any], variant: str) -> list[tuple[str, str, str]]:
    retrieval = results["retrieval"]
    rows = [name for name in retrieval if _variant_for(retrieval[name], variant)]
    seen = {key for name in rows for key in _variant_for(retrieval[name], variant)["mean_weights"]}
    seen |= {key for name in rows for key in _variant_for(retrieval[name], variant)["heaviest"]}
    columns = [name for name in retrieval if name in seen or name in results["domains"]] + sorted(
        seen - set(retrieval) - {BASE_MODEL}
    )
    columns += [BASE_MODEL] if BASE_MODEL in seen else []
    made = []
    for field, title, note in (
        (
            "heaviest",
            "Retrieval confusion matrix",
            "Share of a domain's images (row, %) in which an adapter (column) was the heaviest.",
        ),
        ("mean_weights", "Adapter weights", "Mean weight (%) of each adapter (column) in the mixes of a domain (row)."),
    ):
        values = np.zeros((len(rows), len(columns)))
        for row, name in enumerate(rows):
            for key, value in _variant_for(retrieval[name], variant)[field].items():
                values[row, columns.index(key)] = value
        tail = " Red frames: the domain's own adapter, left out of the library here." if "without" in variant else ""
        unseen = " Unseen combinations have no adapter of their own." if results["unseen"] else ""
        made.append((title, note + tail + unseen, figures.matrix(rows, columns, values)))
    return made


def _variant_for(entry: Mapping[str, Any], variant: str) -> Any:
    """Unseen domains have no leave-one-out variant: there is nothing of theirs to leave out."""
    return entry.get(variant) or entry.get(variant.removesuffix("_without_own"))


def _class_figure(results: Mapping[str, Any], variant: str) -> list[tuple[str, str, str]]:
    tables = {name: _variant_for(scores, variant) for name, scores in results["per_class"].items()}
    vocabularies = {tuple(scores) for scores in tables.values() if scores}
    if len(vocabularies) != 1:
        return []  # domains with vocabularies of their own do not share columns
    classes = list(next(iter(vocabularies)))
    values = np.array([[_nan(scores[name]) for name in classes] for scores in tables.values()])
    note = f"IoU (%) with {label(variant)}, all seeds together; empty: the class does not occur."
    return [("Class by class", note, figures.matrix(list(tables), classes, values, percent=False))]


def _tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = []
    titles = {"domains": "All figures", "unseen": "All figures, unseen combinations", "source": "Source domain"}
    for key, title in titles.items():
        if not results[key]:
            continue
        names = [name for name in variants_of(results) if any(name in scores for scores in results[key].values())]
        rows = [_row(domain, scores, results["spread"][key][domain], names) for domain, scores in results[key].items()]
        if key == "domains" and results["h_mean"]:
            rows.append({**_row("h-mean", results["h_mean"], results["spread"]["h_mean"], names), "is_mean": True})
        note = "mIoU in percent. Blue: best of what does without the domain's own adapter."
        tables.append({"title": title, "note": note, "columns": ["domain", *map(label, names)], "rows": rows})
    return tables


def _row(
    name: str, scores: Mapping[str, float | None], spreads: Mapping[str, float | None], names: Sequence[str]
) -> dict[str, Any]:
    fair = [item for item in names if item.endswith("_without_own") or item == "zero_shot"]
    fair = fair if len(fair) > 1 else list(names)
    best = max(
        (_nan(scores.get(item)) for item in fair), default=float("nan"), key=lambda value: (value == value, value)
    )
    return {
        "name": name,
        "is_mean": False,
        "cells": [
            {
                "value": _percent(scores.get(item)),
                "spread": _percent(spreads.get(item)) if spreads.get(item) is not None else "",
                "is_best": item in fair and scores.get(item) == best,
            }
            for item in names
        ],
    }


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def markdown_table(results: Mapping[str, Any]) -> str:
    """Tables of results in Markdown: domains, their h-mean with its spread, unseen combinations."""
    names = variants_of(results)
    lines = [
        "| domain | " + " | ".join(label(name) for name in names) + " |",
        "| --- |" + " ---: |" * len(names),
    ]
    for key in ("domains", "unseen", "source"):
        for domain, scores in results[key].items():
            note = {"domains": "", "unseen": " (unseen)", "source": " (source)"}[key]
            cells = " | ".join(_percent(scores.get(name)) for name in names)
            lines.append(f"| {domain}{note} | {cells} |")
        if key == "domains" and results["h_mean"]:
            spreads = results["spread"]["h_mean"]
            means = " | ".join(f"**{_percent(results['h_mean'][name], spreads.get(name))}**" for name in names)
            lines.append(f"| **h-mean** | {means} |")
    seeds = ", ".join(map(str, results["seeds"]))
    count = "all" if results["images"] == 0 else results["images"]
    lines += [
        "",
        f"mIoU in percent; {count} images per domain and seed, seeds {seeds}; ± standard deviation over seeds.",
    ]
    return "\n".join(lines) + "\n"
