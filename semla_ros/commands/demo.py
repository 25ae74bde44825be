"""Adapt a live ROS 2 node to a drive through changing weather, and measure it.

Renders a drive through day, dusk, night, rain, fog and snow, plays it to the perception node, a process of its own,
over DDS on this machine only, and compares the masks that come back with the truth and with the same model without
adaptation: `semla record-demo` and `semla replay --rate live` in one, with a verdict. Writes report.html, summary.json,
trace.jsonl, timeline.png, contact_sheet.png, replay.mp4 and the node's log.

Example:
  semla demo --out out/demo
  semla demo --fast --seed 3

Exit status: 0 if no promise was broken, 1 if masks were missing or adaptation did not help, 2 if it could not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console

from semla_ros.commands.options import add_library_option, output_folder
from semla_ros.commands.tables import print_table
from semla_ros.config import SemlaConfig
from semla_ros.lab.demo.demo_bag import DRIVE_S, DemoBagOptions, parse_size
from semla_ros.lab.demo.run import FAST_SPEED, drive_options, replay_options, run_demo
from semla_ros.lab.demo.verdict import BROKEN, KEPT, NOT_JUDGED
from semla_ros.lab.processes import terminate_like_interrupt
from semla_ros.lab.report.replay_page import stretch_table, variant_table
from semla_ros.lab.report.terminal import terminal_table

_STYLES = {KEPT: "green", BROKEN: "bold red", NOT_JUDGED: "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    default = DemoBagOptions()
    parser.add_argument("--out", type=output_folder, default="out/demo", metavar="DIR", help="results (%(default)s)")
    parser.add_argument(
        "--fast", action="store_true", help="play a fifth of the images five times as fast, and expect less, for tests"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="another street (%(default)s)")
    parser.add_argument(
        "--rate-hz", default=0.0, type=float, metavar="HZ", help="images per second; 0 = by the number of cores"
    )
    parser.add_argument("--duration-s", type=float, default=DRIVE_S, metavar="S", help="of the drive (%(default)s)")
    parser.add_argument("--size", default=f"{default.width}x{default.height}", metavar="WxH", help="(%(default)s)")
    parser.add_argument("--model", default=SemlaConfig.model, help="id, path or hf://owner/repo (%(default)s)")
    add_library_option(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON on standard output, all else on standard error"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; returns 0, 1 where a promise was not kept, or 130 after an interrupt."""
    speed = FAST_SPEED if arguments.fast else 1.0
    width, height = parse_size(arguments.size)
    drive = drive_options(
        arguments.rate_hz, arguments.duration_s, speed, seed=arguments.seed, width=width, height=height
    )  # fmt: skip
    options = replay_options(arguments.model, arguments.library, speed)
    terminate_like_interrupt()
    console = Console(stderr=arguments.json)
    summary = run_demo(arguments.out, drive, options, console)
    _print_tables(summary, console)
    _print_checks(summary, console)
    console.print(
        f"\nResults in {arguments.out}: report.html, timeline.png, contact_sheet.png, replay.mp4, summary.json",
        highlight=False,
        soft_wrap=True,
    )
    if arguments.json:
        json.dump(summary, sys.stdout, indent=1, ensure_ascii=False)
        print()
    return 130 if summary["interrupted"] else 0 if summary["passed"] else 1


def _print_tables(summary: Mapping[str, Any], console: Console) -> None:
    if (table := stretch_table(summary)) is not None:
        led = summary["right_adapter_led"]
        stretches = [visit["segment"] for visit in summary["variants"]["semla"]["visits"]]
        right = [f"{led[name]:.0%}" if name in led else "–" for name in stretches]
        rows = [[*row, share] for row, share in zip(table.rows, right, strict=True)]
        table = replace(table, head=[*table.head, "right adapter led"], rows=rows)
        print_table(terminal_table(table, without=["heaviest"]), console)
    variants = variant_table(summary["variants"], summary["primary"], summary["reference"], rate=summary["rate"])
    console.print()
    print_table(terminal_table(variants, without=["frames"]), console)
    console.print()


def _print_checks(summary: Mapping[str, Any], console: Console) -> None:
    for check in summary["checks"]:
        mark = f"[{_STYLES[check['verdict']]}]{check['verdict']:<{len(NOT_JUDGED)}}[/]"
        note = " [grey62](relaxed for --fast)[/]" if check["is_relaxed"] else ""
        note += f"; {check['explanation']}" if check["explanation"] else ""
        console.print(f"{mark} {check['sentence']}{note}", highlight=False, soft_wrap=True)
    if summary["interrupted"]:
        console.print("interrupted; the results are those of the frames done so far", style="yellow")
    elif summary["drive"]["speed"] > 1:
        console.print("[grey62]--fast: which adapter led in each segment is reported above, but not judged[/]")
