"""Show a running node's images, weights and diagnostics live, in Foxglove or in Rerun.

Example:
  pip install 'semla_ros[view]'
  semla view
  semla view --node /car/perception --host 0.0.0.0 --port 9000
  semla view --topics '/ground_truth|/segment'
  semla view --rerun viewer
  semla view --rerun drive.rrd

Then open the link that it prints, or Foxglove on another machine with "Open connection" and the ws:// address, and
import the layout file that it names. No ROS tools are needed on the viewing side. Ctrl-C ends it.

With --rerun images, masks in class colours, the mix over time and the map of the library go to the Rerun viewer
instead, or into a file: pip install 'semla_ros[rerun]'.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from semla_ros.commands.options import add_library_option, rerun_target
from semla_ros.errors import ConfigError, counted
from semla_ros.extras import require
from semla_ros.lab.processes import terminate_like_interrupt
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.finding import find_library
from semla_ros.resources import share_folder

if TYPE_CHECKING:
    from semla_ros.nodes.rerun_bridge import RerunBridge
    from semla_ros.nodes.view_bridge import ViewBridge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--node", default="/perception", help="full name of the node (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: other machines, too (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8765, help="port; 0: any that is free (default: %(default)s)")
    parser.add_argument(
        "--rerun",
        type=rerun_target,
        default="",
        metavar="TARGET",
        help="FILE.rrd, 'viewer', which is started, or the address of one: rerun+http://HOST:9876/proxy",
    )
    add_library_option(parser, "the one shipped with semla-tiny, for the map that --rerun draws")
    parser.add_argument("--topics", metavar="REGEX", help="show topics that this matches, too")
    parser.add_argument(
        "--duration", type=float, default=float("inf"), metavar="S", help="end after so many seconds (default: never)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    if not 0 <= arguments.port <= 65535:
        raise ConfigError(f"--port must be 0 to 65535, got {arguments.port}")
    require("ros", "rerun" if arguments.rerun else "view")
    terminate_like_interrupt()  # a recording that is cut off lacks its index
    if arguments.rerun:
        return _run_rerun(arguments)
    from semla_ros.nodes.view_bridge import ViewBridge

    with ViewBridge(arguments.node, arguments.host, arguments.port, arguments.topics) as bridge:
        _serve(bridge, introduction(bridge), arguments.duration)
    return 0


def _run_rerun(arguments: argparse.Namespace) -> int:
    from semla_ros.lab.report.embedding_map import scenery_of
    from semla_ros.lab.report.rerun_log import RerunLog
    from semla_ros.nodes.rerun_bridge import RerunBridge

    library = AdapterLibrary.load(find_library(arguments.library), eager_bytes=0)
    with closing(RerunLog(arguments.rerun, is_dated=True)) as log:
        log.library(scenery_of(library))
        with closing(RerunBridge(arguments.node, log)) as bridge:
            _serve(bridge, [f"{bridge.node_name} to {arguments.rerun}; Ctrl-C ends it"], arguments.duration)
    return 0


def _serve(bridge: ViewBridge | RerunBridge, introduced: Iterable[str], duration_s: float) -> None:
    """Pass messages on until the time is over or Ctrl-C, and say what there is."""
    console = Console(highlight=False)
    for line in introduced:
        console.print(line, soft_wrap=True)
    offered = 0
    for _ in _turns(bridge, duration_s):
        if len(bridge.shown) > offered:
            offered = len(bridge.shown)
            console.print(f"topics: {' '.join(sorted(bridge.shown))}", soft_wrap=True)
    missing = "" if offered else f": {bridge.node_name} was not there; is ROS_DOMAIN_ID the same?"
    console.print(f"passed on {counted(sum(bridge.sent.values()), 'message')}{missing}", soft_wrap=True)


def _turns(bridge: ViewBridge | RerunBridge, duration_s: float) -> Iterator[None]:
    """Let a bridge work until the time is over or Ctrl-C."""
    end_s = time.monotonic() + duration_s
    with suppress(KeyboardInterrupt):
        while time.monotonic() < end_s:
            bridge.spin()
            yield


def introduction(bridge: ViewBridge) -> list[str]:
    """What a user needs to look at it."""
    layout: Path = share_folder() / "config" / "foxglove_layout.json"
    return [
        f"serving {bridge.node_name} on ws://{bridge.host}:{bridge.port}",
        f"browser: {bridge.app_url}",
        f"layout:  in Foxglove, Layouts > Import from file > {layout}",
    ]
