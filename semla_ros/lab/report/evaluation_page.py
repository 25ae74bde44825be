"""An evaluation's figures as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semla_ros.errors import counted
from semla_ros.lab.report.charts import Value, bars, dots, percent
from semla_ros.lab.report.embedding_map import Scenery, embedding_map
from semla_ros.lab.report.evaluation_tables import extent_of, label, rows_by_group, variants_of
from semla_ros.lab.report.page import Cell, Page, Section, Table, Tile, write_page
from semla_ros.lab.report.palette import variant_colours
from semla_ros.results import BASE_MODEL

_TITLES = {"world": "the shipped world", "semla20": "the 20-domain benchmark"}
_TABLES = {"domains": "All figures", "unseen": "All figures, unseen combinations", "source": "Source domain"}
_TILES = {
    "zero_shot": "no adapter",
    "uniform_without_own": "every other adapter alike",
    "semla_without_own": "the nearest other adapters",
    "semla": "own adapter in the library",
    "oracle": "own adapter alone",
}
_DOTS = {
    "domains": ("Domain by domain", ("zero_shot", "uniform_without_own", "semla_without_own", "semla", "oracle")),
    "unseen": ("Unseen combinations", ("zero_shot", "uniform", "semla", "late_fusion")),
}


def write_html(results: Mapping[str, Any], path: Path, *, scenery: Scenery | None = None, command: str = "") -> None:
    """Write the page.

    Args:
        results: As written to JSON.
        path: Where to; its folder is made.
        scenery: For the embedding map; left out where None.
        command: What was typed, shown at the foot of the page.

    Raises:
        ConfigError: The file cannot be written.
    """
    benchmark = _TITLES.get(results["benchmark"], results["benchmark"])
    facts = {**results.get("subject", {}), **({"command": command} if command else {})}
    page = Page(
        title=f"SemLA on {benchmark}",
        subtitle=f"{counted(len(results['domains']), 'domain')}, "
        f"{counted(len(results['unseen']), 'unseen combination')}, {extent_of(results)}. "
        "mIoU in percent; ± is the standard deviation over the seeds.",
        tiles=_tiles(results),
        sections=[
            _means(results),
            *(_by_domain(results, group) for group in _DOTS),
            *_retrieval(results),
            *([_embedding_map(scenery)] if scenery and sum(map(len, scenery.points.values())) > 2 else []),
            _by_class(results),
            *_tables(results),
        ],
        foot=" · ".join(f"{key}: {value}" for key, value in facts.items()),
    )
    write_page(path, page)


def _tiles(results: Mapping[str, Any]) -> list[Tile]:
    means, spreads, colours = results["h_mean"], results["spread"]["h_mean"], variant_colours(variants_of(results))
    return [
        Tile(
            label=label(name),
            value=percent(means[name], spreads.get(name)),
            more=f"h-mean; {note}",
            colour=colours[name],
        )
        for name, note in _TILES.items()
        if means.get(name) is not None
    ]


def _value(results: Mapping[str, Any], variant: str, value: float | None, spread: float | None) -> Value:
    names = variants_of(results)
    return Value(
        label=label(variant),
        value=value,
        spread=spread,
        colour=variant_colours(names)[variant],
        is_hollow=f"{variant}_without_own" in names,  # the filled one is the one that counts
    )


def _means(results: Mapping[str, Any]) -> Section:
    spreads = results["spread"]["h_mean"]
    means = {name: value for name, value in results["h_mean"].items() if value is not None}
    values = [_value(results, name, value, spreads.get(name)) for name, value in means.items()]
    title = "Harmonic mean over the domains"
    note = "One weak domain costs more here than in a plain mean. Outlines: with the own adapter in the library."
    return Section(title=title, note=note, parts=[bars(f"{title}, mIoU in percent", values)] if values else [])


def _by_domain(results: Mapping[str, Any], group: str) -> Section:
    (title, wanted), table, spreads = _DOTS[group], results[group], results["spread"][group]
    shown = [name for name in wanted if any(scores.get(name) is not None for scores in table.values())]
    note = "Lines: standard deviation over the seeds." if len(results["seeds"]) > 1 else "One seed: no spread."
    rows = {
        domain: [_value(results, name, scores.get(name), spreads[domain].get(name)) for name in shown]
        for domain, scores in table.items()
    }
    return Section(title=title, note=note, parts=[dots(f"mIoU: {title.lower()}", rows)] if shown else [])


def _retrieving(results: Mapping[str, Any]) -> str:
    """The variant whose retrieval is shown; empty where none retrieves."""
    entries = results["retrieval"].values()
    wanted = ("semla_without_own", "semla")
    return next((name for name in wanted if any(name in entry for entry in entries)), "")


def _entry(entry: Mapping[str, Any], variant: str) -> Any:
    """Unseen domains have no leave-one-out variant: there is nothing of theirs to leave out."""
    return entry.get(variant) or entry.get(variant.removesuffix("_without_own"))


def _retrieval(results: Mapping[str, Any]) -> list[Section]:
    variant = _retrieving(results)
    entries = {name: found for name, entry in results["retrieval"].items() if (found := _entry(entry, variant))}
    seen = {key for entry in entries.values() for key in (*entry["mean_weights"], *entry["heaviest"])}
    domains = [name for name in results["retrieval"] if name in seen or name in results["domains"]]
    columns = domains + sorted(seen - set(domains) - {BASE_MODEL}) + [BASE_MODEL] * (BASE_MODEL in seen)
    tail = " Framed: the domain's own adapter, left out of the library here." if "without" in variant else ""
    tail += " Unseen combinations have no adapter of their own." if results["unseen"] else ""
    notes = {
        "heaviest": (
            "Retrieval confusion matrix",
            "Share of a domain's images (row, %) in which an adapter (column) was the heaviest.",
        ),
        "mean_weights": ("Adapter weights", "Mean weight (%) of each adapter (column) in the mixes of a domain (row)."),
    }
    return [
        Section(
            title=title,
            note=note + tail,
            parts=[_matrix({name: entry[field] for name, entry in entries.items()}, columns, least=0.005)],
        )
        for field, (title, note) in notes.items()
        if entries
    ]


def _by_class(results: Mapping[str, Any]) -> Section:
    variant = _retrieving(results)
    tables = {name: found for name, scores in results["per_class"].items() if (found := _entry(scores, variant))}
    note = f"IoU (%) with {label(variant)}, all seeds together; empty: the class does not occur."
    # Domains with vocabularies of their own do not share columns.
    has_columns = len({tuple(scores) for scores in tables.values()}) == 1
    parts = [_matrix(tables, list(next(iter(tables.values()))), least=0.0)] if has_columns else []
    return Section(title="Class by class", note=note, parts=parts)


def _matrix(rows: Mapping[str, Mapping[str, float | None]], columns: Sequence[str], *, least: float) -> Table:
    """A table whose cells are coloured by their value, 0..1; what is below `least` stays empty."""

    def cell(row: str, column: str) -> Cell:
        value = rows[row].get(column)
        if value is None or value < least:
            return Cell(is_own=row == column)
        return Cell(text=f"{100 * value:.0f}", heat=value, is_own=row == column)

    cells: list[list[Cell | str]] = [[name, *(cell(name, column) for column in columns)] for name in rows]
    return Table(head=["domain", *columns], rows=cells, is_matrix=True)


def _embedding_map(scenery: Scenery) -> Section:
    note = (
        "Scene embeddings on their two axes of greatest variance, coloured by family; ringed: the adapters' centroids, "
        "which retrieval measures distance to."
    )
    return Section(title="Embedding map", note=note, parts=[embedding_map(scenery)])


def _tables(results: Mapping[str, Any]) -> list[Section]:
    sections = []
    for group, (shown, rows) in rows_by_group(results).items():
        cells: list[list[Cell | str]] = [
            [
                row.name,
                *(
                    Cell(
                        text=row.words(name).split(" ")[0],
                        spread="" if (spread := row.spreads.get(name)) is None else f"± {100 * spread:.1f}",
                        tone="best" if row.is_best(name) else "",
                    )
                    for name in shown
                ),
            ]
            for row in rows
        ]
        strong = [index for index, row in enumerate(rows) if row.is_mean]
        table = Table(head=["domain", *map(label, shown)], rows=cells, strong=strong)
        note = "mIoU in percent. Green: best of what does without the domain's own adapter."
        sections.append(Section(title=_TABLES[group], note=note, parts=[table]))
    return sections
