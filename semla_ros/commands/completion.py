"""Completion of commands and options for a shell.

semla completion bash > ~/.local/share/bash-completion/completions/semla
semla completion zsh > ~/.zfunc/_semla
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from semla_ros.commands.options import output_file, output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="whose script to print")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from semla_ros.cli import COMMANDS, build_parser

    parser = build_parser(*COMMANDS)
    for action in _actions(parser):
        if action.type in (Path, output_file, output_folder):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of a parser and of all below it."""
    for action in parser._actions:
        yield action
        for below in (action.choices or {}).values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from _actions(below)
