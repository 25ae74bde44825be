"""Timing that says what it measured: by the clock, and on a GPU by its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Clock = Callable[[Callable[[], object]], tuple[float, float]]  # a call -> milliseconds, and those of the processor


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated runs, in the order they were made.

    Processor time of all threads goes with it: on a busy machine it says more than the clock.
    """

    samples_ms: tuple[float, ...]
    cpu_samples_ms: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.samples_ms)

    @property
    def best(self) -> float:
        return min(self.samples_ms)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.samples_ms, q))

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu_samples_ms)

    def as_dict(self) -> dict[str, float | int]:
        cpu = {"cpu_median_ms": self.cpu_median} if self.cpu_samples_ms else {}
        return {
            **cpu,
            "median_ms": self.median,
            "best_ms": self.best,
            "p95_ms": self.percentile(95),
            "p99_ms": self.percentile(99),
            "max_ms": max(self.samples_ms),
            "runs": len(self.samples_ms),
        }


def wall_clock(run: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of a call by the clock, and by the processor over all threads."""
    start, start_cpu = time.perf_counter(), time.process_time()
    run()
    return (time.perf_counter() - start) * 1e3, (time.process_time() - start_cpu) * 1e3


def event_clock(run: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of a call by CUDA events on the current device, from an idle device until it is idle again.

    On whatever streams the work runs: the end is marked once all of them are done.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start_cpu = time.process_time()
    begin.record()
    run()
    torch.cuda.synchronize()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end), (time.process_time() - start_cpu) * 1e3


def clock_of(device: str) -> Clock:
    """The clock for work on a device."""
    return event_clock if torch.device(device).type == "cuda" else wall_clock


def time_runs(run: Callable[[], object], repeats: int, warm_up: int = 1, clock: Clock = wall_clock) -> Timing:
    """Time `run` after untimed warm-up runs."""
    (timing,) = time_alternating([run], repeats, warm_up, clock)
    return timing


def time_alternating(
    runs: Sequence[Callable[[], object]], repeats: int, warm_up: int = 1, clock: Clock = wall_clock
) -> list[Timing]:
    """Time several in turns, so that whatever else the machine does meets all of them alike."""
    for run in runs:
        for _ in range(warm_up):
            run()
    samples: list[list[tuple[float, float]]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, collected in zip(runs, samples, strict=True):
            collected.append(clock(run))
    return [_timing(item) for item in samples]


def _timing(samples: Sequence[tuple[float, float]]) -> Timing:
    return Timing(tuple(wall for wall, _ in samples), tuple(cpu for _, cpu in samples))
