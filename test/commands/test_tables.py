import io
import re

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from semla_ros.commands.tables import print_table

NAMES = ["base", "semla@a-library-with-a-long-name", "boulevard-rain-night"]
VARIANTS = [f"variant {number}" for number in range(9)]


def printed(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(table, console)
    return console.file.getvalue()


def figures() -> Table:
    table = Table(title="domains", box=box.SIMPLE_HEAD)
    table.add_column("domain", no_wrap=True)
    for name in VARIANTS:
        table.add_column(name, justify="right")
    for row, name in enumerate(NAMES):
        table.add_row(name, *(f"{column}{row}.25 ±0.{column}" for column in range(len(VARIANTS))))
    return table


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_table_is_as_wide_as_the_terminal_and_no_figure_is_cut(width: int) -> None:
    told = printed(figures(), width)
    assert max(map(len, told.splitlines())) <= width
    assert "…" not in told
    assert sorted(re.findall(r"\d\d\.25 ±0\.\d", told)) == sorted(
        f"{column}{row}.25 ±0.{column}" for column in range(9) for row in range(3)
    )
    assert told.count("domains") == 1


def test_columns_that_do_not_fit_stand_below_beside_the_names_of_the_rows() -> None:
    parts = printed(figures(), 60).count("base")
    assert parts > 1
    assert printed(figures(), 200).count("base") == 1


@pytest.mark.parametrize("width", [60, 80])
def test_long_words_are_folded_and_none_is_lost(width: int) -> None:
    table = Table("image", "adapters", "of", box=None)
    image, adapters = f"{'x' * 70}.png", "old-town-rain 0.61, old-town-fog 0.39"
    table.add_row(image, adapters, "y" * 90)
    told = printed(table, width)
    assert max(map(len, told.splitlines())) <= width
    assert told.count("x") in (70, 140)  # once in each part
    assert told.count("y") == 90
