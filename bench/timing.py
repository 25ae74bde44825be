"""Wall-clock timing that says what it measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated runs, in the order they were made."""

    samples_ms: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples_ms)

    @property
    def best(self) -> float:
        return min(self.samples_ms)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.samples_ms, q))

    def as_dict(self) -> dict[str, float | int]:
        return {
            "median_ms": self.median,
            "best_ms": self.best,
            "p95_ms": self.percentile(95),
            "p99_ms": self.percentile(99),
            "max_ms": max(self.samples_ms),
            "runs": len(self.samples_ms),
        }


def time_runs(run: Callable[[], object], repeats: int, warm_up: int = 1) -> Timing:
    """Time `run` after untimed warm-up runs."""
    for _ in range(warm_up):
        run()
    return Timing(tuple(_milliseconds(run) for _ in range(repeats)))


def time_alternating(runs: Sequence[Callable[[], object]], repeats: int, warm_up: int = 1) -> list[Timing]:
    """Time several in turns, so that whatever else the machine does meets all of them alike."""
    for run in runs:
        for _ in range(warm_up):
            run()
    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, collected in zip(runs, samples, strict=True):
            collected.append(_milliseconds(run))
    return [Timing(tuple(item)) for item in samples]


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3
