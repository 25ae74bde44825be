"""Time: milliseconds by stage, their percentiles, and stamps that jump back."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
