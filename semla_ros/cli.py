"""The `semla` command, a module of `semla_ros.commands` per subcommand, imported only when it is used; and both nodes.

The nodes are started from here, so that what they cannot do without is named where it is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from semla_ros import __version__
from semla_ros.errors import SemlaError, known_names
from semla_ros.extras import missing_extra, require
from semla_ros.interrupts import end_by_interrupts, raise_interrupts

_WRONG_CHOICE = re.compile(r"invalid choice: '?([^']*)'? \(choose from (.*)\)")

# Each module has add_arguments(parser) and run(arguments) -> exit status; its docstring is the help text.
COMMANDS = {
    "demo": ("demo", "adapt a live ROS 2 node to a drive through changing weather, and measure it"),
    "segment": ("segment", "segment image files with the adapters that fit them"),
    "fetch": ("fetch", "download published models and adapters"),
    "library": ("library", "look into adapter libraries; check, add to, index and import them"),
    "train": ("train", "train the tiny models, adapters and centroids"),
    "benchmark": ("benchmark", "check labelled images and draw them with their labels"),
    "evaluate": ("evaluate", "measure mIoU over the domains, leave-one-out"),
    "compare": ("compare", "compare the summaries of two replays"),
    "replay": ("replay", "run recorded bags through the pipeline and compare variants"),
    "record-demo": ("record_demo", "write a bag of a shipped drive"),
    "record-images": ("record_images", "write a bag of image files, with their labels as ground truth"),
    "engine": ("engine", "build, list, check and clean inference engines"),
    "bench": ("bench", "measure fusion, latency, memory and throughput"),
    "status": ("status", "show a running node's diagnostics as a table"),
    "view": ("view", "live view in a browser or Foxglove"),
    "completion": ("completion", "completion of commands and options for a shell"),
}
# The extras without which a command would stop somewhere on its way.
_EXTRAS = {
    "demo": ("lab", "ros"),
    "train": ("lab",),
    "evaluate": ("lab",),
    "replay": ("lab",),
    "record-demo": ("lab",),
    "record-images": ("lab",),
    "status": ("ros",),
}
_OPTIONS = ("ray", "rerun")  # each needs the extra of its name


class Parser(argparse.ArgumentParser):
    """Names the nearest choice where one is misspelt, and does not pass over a help text that cannot be written."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        if wrong := _WRONG_CHOICE.search(message):
            known = [item.strip(" '") for item in wrong[2].split(",")]
            message = f"{message[: wrong.start()]}there is no '{wrong[1]}'; {known_names(wrong[1], known)}"
        if "are required" in message:
            message += " (a list of an option goes on to the next option: put files before it, or '--' between)"
        super().error(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)


def build_parser(*names: str) -> argparse.ArgumentParser:
    """The parser with every subcommand's name, and the whole of the subcommands `names`.

    Of several, those that cannot be loaded without an extra that is not installed are left at their name.
    """
    parser = Parser(prog="semla", description="Semantic segmentation that adapts to the scene by fusing LoRA adapters.")
    parser.add_argument("--version", action="version", version=f"semla_ros {__version__}")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="more log lines; twice for debugging")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, (module_name, summary) in COMMANDS.items():
        module = _load(module_name, is_alone=len(names) == 1) if command in names else None
        if module is None:
            subparsers.add_parser(command, help=summary, add_help=False)
            continue
        sub = subparsers.add_parser(
            command,
            help=summary,
            description=_as_wide_as_the_terminal(module.__doc__ or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def _as_wide_as_the_terminal(text: str) -> str:
    """Paragraphs are wrapped; those with indented lines, which are examples, stay as they are."""
    width = max(40, shutil.get_terminal_size().columns - 2)
    paragraphs = text.strip("\n").split("\n\n")
    return "\n\n".join(part if "  " in part else textwrap.fill(part, width) for part in paragraphs)


def _load(name: str, *, is_alone: bool) -> ModuleType | None:
    try:
        return importlib.import_module(f"semla_ros.commands.{name}")
    except ImportError as error:
        if is_alone or missing_extra(error) is None:
            raise
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `semla`; returns the exit status: 0, or 2 with one clear line on bad input and on what cannot be written."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = next((item for item in given if not item.startswith("-")), "")
    said_by = f"semla {name}" if name in COMMANDS else "semla"
    try:
        try:
            return _run(given, name)
        finally:
            if sys.stdout is not None:  # as it is where the shell closed it
                sys.stdout.flush()  # here, where a full disk or a reader that went away can still be told
    except ImportError as error:
        if (told := missing_extra(error, *_EXTRAS.get(name, ()))) is None:
            raise
        return _told(f"{said_by}: {told}")
    except SemlaError as error:
        return _told(f"{said_by}: {error}")
    except BrokenPipeError:
        return _told(f"{said_by}: what reads the output has ended")
    except OSError as error:
        logging.getLogger(__name__).debug("in full", exc_info=True)
        where = f"{error.filename}: " if error.filename is not None else ""
        return _told(f"{said_by}: {where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def perception() -> int:
    """Run the node `perception`; status 2 with one line where it cannot start: a package is missing, ROS refuses to."""
    return _run_node("perception", "semla_ros.nodes.perception")


def scene_camera() -> int:
    """Run the node `scene_camera`, likewise."""
    return _run_node("scene_camera", "semla_ros.lab.demo.scene_camera_node")


def _run_node(name: str, module: str) -> int:
    end_by_interrupts()
    try:
        node = importlib.import_module(module)
    except ImportError as error:
        if (told := missing_extra(error)) is None:
            raise
        return _told(f"{name}: {told}")
    try:
        status: int = node.main()
    except SemlaError as error:
        return _told(f"{name}: {error}")
    return status


def _run(arguments: Sequence[str], name: str) -> int:
    end_by_interrupts()
    try:
        from rich.console import Console

        Console.on_broken_pipe = _raise_again  # type: ignore[method-assign, assignment]  # rich would end the process without a word
        options = build_parser(name).parse_args(arguments)
    finally:
        raise_interrupts()
    level = {0: logging.WARNING, 1: logging.INFO}.get(options.verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    require(*_EXTRAS.get(options.command, ()), *(name for name in _OPTIONS if getattr(options, name, "")))
    status: int = options.run(options)
    return status


def _raise_again(_console: object) -> NoReturn:
    raise  # called where the error has just been caught


def _told(line: str) -> int:
    """Say what went wrong; what is left of the output goes nowhere, or the interpreter would complain once more."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 2


if __name__ == "__main__":
    sys.exit(main())
