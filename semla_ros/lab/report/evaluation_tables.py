"""The figures of an evaluation as tables: in the terminal, in Markdown, in cards, and for its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from semla_ros.atomic_files import write_atomically
from semla_ros.errors import counted
from semla_ros.lab.report.charts import percent

_LABELS = {"zero_shot": "zero-shot", "semla": "SemLA", "late_fusion": "late fusion"}
_GROUPS = {"domains": "mIoU by domain (%)", "unseen": "unseen combinations (%)", "source": "source domain (%)"}
_CARD_HEADING = "## Figures"
_CARD_ROWS = (
    ("zero_shot", "base model, no adapter"),
    ("oracle", "this adapter alone"),
    ("semla", "SemLA"),
    ("semla_without_own", "SemLA without this adapter (leave-one-out)"),
)


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One line: a domain, or the harmonic mean over them.

    Attributes:
        group: "domains", "unseen" or "source".
        name: Of the domain, or "h-mean".
        values: Variant -> mIoU 0..1, None where it was not measured.
        spreads: Variant -> standard deviation over the seeds, None where there is none.
        is_mean: It is the harmonic mean.
    """

    group: str
    name: str
    values: Mapping[str, float | None]
    spreads: Mapping[str, float | None]
    is_mean: bool = False

    def words(self, variant: str) -> str:
        """The figure in percent, with its spread where it is the mean."""
        value = self.values.get(variant)
        return "-" if value is None else percent(value, self.spreads.get(variant) if self.is_mean else None)

    def is_best(self, variant: str) -> bool:
        """Whether it is the best of what does without the domain's own adapter; of all where nothing does."""
        fair = [name for name in self.values if name.endswith("_without_own") or name == "zero_shot"]
        known = {name: value for name in (fair if len(fair) > 1 else self.values) if (value := self.values[name])}
        return variant in known and known[variant] == max(known.values())


def label(variant: str) -> str:
    """A variant's name for people: "semla_without_own" -> "SemLA, own left out"."""
    base = variant.removesuffix("_without_own")
    shown = _LABELS.get(base) or base.replace("_", " ").replace("semla", "SemLA")
    return shown if base == variant else f"{shown}, own left out"


def variants_of(results: Mapping[str, Any]) -> list[str]:
    """Variants of a run in the order they were asked for."""
    scores: Mapping[str, Any] = next(iter((results["domains"] or results["unseen"]).values()), {})
    return list(results["h_mean"] or scores)


def score_rows(results: Mapping[str, Any]) -> Iterator[ScoreRow]:
    """Domains, their harmonic mean, unseen domains, sources."""
    for group in _GROUPS:
        spreads = results["spread"][group]
        for name, values in results[group].items():
            yield ScoreRow(group=group, name=name, values=values, spreads=spreads[name])
        if group == "domains" and results["h_mean"]:
            means, spread = results["h_mean"], results["spread"]["h_mean"]
            yield ScoreRow(group=group, name="h-mean", values=means, spreads=spread, is_mean=True)


def rows_by_group(results: Mapping[str, Any]) -> dict[str, tuple[list[str], list[ScoreRow]]]:
    """Group -> the variants that were measured in it, and its rows."""
    groups = {}
    for group in _GROUPS:
        rows = [row for row in score_rows(results) if row.group == group]
        shown = [name for name in variants_of(results) if any(name in row.values for row in rows)]
        if rows:
            groups[group] = (shown, rows)
    return groups


def terminal_tables(results: Mapping[str, Any]) -> list[Table]:
    """Tables for rich: domains with their h-mean, unseen domains, the source."""
    tables = []
    for group, (shown, rows) in rows_by_group(results).items():
        table = Table(title=_GROUPS[group], title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
        table.add_column("domain", no_wrap=True)
        for name in shown:
            table.add_column(label(name).replace(", own left out", "\nwithout own"), justify="right")
        for row in rows:
            if row.is_mean:
                table.add_section()
            cells = (row.words(name) for name in shown)
            table.add_row(row.name, *cells, style="bold" if row.is_mean else None)
        tables.append(table)
    return tables


def markdown_table(results: Mapping[str, Any]) -> str:
    """One table in Markdown: domains, their h-mean with its spread, unseen combinations, the source."""
    names = variants_of(results)
    lines = [
        "| domain | " + " | ".join(label(name) for name in names) + " |",
        "| --- |" + " ---: |" * len(names),
    ]
    for row in score_rows(results):
        mark = "**" if row.is_mean else ""
        note = {"domains": "", "unseen": " (unseen)", "source": " (source)"}[row.group]
        cells = " | ".join(f"{mark}{row.words(name)}{mark}" for name in names)
        lines.append(f"| {mark}{row.name}{note}{mark} | {cells} |")
    return "\n".join([*lines, "", f"mIoU in percent; {extent_of(results)}; ± standard deviation over seeds.", ""])


def extent_of(results: Mapping[str, Any]) -> str:
    """How many images of which seeds a run saw."""
    count = "all images" if results["images"] == 0 else counted(results["images"], "image")
    left_out = sum(map(len, results["left_out"].values()))
    without = f", without {left_out} that could not be used" if left_out else ""
    seeds = "seed" if len(results["seeds"]) == 1 else "seeds"
    return f"{count} per domain and seed{without}, {seeds} {', '.join(map(str, results['seeds']))}"


def write_card_figures(results: Mapping[str, Any], library: Path, model: Path, command: str) -> list[Path]:
    """Write the section "Figures" of every card whose domain was evaluated; what stood there before is replaced.

    Args:
        results: As written to JSON.
        library: Folder of the adapters; cards are `<library>/<name>/CARD.md`.
        model: The model's folder; its card is `README.md`.
        command: What produced the figures.

    Returns:
        The cards written. Domains without a card are passed over.
    """
    origin = f"mIoU on {len(results['seeds'])} x {counted(results['images'], 'test scene')}, `{command}`:"
    written = []
    for name, scores in results["domains"].items():
        rows = [(label, scores[key]) for key, label in _CARD_ROWS if scores.get(key) is not None]
        written += _replace_section(library / name / "CARD.md", origin, rows)
    rows = [(f"{name}, no adapter", scores.get("zero_shot")) for name, scores in results["source"].items()]
    means, domains = results["h_mean"], counted(len(results["domains"]), "domain")
    rows += [
        (f"{domains}, h-mean: {label.replace('this adapter', 'the own adapter')}", means[key])
        for key, label in _CARD_ROWS
        if means.get(key) is not None
    ]
    written += _replace_section(model / "README.md", origin, [row for row in rows if row[1] is not None])
    return written


def _replace_section(card: Path, origin: str, rows: list[tuple[str, float]]) -> list[Path]:
    if not card.is_file() or not rows:
        return []
    text = card.read_text(encoding="utf-8").split(_CARD_HEADING)[0].rstrip()
    table = "\n".join(["| | mIoU |", "| --- | --- |", *(f"| {label} | {value:.3f} |" for label, value in rows)])
    write_atomically(card, f"{text}\n\n{_CARD_HEADING}\n\n{origin}\n\n{table}\n")
    return [card]
