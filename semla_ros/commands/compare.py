"""Compare the summaries of two replays, or of two demos: what each variant measured before and after a change.

semla compare before/summary.json after/summary.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from semla_ros.commands.tables import print_table
from semla_ros.errors import ConfigError, counted

MEASURES = {  # key of a variant -> heading, format
    "miou": ("mIoU", ".3f"),
    "shifted_miou": ("shifted", ".3f"),
    "confidence": ("confidence", ".3f"),
    "flicker": ("flicker", ".1%"),
    "fusions": ("fusions", "d"),
    "out_of_library_s": ("outside s", ".1f"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla compare`."""
    parser.add_argument("first", type=Path, metavar="A", help="summary.json, or the folder that holds it")
    parser.add_argument("second", type=Path, metavar="B", help="another one")
    parser.add_argument("--json", action="store_true", help="for scripts")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison."""
    first, second = _read(arguments.first), _read(arguments.second)
    rows = {
        name: _compared(first["variants"].get(name, {}), second["variants"].get(name, {}))
        for name in dict.fromkeys([*first["variants"], *second["variants"]])
    }
    if arguments.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    if first["frames"] != second["frames"]:
        frames = counted(second["frames"], "frame")
        print(f"warning: of {first['frames']} and {frames}; were they the same?", file=sys.stderr)
    shown = [key for key in MEASURES if any(None not in row[key] for row in rows.values())]
    measures = (Column(MEASURES[key][0], justify="right") for key in shown)
    table = Table("variant", *measures, box=None, padding=(0, 2, 0, 0))
    for name, row in rows.items():
        table.add_row(Text(name), *(_in_words(row[key], MEASURES[key][1]) for key in shown))
    print_table(table)
    return 0


def _read(path: Path) -> dict[str, Any]:
    path = path / "summary.json" if path.is_dir() else path
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not the JSON of a summary ({error})") from None
    variants = summary.get("variants") if isinstance(summary, dict) else None
    if not isinstance(variants, dict) or "frames" not in summary:
        raise ConfigError(f"{path}: no summary of a replay, which has 'frames' and 'variants'; name its summary.json")
    return dict(summary)


def _compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[float | None]]:
    return {key: [first.get(key), second.get(key)] for key in MEASURES}


def _in_words(values: list[float | None], form: str) -> Text:
    """Both values; what gets better is not judged, for half of the measures have no better."""
    first, second = ("–" if value is None else format(value, form) for value in values)
    return Text(first if first == second else f"{first} → {second}")
