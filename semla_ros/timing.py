"""Milliseconds by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
