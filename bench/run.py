"""What `semla bench` does: each benchmark at each size, then the table."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from bench import machine, report

USUAL_SIZES = {
    "fusion": ("tiny", "b"),
    "frame": ("tiny", "b"),
    "stall": ("tiny",),
    "retrieval": ("tiny",),
    "memory": ("tiny", "b"),
    "start": ("tiny",),
    "node": ("tiny",),
    "transport": ("tiny",),
    "engines": ("tiny", "b"),
    "soak": ("tiny",),
}


def run_benchmarks(names: Sequence[str], arguments: argparse.Namespace) -> int:
    """Run them, write summary.json after each, print it or the tables; 1 where the soak did not hold, else 0."""
    console = Console(stderr=arguments.json)
    results: dict[str, Any] = {"machine": machine.describe_machine()}
    for name in names:
        sizes = (arguments.size,) if arguments.size else USUAL_SIZES[name]
        by_size = {}
        for size in sizes:
            with console.status(f"{name} at {size} size"):
                by_size[size] = _measurement(name, size, arguments)()
        results[name] = report.collect(by_size)
        path = report.write(results, arguments.out)  # after each: a long run that is interrupted keeps what it has
        if name == "stall":
            report.draw_histogram(results[name], arguments.out / "stall.png")
    if arguments.json:
        json.dump(results, sys.stdout, indent=2)
        print()
    else:
        report.show(results, console)
        console.print(f"written to {path}")
    return int(not results.get("soak", {}).get("passed", True))


def _measurement(name: str, size: str, arguments: argparse.Namespace) -> Callable[[], dict[str, object]]:
    """The measurement of one benchmark at one size, ready to run."""
    measure: Callable[..., dict[str, object]] = importlib.import_module(f"bench.{name}").measure
    if name == "frame":
        return lambda: measure(size, repeats=arguments.repeats, compiled=arguments.compiled)
    if name in ("fusion", "engines"):
        return lambda: measure(size, repeats=arguments.repeats)
    if name in ("stall", "transport"):
        return lambda: measure(size, seconds=arguments.seconds)
    if name == "retrieval":
        counts = tuple(count for count in (10, 100, 1000) if count < arguments.adapters)
        return lambda: measure(size, counts=(*counts, arguments.adapters))
    if name == "node":
        return lambda: measure(arguments.model, arguments.library, seconds=arguments.seconds)
    if name == "start":
        return lambda: measure(arguments.model, arguments.library, repeats=arguments.repeats, against=arguments.against)
    if name == "soak":
        return lambda: measure(
            arguments.frames, arguments.model, arguments.library, arguments.seed, arguments.part, arguments.out
        )
    return lambda: measure(size)
