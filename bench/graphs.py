"""Look at CUDA graphs from outside: how many are captured and replayed, and what is left where none can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch


@dataclass
class GraphCounts:
    """How often a graph was captured and replayed."""

    captures: int = 0
    replays: int = 0


@contextmanager
def counted_graphs() -> Iterator[GraphCounts]:
    """Count the captures and replays of all graphs of this process."""
    counts, graph = GraphCounts(), torch.cuda.CUDAGraph
    begin, replay = graph.capture_begin, graph.replay

    def counted_begin(self: torch.cuda.CUDAGraph, *arguments: Any, **options: Any) -> None:
        counts.captures += 1
        begin(self, *arguments, **options)

    def counted_replay(self: torch.cuda.CUDAGraph) -> None:
        counts.replays += 1
        replay(self)

    with mock.patch.object(graph, "capture_begin", counted_begin), mock.patch.object(graph, "replay", counted_replay):
        yield counts


@contextmanager
def no_graphs() -> Iterator[None]:
    """Let every capture fail: an engine then goes on eagerly, as it does on a robot."""
    error = RuntimeError("the benchmark lets no graph be captured")
    with mock.patch.object(torch.cuda.CUDAGraph, "capture_begin", side_effect=error):
        yield
