"""Time: milliseconds by stage, their percentiles, stages that do not end, and stamps that jump back."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

JUMP_BACK_NS = 500_000_000  # cameras may deliver a little out of order; farther back, a recording has started over
WINDOW = 512  # latest runs that percentiles are taken over


class Stopwatch:
    """Collects how long named stages take; a stage entered twice counts with the sum.

    Attributes:
        latency_ms: Stage -> milliseconds so far.
    """

    def __init__(self) -> None:
        self.latency_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.latency_ms[name] = self.latency_ms.get(name, 0.0) + (time.perf_counter() - start) * 1e3


@dataclass(frozen=True, kw_only=True)
class LatencySummary:
    """Milliseconds over several runs."""

    p50: float
    p95: float
    max: float
    count: int = 0  # runs that these figures are of

    @classmethod
    def of(cls, values_ms: Sequence[float]) -> LatencySummary:
        """Of at least one run."""
        p50, p95, largest = np.percentile(values_ms, (50, 95, 100))
        return cls(p50=float(p50), p95=float(p95), max=float(largest), count=len(values_ms))


class LatencyWindow:
    """The latest runs of several stages. Thread-safe.

    Args:
        window: How many runs.

    Attributes:
        runs: How often `add` was called, ever.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.runs = 0
        self._lock = threading.Lock()
        self._samples: dict[str, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=window))

    def add(self, latency_ms: Mapping[str, float], now_s: float = 0.0) -> None:
        """Count one run of each stage, at a time by any clock."""
        with self._lock:
            self.runs += 1
            for stage, milliseconds in latency_ms.items():
                self._samples[stage].append((now_s, milliseconds))

    def summary(self, since_s: float = -math.inf) -> dict[str, LatencySummary]:
        """Statistics by stage over the runs since a time; of the latest run where that is longer ago."""
        with self._lock:
            samples = {stage: list(values) for stage, values in self._samples.items()}
        return {
            stage: LatencySummary.of([value for time_s, value in values if time_s >= since_s] or [values[-1][1]])
            for stage, values in samples.items()
        }

    def clear(self) -> None:
        """Forget the latencies; the count of runs goes on."""
        with self._lock:
            self._samples.clear()


class Hang(NamedTuple):
    """A stage that takes too long.

    Attributes:
        stage: Its name.
        for_s: Seconds since it began.
        bound_s: Seconds above which that was too long.
        inside: What is known of the inside of that stage.
    """

    stage: str
    for_s: float
    bound_s: float
    inside: str = ""

    def __str__(self) -> str:
        return (
            f"the frame path hangs: for {self.for_s:.1f} s in stage '{self.stage}'{self.inside}, where "
            f"{self.bound_s:.1f} s are suspicious; restart the node if that stays so, or let watchdog_s end it"
        )


class StageClock:
    """What a thread is doing, and whether it takes suspiciously long. Written by that thread, read by any.

    A stage takes too long above `LEAST_S` and above `TIMES` its median of late, both plus a second for each
    `PIXELS_PER_S` of its image beyond Full HD. Goes by the steady clock.

    Args:
        first_s: How long a stage may well take for the first time.
    """

    LEAST_S, TIMES, PIXELS_PER_S, FULL_HD = 2.3, 5.0, 8e6, 1920 * 1080

    def __init__(self, first_s: float = 0.0) -> None:
        self._first_s = first_s
        self._present = "", time.monotonic(), 0.0  # stage, since when, pixels
        self.forget()

    def forget(self) -> None:
        """Let each stage be as slow as for the first time, once; from any thread."""
        self._spent_s: dict[str, deque[float]] = defaultdict(lambda: deque([self._first_s], maxlen=32))

    def enter(self, stage: str, pixels: float = 0.0) -> None:
        """End the present stage and begin the next one, with an image of so many pixels; "" is idle."""
        now_s = time.monotonic()
        self._spent_s[self._present[0]].append(now_s - self._present[1])
        self._present = stage, now_s, pixels

    def hang(self) -> Hang | None:
        """The present stage, where it takes too long."""
        stage, since_s, pixels = self._present
        usual_s = statistics.median_high(list(self._spent_s.get(stage, (self._first_s,))))
        bound_s = max(self.LEAST_S, self.TIMES * usual_s) + max(0.0, pixels - self.FULL_HD) / self.PIXELS_PER_S
        for_s = time.monotonic() - since_s
        return Hang(stage, for_s, bound_s) if stage and for_s > bound_s else None


class RestartWatch:
    """Notices where the stamps of one source jump back, as they do when a recording loops."""

    def __init__(self) -> None:
        self._newest_ns: int | None = None

    def jump_s(self, stamp_ns: int) -> float:
        """Seconds by which a stamp lies before the newest one, if so far that time counts from it now; else 0."""
        newest_ns = stamp_ns if self._newest_ns is None else self._newest_ns
        has_jumped = stamp_ns < newest_ns - JUMP_BACK_NS
        self._newest_ns = stamp_ns if has_jumped else max(stamp_ns, newest_ns)
        return (newest_ns - stamp_ns) / 1e9 if has_jumped else 0.0

    def forget(self) -> None:
        """Let the next stamp be the first."""
        self._newest_ns = None
