"""Count what a frame asks of a GPU, without one: operators outside of CUDA graphs, transfers, and waits.

    python -W ignore -m tools.cuda_traffic

The frame path runs on torch's fake CUDA tensors, which have shapes and no values. Captures, streams and events are
stand-ins: a replay is one launch, and what was captured does not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from bench.random_world import Size, random_image, random_model
from semla_ros.config import InferenceConfig
from semla_ros.engines import cuda_graph
from semla_ros.engines.torch_engine import TorchEngine

_NO_LAUNCH = ("aten::empty", "aten::new_empty", "aten::lift", "aten::detach", "aten::_unsafe_view")  # beside views


@dataclass
class Traffic:
    """What was asked of the GPU.

    Attributes:
        operators: Names of the operators on the GPU outside of graphs, in order; transfers are among them.
        uploads: Bytes of each transfer to the GPU.
        downloads: Bytes of each transfer from it.
        replays: Graphs that were replayed.
        waits: For a stream or an event: transfers that are not asynchronous, readings of values, and calls.
        device_waits: For everything on the device, the work of other pipelines and threads among it.
    """

    operators: list[str] = field(default_factory=list)
    uploads: list[int] = field(default_factory=list)
    downloads: list[int] = field(default_factory=list)
    replays: int = 0
    waits: int = 0
    device_waits: int = 0

    def __str__(self) -> str:
        up, down = sum(self.uploads) / 1e6, sum(self.downloads) / 1e6
        return (
            f"{len(self.operators)} operators outside of graphs, {self.replays} replays; "
            f"{len(self.uploads)} uploads ({up:.2f} MB), {len(self.downloads)} downloads ({down:.2f} MB); "
            f"{self.waits} waits, {self.device_waits} of them for the whole device"
        )


class FakeGpu(TorchDispatchMode):
    """Within it CUDA tensors are fake ones, and `traffic` counts what is asked of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()
        self._is_capturing = False
        self._pinned: list[Tensor] = []
        self._stream = SimpleNamespace(device=torch.device("cuda:0"), wait_stream=_nothing, synchronize=self._wait)

    @contextlib.contextmanager
    def installed(self) -> Iterator[FakeGpu]:
        """The device is there."""
        plain_empty, cuda = torch.empty, torch.cuda

        def empty(*given: Any, pin_memory: bool = False, **named: Any) -> Tensor:
            if not pin_memory:
                return plain_empty(*given, **named)
            with unset_fake_temporarily():  # host memory is real
                self._pinned.append(torch.ones(*given, **named))
            return self._pinned[-1]

        stand_ins: dict[str, object] = {
            "device_count": lambda: 1,
            "device": lambda *_: contextlib.nullcontext(),
            "Stream": lambda *_, **__: self._stream,
            "current_stream": lambda *_: self._stream,
            "stream": lambda *_: contextlib.nullcontext(),
            "Event": lambda *_, **__: SimpleNamespace(
                record=_nothing, synchronize=self._wait, wait=_nothing, elapsed_time=lambda _: 1.0
            ),
            "CUDAGraph": lambda: SimpleNamespace(
                capture_begin=lambda **_: self._capture(True),
                capture_end=lambda: self._capture(False),
                replay=self._replay,
            ),
            "graph": self._graph,
            "empty_cache": _nothing,
            "synchronize": lambda *_: self._wait(is_for_device=True),
            "is_bf16_supported": lambda: True,
        }
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(cuda_graph, "_RUNS_BEFORE_CAPTURE", 0))
            stack.enter_context(mock.patch.object(torch, "empty", empty))
            stack.enter_context(mock.patch.object(nn.Module, "to", _moved))
            for name, stand_in in stand_ins.items():
                stack.enter_context(mock.patch.object(cuda, name, stand_in))
            stack.enter_context(_WithoutGuards(self._copied))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(self)
            yield self

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and count it where it is one of the device."""
        kwargs = kwargs or {}
        is_python = torch._C.DispatchKey.CompositeImplicitAutograd in func.py_kernels  # of the compiler, in many steps
        if func.namespace == "aten" and func._can_decompose() and not is_python:  # as it is without inference mode
            with self:
                return func.decompose(*args, **kwargs)
        given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        name = func.name()
        if func is torch.ops.aten._local_scalar_dense.default and given[0].device.type == "cuda":
            self._count(name)
            self._transfer(self.traffic.downloads, given[0], is_asynchronous=False)
            return True
        if func is torch.ops.aten.copy_.default and "cuda" in {item.device.type for item in given}:
            return self._copied(*args)
        if func is torch.ops.aten._to_copy.default and given[0].device != kwargs.get("device", given[0].device):
            return self._moved(given[0], kwargs)
        answer = func(*args, **kwargs)
        made = [item for item in tree_leaves(answer) if isinstance(item, Tensor)]
        places = {item.device.type for item in (*given, *made)}
        if "cuda" not in places:
            return answer
        if func.namespace != "prim" and not func.is_view and not name.startswith(_NO_LAUNCH):
            self._count(name)
        return answer

    def _moved(self, source: Tensor, how: dict[str, Any]) -> Tensor:
        """The copy on another device; on the host a real one, whose values may be looked at."""
        self._count("aten::_to_copy")
        is_upload, dtype = how["device"].type == "cuda", how.get("dtype") or source.dtype
        is_asynchronous = bool(how.get("non_blocking")) and is_upload and self._is_pinned(source)
        self._transfer(self.traffic.uploads if is_upload else self.traffic.downloads, source, is_asynchronous)
        if is_upload:
            return torch.empty(source.shape, dtype=dtype, device=how["device"])
        with unset_fake_temporarily():
            return torch.zeros(source.shape, dtype=dtype)

    def _copied(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        self._count("aten::copy_")
        if target.device != source.device:
            is_upload = target.device.type == "cuda"
            is_asynchronous = non_blocking and self._is_pinned(source if is_upload else target)
            self._transfer(self.traffic.uploads if is_upload else self.traffic.downloads, source, is_asynchronous)
        return target

    def _is_pinned(self, host: Tensor) -> bool:
        pointers = {item.untyped_storage().data_ptr() for item in self._pinned}
        return not isinstance(host, FakeTensor) and host.untyped_storage().data_ptr() in pointers

    def _count(self, name: str) -> None:
        if not self._is_capturing:
            self.traffic.operators.append(name)

    def _transfer(self, bytes_moved: list[int], item: Tensor, is_asynchronous: bool) -> None:
        if self._is_capturing:
            raise RuntimeError("a transfer in a capture")
        bytes_moved.append(item.nbytes)
        self.traffic.waits += not is_asynchronous

    def _wait(self, is_for_device: bool = False) -> None:
        self.traffic.waits += 1
        self.traffic.device_waits += is_for_device

    def _replay(self) -> None:
        self.traffic.replays += 1

    def _capture(self, is_capturing: bool) -> None:
        self._is_capturing = is_capturing

    @contextlib.contextmanager
    def _graph(self, *_given: object, **_named: object) -> Iterator[None]:
        self._capture(True)
        try:
            yield
        finally:
            self._capture(False)


class _WithoutGuards(TorchFunctionMode):
    """What asks for a device guard, which a torch without CUDA does not have, by other means."""

    def __init__(self, copy: Callable[..., Tensor]) -> None:
        super().__init__()
        self._copy = copy

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function, and indexing as `_indexed` does."""
        kwargs = kwargs or {}
        if func is Tensor.numpy:
            with _disable_current_modes():  # host memory is real
                return func(*args, **kwargs)
        tensors = [item for item in args if isinstance(item, Tensor)]
        if not any(item.device.type == "cuda" for item in tensors):
            return func(*args, **kwargs)
        if func is Tensor.copy_:
            return self._copy(*args, **kwargs)
        if func is Tensor.__getitem__:
            return _indexed(*args)
        if func is Tensor.__setitem__:
            self._copy(_indexed(*args[:2]), args[2])
            return None
        if func is Tensor.contiguous:
            return torch.ops.aten.contiguous(*args, **kwargs)
        return func(*args, **kwargs)


