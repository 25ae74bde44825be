"""Tables of what following a drive is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("fusions_per_min", "fusions/min", 1, 2),
    ("most_fusions", "most in a drive", 1, 0),
    ("most_in_a_minute", "most in a minute", 1, 0),
    ("recalls_per_min", "recalls/min", 1, 2),
    ("wrong_family", "wrong family %", 100, 1),
    ("right_weight", "right weight %", 100, 1),
    ("delay_s", "delay s", 1, 2),
    ("event_fusions", "fusions of an event", 1, 0),
    ("miou", "mIoU %", 100, 1),
)  # key, heading, factor, digits
PHOTOGRAPH_COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("fusions", "fusions", 1, 0),
    ("fusions_per_min", "fusions/min", 1, 2),
    ("recalls", "recalls", 1, 0),
    ("off_the_looks", "off the looks' mixes %", 100, 1),
    ("base_weight", "base model %", 100, 1),
)


def _cells(row: Mapping[str, Any], columns: Sequence[tuple[str, str, float, int]]) -> list[str]:
    return ["-" if row[key] is None else f"{factor * row[key]:.{digits}f}" for key, _, factor, digits in columns]


def drive_table(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """A table for rich: kind of drive x way of following it."""
    table = _empty("drives", ("drive", "followed by"), COLUMNS)
    for kind, ways in summary.items():
        for way, row in ways.items():
            table.add_row(kind, way, *_cells(row, COLUMNS), style="bold" if way == "gate" else None)
    return table


def markdown_drives(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The same for a page."""
    headings = ["drive", "followed by", *(heading for _, heading, _, _ in COLUMNS)]
    lines = [f"| {' | '.join(headings)} |", f"| --- | --- |{' ---: |' * len(COLUMNS)}"]
    for kind, ways in summary.items():
        for way, row in ways.items():
            cells = [kind, f"**{way}**" if way == "gate" else way, *_cells(row, COLUMNS)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def photograph_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table for rich: what can be told of photographs without truth."""
    table = _empty("photographs", ("followed by",), PHOTOGRAPH_COLUMNS)
    for way, row in rows.items():
        table.add_row(way, *_cells(row, PHOTOGRAPH_COLUMNS), style="bold" if way == "gate" else None)
    return table


def _empty(title: str, names: Sequence[str], columns: Sequence[tuple[str, str, float, int]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    for name in names:
        table.add_column(name)
    for _, heading, _, _ in columns:
        table.add_column(heading, justify="right")
    return table
