"""The report over many bags: what came out in all, and a line per bag that leads to its own report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semla_ros import __version__
from semla_ros.errors import counted
from semla_ros.lab.report.page import Cell, Page, Section, Table, write_page
from semla_ros.lab.report.replay_page import (
    VARIANTS_NOTE,
    difference,
    duration,
    figure,
    gain_cell,
    table_of,
    variant_table,
    worklist_section,
)


def write_many_report(path: Path, merged: Mapping[str, Any]) -> None:
    """Write the HTML file.

    Args:
        path: The file; the bags' own reports lie in folders beside it.
        merged: What the `summary.json` of many bags holds.
    """
    primary, reference = merged["primary"], merged["reference"]
    complete = sum(bool(bag["complete"]) for bag in merged["bags"])
    page = Page(
        title=f"Replay of {counted(len(merged['bags']), 'bag')}",
        subtitle=f"{counted(merged['frames'], 'frame')} over {duration(merged['duration_s'])} of recording · "
        f"{counted(complete, 'bag')} complete",
        sections=[
            Section(
                title="All bags together",
                note=f"Pixels of all bags pooled; confidence and flicker weighted by frames. {VARIANTS_NOTE}",
                parts=[variant_table(merged["variants"], primary, reference)],
            ),
            Section(
                title="By bag",
                note="mIoU of each variant; the name leads to the bag's own report.",
                parts=[_by_bag(path.parent, merged, primary, reference)],
            ),
            *([worklist_section(merged["worklist"])] if merged["worklist"] else []),
        ],
        foot=f"semla_ros {__version__} · figures in summary.json",
    )
    write_page(path, page)


def _by_bag(folder: Path, merged: Mapping[str, Any], primary: str, reference: str | None) -> Table:
    rows: list[dict[str, Cell | str]] = []
    for bag in merged["bags"]:
        report, miou, outside = f"{bag['out']}/report.html", bag["miou"], bag["out_of_library_s"]
        trouble = bag["error"] or ("" if bag["complete"] else "not complete")
        remarks = "; ".join(filter(None, [trouble, *bag["problems"]]))
        row: dict[str, Cell | str] = {
            "bag": Cell(links=[(report, bag["out"])]) if (folder / report).is_file() else bag["out"],
            **{name: figure(miou.get(name)) for name in merged["variants"]},
            f"{primary} − {reference}": gain_cell(difference(miou.get(primary), miou.get(reference))),
            "out of library": "–" if outside is None else f"{outside:.1f} s",
            "frames": str(bag["frames"]),
            "remarks": Cell(text=remarks, tone="bad" if trouble else "") if remarks else "–",
        }
        rows.append(row)
    return table_of(rows, left=("remarks",))
