"""Look at labelled images before anything is trained or measured on them.

    semla benchmark check camvid --data ~/datasets/camvid --out out/camvid.png

A benchmark file says which images there are and what their labels mean; docs/own_camera.md shows how to write one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semla_ros.commands.options import Listed, output_file
from semla_ros.commands.tables import print_table
from semla_ros.errors import ConfigError, known_names
from semla_ros.lab.evaluation.datasets.benchmark import DiskBenchmark, load_benchmark
from semla_ros.lab.evaluation.datasets.inspection import SPLITS, DomainFindings, inspect_domain
from semla_ros.lab.report.progress import progress

_MOST_LINES = 10  # of one domain's problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla benchmark`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = (
        "Images, labels, sizes and classes of each domain; what is missing or doubtful (exit status 2 if anything is)."
    )
    check = actions.add_parser("check", help="read every image and label of a benchmark file", description=text)
    check.add_argument("benchmark", metavar="NAME|FILE", help="semla20, camvid, idd_lite, or a benchmark file")
    check.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder that its images are below")
    check.add_argument("--domains", action=Listed, default=[], metavar="NAME", help="only these; default: all")
    check.add_argument("--images", type=int, default=0, metavar="N", help="read N of each split; default: all")
    check.add_argument(
        "--out", type=output_file, metavar="PNG", help="contact sheet: images with their labels drawn over"
    )
    check.add_argument("--json", action="store_true", help="for scripts")


def run(arguments: argparse.Namespace) -> int:
    """Check; 2 where something is missing or doubtful."""
    root = arguments.data.expanduser()
    benchmarks = {split: load_benchmark(arguments.benchmark, root, split) for split in SPLITS}
    one = benchmarks["val"]
    domains = list(dict.fromkeys(arguments.domains)) or list(one.domains)
    if unknown := [name for name in domains if name not in one.domains]:
        raise ConfigError(
            f"unknown domain '{unknown[0]}' of benchmark '{one.name}'; {known_names(unknown[0], one.domains)}"
        )
    found = []
    with progress() as bars:
        for name in domains:
            advance = partial(bars.advance, bars.add_task(f"reading {name}", total=None))
            found.append(inspect_domain(benchmarks, name, images=arguments.images, on_image=advance))
    if arguments.json:
        domains_json = {item.name: item.as_json() for item in found}
        print(json.dumps({"benchmark": one.name, "licence": one.licence, "domains": domains_json}, indent=1))
    else:
        _print(one, found)
    if arguments.out:
        _write_sheet(arguments.out, found)
        print(f"contact sheet: {arguments.out}")
    return 2 if any(item.problems for item in found) else 0


def _print(benchmark: DiskBenchmark, found: Sequence[DomainFindings]) -> None:
    console = Console()
    console.print(Text(f"{benchmark.title or benchmark.name}; licence: {benchmark.licence or 'not stated'}"))
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("domain", "role", "train", "val", "sizes", "no class"):
        table.add_column(heading, justify="right" if heading in ("train", "val", "no class") else "left")
    for item in found:
        sizes = ", ".join(f"{size} ({count})" for size, count in item.sizes.most_common(3))
        more = f" and {len(item.sizes) - 3} more" if len(item.sizes) > 3 else ""
        counts = (str(item.images.get(split, "-")) for split in SPLITS)
        table.add_row(Text(item.name), item.role, *counts, sizes + more, f"{item.unlabelled_share:.1%}")
    print_table(table, console)
    read = [item for item in found if item.sizes]
    for class_names in dict.fromkeys(item.class_names for item in read):
        print_table(_share_table(class_names, [item for item in read if item.class_names == class_names]), console)
    for item in found:
        for line in item.problems[:_MOST_LINES]:
            console.print(Text(f"{item.name}: {line}"), style="yellow", soft_wrap=True)
        if len(item.problems) > _MOST_LINES:
            console.print(f"{item.name}: and {len(item.problems) - _MOST_LINES} more", style="yellow")
    count = sum(len(item.problems) for item in found)
    console.print(f"missing or doubtful: {count}" if count else "every pair is there and sound")


def _share_table(class_names: Sequence[str], found: Sequence[DomainFindings]) -> Table:
    table = Table(title="share of the labelled pixels (%)", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("class")
    for item in found:
        table.add_column(Text(item.name), justify="right")
    for name in class_names:
        table.add_row(Text(name), *(f"{100 * item.shares[name]:.2f}" for item in found))
    return table


def _write_sheet(path: Path, found: Sequence[DomainFindings]) -> None:
    from semla_ros.lab.report.label_sheet import SheetRow, write_label_sheet

    rows = [
        SheetRow(
            title=f"{item.name}: {item.role}, " + ", ".join(f"{count} {split}" for split, count in item.images.items()),
            class_names=item.class_names,
            images=item.shown,
        )
        for item in found
        if item.shown
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_label_sheet(path, rows)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None
