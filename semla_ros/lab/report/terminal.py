"""Tables of pages, in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table as TerminalTable
from rich.text import Text

from semla_ros.lab.report.page import Cell, Table

_STYLES = {"good": "green", "bad": "red", "best": "bold"}


def terminal_table(table: Table, *, without: Sequence[str] = ()) -> TerminalTable:
    """The same figures in the same order, without some columns and those that hold nothing but links."""
    drawn = TerminalTable(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    kept = [
        column
        for column, title in enumerate(table.head)
        if title not in without and any(_text(row[column]).plain for row in table.rows)
    ]
    for column in kept:
        drawn.add_column(table.head[column], justify="left" if column in (0, *table.left) else "right")
    for index, row in enumerate(table.rows):
        drawn.add_row(*(_text(row[column]) for column in kept), style="bold" if index in table.strong else None)
    return drawn


def _text(cell: Cell | str) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    return Text(f"{cell.text} {cell.spread}".strip(), style=_STYLES.get(cell.tone, ""))
