"""Forward passes captured as CUDA graphs and replayed for every frame.

Replaying costs one launch instead of about a thousand. A graph reads weights where they lie, so weights that are
overwritten in place act without capturing anew; only inputs of another shape do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

_RUNS_BEFORE_CAPTURE = 3  # libraries choose their algorithms and workspaces in these


class Graph(Protocol):
    """A captured forward pass for inputs of one shape."""

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Replay it on the values of `inputs`."""
        ...


Forward = Callable[..., Tensor]


class CudaGraph:
    """`forward(*inputs)`, captured for the shapes of these inputs.

    Args:
        forward: Its work depends on nothing but the shapes of its inputs, and it keeps no cached casts of weights.
        inputs: Tensors on one CUDA device.
    """

    def __init__(self, forward: Forward, inputs: Sequence[Tensor]) -> None:
        self._inputs = [item.clone() for item in inputs]
        device = self._inputs[0].device
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_RUNS_BEFORE_CAPTURE):
                forward(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(device),  # not on the first GPU by default
            torch.cuda.stream(stream),  # where the capture fails, `graph` leaves its stream the current one
            torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),  # other threads allocate
        ):
            self._output = forward(*self._inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """The output; overwritten by the next call."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._output


class GraphedForward:
    """Calls `forward(*inputs)` through the graph that was captured for inputs of that shape.

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
        self._graphs: OrderedDict[tuple[torch.Size, ...], Graph] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output; overwritten by the next call with inputs of that shape."""
        shapes = tuple(item.shape for item in inputs)
        if shapes in self._graphs:
            self._graphs.move_to_end(shapes)
        else:
            while len(self._graphs) >= self._kept:  # before the capture: two may not fit into a small device's memory
                self._graphs.popitem(last=False)
            self._graphs[shapes] = self._capture(self._forward, inputs)
            self.captures += 1
        return self._graphs[shapes](inputs)
