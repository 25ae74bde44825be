"""Work captured as CUDA graphs and replayed for every frame.

Replaying costs one launch instead of about a thousand. A graph reads weights where they lie, so weights that are
overwritten in place act without capturing anew; only inputs of another shape do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

_RUNS_BEFORE_CAPTURE = 3  # libraries choose their algorithms and workspaces in these


class Graph(Protocol):
    """Captured work for inputs of one shape."""

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Replay it on the values of `inputs`."""
        ...


Forward = Callable[..., Tensor]


class CudaGraph:
    """`forward(*inputs)`, captured for the shapes of these inputs on the current stream, which is not the default one.

    Nothing waits for the device: other threads and pipelines go on, and may allocate meanwhile.

    Args:
        forward: Its work depends on nothing but the shapes of its inputs, and it keeps no cached casts of weights.
        inputs: Tensors on the current CUDA device, or in page-locked host memory.
    """

    def __init__(self, forward: Forward, inputs: Sequence[Tensor]) -> None:
        device = torch.cuda.current_stream().device
        self._inputs = [item.to(device, copy=True) for item in inputs]
        for _ in range(_RUNS_BEFORE_CAPTURE):
            forward(*self._inputs)
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(capture_error_mode="thread_local")
        try:
            self._output = forward(*self._inputs)
        finally:
            self._graph.capture_end()

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """The output; overwritten by the next call. Page-locked inputs must stay as they are until it is there."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._output


class GraphedForward:
    """Calls `forward(*inputs, *settings)` through the graph that was captured for such inputs.

    Args:
        forward: See `CudaGraph`.
        kept: Graphs kept at most, >= 1; the one that was used longest ago makes room. Each holds its intermediate
            results.
        capture: Makes a graph; for tests without a GPU.

    Attributes:
        captures: How often a graph was captured so far.
    """

    def __init__(
        self, forward: Forward, kept: int = 1, capture: Callable[[Forward, Sequence[Tensor]], Graph] = CudaGraph
    ) -> None:
        self.captures = 0
        self._forward, self._kept, self._capture = forward, kept, capture
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()

    def __call__(self, *inputs: Tensor, settings: tuple[Hashable, ...] = ()) -> Tensor:
        """The output; overwritten by the next call with inputs of that shape and those settings."""
        key = (tuple(item.shape for item in inputs), settings)
        if key in self._graphs:
            self._graphs.move_to_end(key)
        else:
            while len(self._graphs) >= self._kept:  # before the capture: two may not fit into a small device's memory
                self._graphs.popitem(last=False)
            self._graphs[key] = self._capture(lambda *given: self._forward(*given, *settings), inputs)
            self.captures += 1
        return self._graphs[key](inputs)