def _indexed(tensor: Tensor, index: Any) -> Tensor:
    """`tensor[index]` of numbers, slices, None, an ellipsis, or of tensors alone."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, Tensor) for item in items):
        indexed: Tensor = torch.ops.aten.index(tensor, items)
        return indexed
    if Ellipsis in items:
        place = items.index(Ellipsis)
        rest = tensor.ndim - sum(item is not None for item in items) + 1
        items[place : place + 1] = [slice(None)] * rest
    axis = 0
    for item in items:
        if item is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(item, slice):
            if item != slice(None):
                tensor = torch.ops.aten.slice(tensor, axis, item.start, item.stop, item.step or 1)
        else:
            tensor = tensor.select(axis, item)
            continue
        axis += 1
    return tensor


def _moved(module: nn.Module, device: torch.device) -> nn.Module:
    """`module.to(device)`, which fake tensors refuse."""
    for part in module.modules():
        held: tuple[dict[str, Any], ...] = part._parameters, part._buffers
        for tensors in held:
            for name, item in tensors.items():
                if item is not None:
                    moved = torch.empty(item.shape, dtype=item.dtype, device=device)
                    tensors[name] = (
                        nn.Parameter(moved, requires_grad=False) if isinstance(item, nn.Parameter) else moved
                    )
    return module


def _nothing(*_given: object, **_named: object) -> None:
    pass


def frame_traffic(
    height: int,
    width: int,
    *,
    want_confidence: bool = False,
    inference: Literal["whole", "sliding"] = "whole",
    classes: int = 19,
    cameras: int = 1,
    model_size: Size = "tiny",
) -> Traffic:
    """What one frame of each camera asks of a GPU once everything is warm."""
    model, images = random_model(model_size), [random_image(height, width)] * cameras
    with FakeGpu().installed() as gpu:
        engine = TorchEngine(model, InferenceConfig(device="cuda:0", precision="fp32", inference=inference))
        engine.set_text(torch.randn(classes, model.config.clip.embed_dim))
        engine.warm_up()
        for _ in range(2):
            engine.segment_batch(images, want_confidence)
        gpu.traffic = Traffic()
        answers = engine.segment_batch(images, want_confidence)
        assert engine.notes == [], engine.notes
        assert all(answer.mask.shape == (height, width) for answer in answers)
    return gpu.traffic


def main() -> None:
    """Print a line for each way of inference."""
    ways: tuple[tuple[str, Callable[[], Traffic]], ...] = (
        ("480p, mask", lambda: frame_traffic(480, 640)),
        ("480p, mask and confidence", lambda: frame_traffic(480, 640, want_confidence=True)),
        ("1080p, mask", lambda: frame_traffic(1080, 1920)),
        ("1080p, mask and confidence", lambda: frame_traffic(1080, 1920, want_confidence=True)),
        ("1080p, mask, sliding", lambda: frame_traffic(1080, 1920, inference="sliding")),
        ("1080p, mask, two cameras at once", lambda: frame_traffic(1080, 1920, cameras=2)),
    )
    for name, count in ways:
        print(f"{name}: {count()}")


if __name__ == "__main__":
    main()
