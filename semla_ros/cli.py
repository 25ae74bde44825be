"""The `semla` command: one entry, one module of `semla_ros.commands` per subcommand, imported only when it is used."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from semla_ros import __version__
from semla_ros.errors import SemlaError

# Each module has add_arguments(parser) and run(arguments) -> exit status; its docstring is the help text.
COMMANDS = {
    "demo": ("demo", "adapt a live ROS 2 node to a drive through changing weather, and measure it"),
    "segment": ("segment", "segment image files with the adapters that fit them"),
    "fetch": ("fetch", "download published models and adapters"),
    "library": ("library", "list, check, add, index and import adapter libraries"),
    "train": ("train", "train the tiny models, adapters and centroids"),
    "benchmark": ("benchmark", "check labelled images and draw them with their labels"),
    "evaluate": ("evaluate", "measure mIoU over the domains, leave-one-out"),
    "replay": ("replay", "run recorded bags through the pipeline and compare variants"),
    "record-demo": ("record_demo", "write a bag of a shipped drive"),
    "record-images": ("record_images", "write a bag of image files, with their labels as ground truth"),
    "engine": ("engine", "build, list, check and clean inference engines"),
    "bench": ("bench", "measure fusion, latency, memory and throughput"),
    "status": ("status", "show a running node's diagnostics as a table"),
    "view": ("view", "live view in a browser or Foxglove"),
}


def build_parser(name: str | None = None) -> argparse.ArgumentParser:
    """The parser with every subcommand's name, and the whole of subcommand `name`."""
    parser = argparse.ArgumentParser(
        prog="semla", description="Semantic segmentation that adapts to the scene by fusing LoRA adapters."
    )
    parser.add_argument("--version", action="version", version=f"semla_ros {__version__}")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="more log lines; twice for debugging")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, (module_name, summary) in COMMANDS.items():
        if command != name:
            subparsers.add_parser(command, help=summary, add_help=False)
            continue
        module = importlib.import_module(f"semla_ros.commands.{module_name}")
        sub = subparsers.add_parser(
            command,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `semla`; returns the exit status: 0, or 2 with one clear line on bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = next((item for item in arguments if not item.startswith("-")), None)
    options = build_parser(name if name in COMMANDS else None).parse_args(arguments)
    level = {0: logging.WARNING, 1: logging.INFO}.get(options.verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        status: int = options.run(options)
    except SemlaError as error:
        print(f"semla {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
