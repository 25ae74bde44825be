import io

from rich.console import Console

from semla_ros.lab.report.page import Cell, Table
from semla_ros.lab.report.terminal import terminal_table

TABLE = Table(
    head=["variant", "mIoU", "frames", "examples"],
    rows=[
        ["base", "0.210", "90", Cell(links=[("a.jpg", "1")])],
        [Cell(text="semla"), Cell(text="0.490", spread="±0.010", tone="good"), "90", ""],
    ],
    strong=[1],
)


def lines(*, width: int = 80, **options) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_table(TABLE, **options))
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_a_page_s_table_has_the_same_figures_in_the_terminal_but_links() -> None:
    assert lines() == [["variant", "mIoU", "frames"], ["base", "0.210", "90"], ["semla", "0.490", "±0.010", "90"]]


def test_columns_can_be_left_out() -> None:
    assert lines(without=["frames"])[0] == ["variant", "mIoU"]
