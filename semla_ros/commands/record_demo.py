"""Write a bag of a shipped drive: cameras, calibration, ground truth, and the weather's name for each stretch.

Example: semla record-demo --out out/demo-bag --frames 1000 --seed 7
"""

from __future__ import annotations

import argparse
import json
import os
import time

from rich.console import Console

from semla_ros.commands.options import Listed, output_folder
from semla_ros.errors import counted
from semla_ros.lab.demo.demo_bag import DemoBagOptions, parse_size, record_demo_bag
from semla_ros.lab.report.progress import progress
from semla_ros.lab.world.cities import CITIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    default = DemoBagOptions()
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="folder of the bag; must not exist"
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=default.frames,
        metavar="N",
        help="images in all, of the cameras in turn (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="which streets (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=0.0, metavar="HZ", help="images of each camera per second; 0 = a drive of 90 s"
    )
    parser.add_argument(
        "--cameras",
        action=Listed,
        default=list(default.cameras),
        metavar="NAME",
        help=f"names of the cameras ({','.join(default.cameras)})",
    )
    parser.add_argument(
        "--size", default=f"{default.width}x{default.height}", metavar="WxH", help="pixels (%(default)s)"
    )
    cities = sorted(CITIES)
    parser.add_argument(
        "--city", choices=cities, default=default.city, metavar="CITY", help=f"{', '.join(cities)} (%(default)s)"
    )
    parser.add_argument(
        "--transport", choices=("raw", "jpeg", "png"), default=default.transport, help="image messages (%(default)s)"
    )
    parser.add_argument(
        "--storage", choices=("mcap", "sqlite3"), default=default.storage, help="bag format (%(default)s)"
    )
    parser.add_argument(
        "--compression",
        choices=("none", "chunk", "message", "file"),
        default=default.compression,
        help="of the bag (%(default)s); 'chunk' is mcap's own",
    )
    parser.add_argument("--no-truth", action="store_true", help="leave the label topics out")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="processes that render; 0 = one per core")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the bag."""
    width, height = parse_size(arguments.size)
    options = DemoBagOptions(
        frames=arguments.frames,
        seed=arguments.seed,
        rate_hz=arguments.rate,
        cameras=tuple(arguments.cameras),
        width=width,
        height=height,
        city=arguments.city,
        transport=arguments.transport,
        storage=arguments.storage,
        compression=arguments.compression,
        has_truth=not arguments.no_truth,
    )
    began = time.perf_counter()
    console = Console(stderr=True)
    with progress(console) as bars:
        task = bars.add_task("recording", total=options.frames)
        record_demo_bag(
            arguments.out,
            options,
            jobs=arguments.jobs or os.cpu_count() or 1,
            progress=lambda done: bars.update(task, completed=done),
        )
    size_bytes = sum(path.stat().st_size for path in arguments.out.iterdir())
    written = {
        "bag": str(arguments.out),
        "frames": options.frames,
        "cameras": list(options.cameras),
        "rate_hz": options.rate_hz,
        "duration_s": options.duration_s,
        "bytes": size_bytes,
    }
    if arguments.json:
        print(json.dumps(written))
    else:
        took_s = time.perf_counter() - began
        names = " and ".join(options.cameras)
        console.print(
            f"wrote {arguments.out}: {counted(options.frames, 'frame')} ({names}), {options.duration_s:.0f} s at "
            f"{options.rate_hz:g} Hz, {size_bytes / 1e6:.0f} MB, in {took_s:.0f} s\n"
            f"replay it: semla replay {arguments.out} --out out/replay",
            soft_wrap=True,
            highlight=False,
        )
    return 0
