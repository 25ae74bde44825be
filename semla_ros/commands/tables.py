"""Tables as wide as the terminal, or as COLUMNS says: nothing in them is cut."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

from rich.console import Console, RenderableType
from rich.table import Column, Table

_TEXT_WIDTH = 24  # of a column of text where it must be: longer words are folded
_UNBOUNDED = 10_000


@dataclass(frozen=True)
class _Sized:
    """A column, the least width that it can do with, and the one at which nothing is wrapped."""

    column: Column
    least: int
    most: int


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table; columns that do not fit beside the others come below, beside the first one once more.

    Args:
        table: Its first column names the rows. Columns aligned to the right hold figures, which stay in one piece;
            others hold text, which is wrapped.
        console: Where to; standard output by default.
    """
    console = console or Console()
    if _measured(table, console)[1] <= console.width:
        console.print(table)
        return
    first, *others = (_sized(column, console) for column in table.columns)
    parts = [[first]]
    for item in others:
        if len(parts[-1]) > 1 and _spare(table, [*parts[-1], item], console) < 0:
            parts.append([first])
        parts[-1].append(item)
    for number, items in enumerate(parts):
        part = _with_widths(table, items, _spare(table, items, console))
        if number:
            part.title = None
            console.print()
        console.print(part)


def _sized(column: Column, console: Console) -> _Sized:
    words, lines = zip(*(_measured(cell, console) for cell in (column.header, *column.cells)), strict=True)
    if column.justify == "right":
        least = max(words[0], *lines[1:], 1)
        return _Sized(column, least, least)
    return _Sized(replace(column, overflow="fold", no_wrap=False), max(1, min(max(words), _TEXT_WIDTH)), max(lines))


def _spare(table: Table, items: list[_Sized], console: Console) -> int:
    """Cells that are left beside columns of their least widths; negative where they do not fit."""
    return console.width - _measured(_with_widths(table, items, 0), console)[1]


def _with_widths(table: Table, items: list[_Sized], spare: int) -> Table:
    """The table with these columns only, among which spare cells are shared by what each could use."""
    share = min(1.0, max(spare, 0) / max(sum(item.most - item.least for item in items), 1))
    part = copy(table)
    part.columns = []
    for place, item in enumerate(items):
        is_too_wide = spare < 0 and item.column.justify != "right"  # rich folds the text further
        width = None if is_too_wide else item.least + int(share * (item.most - item.least))
        part.columns.append(replace(item.column, width=width, _index=place))
    return part


def _measured(item: RenderableType, console: Console) -> tuple[int, int]:
    """Width of the longest word, and that of the longest line."""
    least, most = console.measure(item, options=console.options.update(width=_UNBOUNDED))
    return least, most
