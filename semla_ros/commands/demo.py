"""Adapt a live ROS 2 node to a drive through changing weather, and measure it.

Starts a camera node, which drives through day, dusk, night, rain, fog and snow, and the perception node, both as real
processes over DDS on this machine only. Compares the node's masks with the truth and with the same model without
adaptation, and writes summary.json, timeline.png, drive.mp4, contact_sheet.png and the nodes' logs.

Example:
  semla demo --out out/demo
  semla demo --fast --seed 3

Exit status: 0 if every promise was kept, 1 if masks were missing or adaptation did not help, 2 if it could not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from semla_ros.lab.demo.settings import DemoSettings, parse_size

if TYPE_CHECKING:
    from semla_ros.lab.demo.run import DemoOutcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--fast", action="store_true", help="a drive of 18 s with lower expectations, for tests")
    parser.add_argument("--seed", type=int, default=DemoSettings.seed, help="another street (default: %(default)s)")
    parser.add_argument(
        "--rate-hz",
        default=0.0,
        type=_rate,
        metavar="HZ",
        help="camera frames per second (default: auto, by the number of processor cores)",
    )
    parser.add_argument(
        "--duration-s", type=float, default=0.0, help="length of the drive (default: 90, or 18 with --fast)"
    )
    parser.add_argument("--size", default="256x192", help="camera image in pixels (default: %(default)s)")
    parser.add_argument("--model", default=DemoSettings.model, help="model id or path (default: %(default)s)")
    parser.add_argument(
        "--library", default="", help="adapter library folder (default: the one shipped with the model)"
    )
    parser.add_argument("--no-live", action="store_true", help="a line every 5 s instead of the live table")
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON on standard output, all else on standard error"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; returns 0, or 1 where a promise was not kept."""
    from semla_ros.lab.demo.run import run_demo

    width, height = parse_size(arguments.size)
    settings = DemoSettings(
        out=arguments.out,
        is_fast=arguments.fast,
        seed=arguments.seed,
        rate_hz=arguments.rate_hz,
        drive_s=arguments.duration_s,
        width=width,
        height=height,
        shows_live=not arguments.no_live,
        model=arguments.model,
        library=arguments.library,
    )
    console = Console(stderr=arguments.json)
    outcome = run_demo(settings, console)
    _report(outcome, settings, console)
    if arguments.json:
        json.dump(outcome.summary, sys.stdout, indent=2, ensure_ascii=False)
        print()
    return 0 if outcome.passed else 1


def _rate(words: str) -> float:
    value = 0.0 if words == "auto" else float(words)
    if value <= 0 and words != "auto":
        raise argparse.ArgumentTypeError(f"must be positive, or 'auto', got {words}")
    return value


def _report(outcome: DemoOutcome, settings: DemoSettings, console: Console) -> None:
    table = Table(title="mIoU by segment", title_justify="left", header_style="grey62")
    for heading in ("segment", "frames", "base", "adapted", "gain", "right adapter led"):
        table.add_column(heading, justify="left" if heading == "segment" else "right")
    score = outcome.score
    for segment in (segment for segment in score.segments if segment.is_pure):
        right = segment.heaviest_adapter_right_fraction
        table.add_row(
            segment.name, str(segment.frames), f"{segment.base:.3f}", f"{segment.adapted:.3f}",
            f"{segment.adapted - segment.base:+.3f}", "-" if right is None else f"{right:.0%}",
        )  # fmt: skip
    table.add_section()
    for name, count, base, adapted, style in (
        ("shifted segments", sum(segment.frames for segment in score.segments if segment.is_shifted), score.base,
         score.adapted, "bold"),
        ("with transitions", len(score.frames), score.base_all, score.adapted_all, ""),
    ):  # fmt: skip
        table.add_row(name, str(count), f"{base:.3f}", f"{adapted:.3f}", f"{adapted - base:+.3f}", style=style)
    console.print(table)
    for check in outcome.checks:
        mark = "[green]kept  [/]" if check.passed else "[bold red]BROKEN[/]"
        note = " [grey62](relaxed for --fast)[/]" if check.is_relaxed else ""
        console.print(f"{mark} {check.sentence}{note}", highlight=False, soft_wrap=True)
    if settings.is_fast:
        console.print("[grey62]--fast: which adapter led in each segment is reported above, but not judged[/]")
    console.print(
        f"\nResults in {settings.out}: timeline.png, drive.mp4, contact_sheet.png, summary.json", highlight=False
    )
