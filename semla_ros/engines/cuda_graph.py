"""A forward pass captured once as a CUDA graph and replayed for every frame.

Replaying costs one launch instead of about a thousand. A graph reads weights where they lie, so weights that are
overwritten in place act without capturing anew; only another number of classes or another image size does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_RUNS_BEFORE_CAPTURE = 3  # libraries choose their algorithms and workspaces in these


class GraphedForward:
    """Calls `forward(images, text)` through a captured graph.

    Args:
        forward: Its work depends on nothing but the shapes of its inputs, and it keeps no cached casts of weights.

    Attributes:
        captures: How often a graph was captured so far.
    """

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.captures = 0
        self._forward = forward
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images = self._text = self._logits = torch.empty(0)

    def __call__(self, images: Tensor, text: Tensor) -> Tensor:
        """Logits; the returned tensor is overwritten by the next call."""
        if self._graph is None or images.shape != self._images.shape or text.shape != self._text.shape:
            self._capture(images, text)
        assert self._graph is not None
        self._images.copy_(images)
        self._text.copy_(text)
        self._graph.replay()
        return self._logits

    def _capture(self, images: Tensor, text: Tensor) -> None:
        self._images, self._text = images.clone(), text.clone()
        stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(stream):
            for _ in range(_RUNS_BEFORE_CAPTURE):
                self._forward(self._images, self._text)
        torch.cuda.current_stream(images.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._forward(self._images, self._text)
        self.captures += 1
