"""Show what a running perception node says of itself on /diagnostics.

Example:
  semla status
  semla status --watch
  semla status --json --node /robot2/perception

Exit status: 0 if all is well, 1 if something is not OK, 2 if no node was heard.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from semla_ros.errors import ConfigError

if TYPE_CHECKING:
    from semla_ros.results import Status

_COLOURS = {"OK": "green", "WARN": "yellow", "ERROR": "red", "STALE": "magenta"}
_SPREAD = re.compile(r"(?P<what>.+) (?P<part>p50|p95|max) \((?P<unit>.+)\)")
_SETTLE_S = 1.2  # after the first message, wait for other nodes that report once per second


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--node",
        default="perception",
        help="name of the node; without a slash first, in every namespace (default: %(default)s)",
    )
    parser.add_argument("--all", action="store_true", help="statuses of every node that reports")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for a node (default: %(default)s)")
    parser.add_argument("--watch", action="store_true", help="keep showing until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from semla_ros.nodes.diagnostics_listener import listen

    console = Console()
    node = "" if arguments.all else arguments.node
    found: dict[str, Status] = {}
    heard: Mapping[str, Status] = {}
    if arguments.watch:
        with Live(Text("waiting for a message on /diagnostics"), console=console, auto_refresh=False) as live:
            for heard in listen(float("inf")):
                found = _only(heard, node)
                live.update(as_table(found), refresh=True)
        return 0
    first_s = None
    for heard in listen(arguments.timeout):
        found = _only(heard, node)
        first_s = first_s or (time.monotonic() if found else None)
        if first_s is not None and (not arguments.all or time.monotonic() - first_s > _SETTLE_S):
            break
    if not found:
        who = "no node" if arguments.all else f"node '{arguments.node}'"
        others = sorted({name.removesuffix(": node") for name in heard if name.endswith(": node")})
        raise ConfigError(
            f"{who} was not heard on /diagnostics within {arguments.timeout:g} s; "
            + (f"--node may be {' or '.join(others)}; " if others else "")
            + "check that it runs and that ROS_DOMAIN_ID is the same"
        )
    if arguments.json:
        print(json.dumps({name: as_dict(report) for name, report in found.items()}, indent=2))
    else:
        console.print(as_table(found))
    return int(any(report.level for report in found.values()))


def as_dict(report: Status) -> dict[str, object]:
    """A status for JSON."""
    return {"level": report.level.name, "message": report.message, "values": dict(report.values)}


def as_table(reports: Mapping[str, Status]) -> Group:
    """A table of all statuses, and one of each one's values."""
    summary = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("Status", "Level", "Message"):
        summary.add_column(heading, overflow="fold")
    rows = sorted(reports.items(), key=lambda item: _place(item[0]))
    for name, report in rows:
        level = report.level.name
        summary.add_row(name, Text(level, style=f"bold {_COLOURS[level]}"), report.message)
    tables = [summary]
    for name, report in rows:
        table = Table(title=name, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim", overflow="fold")
        table.add_column(overflow="fold")
        for key, value in folded(report.values).items():
            table.add_row(f"  {key}", value)
        tables.append(table)
    return Group(*tables)


def _place(name: str) -> tuple[str, int, str]:
    """Where a status stands: by node, and there from the whole to the parts."""
    node, _, what = name.partition(": ")
    order = ("node", "camera", "adaptation")
    first_word = what.partition(" ")[0]
    return node, order.index(first_word) if first_word in order else len(order), name


def folded(values: Mapping[str, str]) -> dict[str, str]:
    """Values without the empty ones, and with the three figures of a latency in one row."""
    result: dict[str, str] = {}
    for key, value in values.items():
        match = _SPREAD.fullmatch(key)
        if match is None:
            if value:
                result[key] = value
            continue
        row = f"{match['what']} ({match['unit']})"
        result[row] = f"{result[row]}   {match['part']} {value}" if row in result else f"{match['part']} {value}"
    return result


def _only(heard: Mapping[str, Status], node: str) -> dict[str, Status]:
    """The statuses of a node; of all nodes where its name is empty."""

    def is_meant(who: str) -> bool:
        return not node or who == node or (not node.startswith("/") and who.endswith(f"/{node}"))

    return {name: report for name, report in heard.items() if is_meant(name.partition(": ")[0])}
