"""How many CPU threads torch uses: comparisons run with one and with one for each core."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


def thread_counts() -> list[int]:
    """One, and as many as there are physical cores for this process, ascending."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return sorted({1, min(allowed, psutil.cpu_count(logical=False) or allowed)})


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
