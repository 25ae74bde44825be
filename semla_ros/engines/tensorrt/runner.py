"""TensorRT behind a narrow interface: load a plan and run it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semla_ros.engines.gates import current
from semla_ros.engines.tensorrt.build_process import SubprocessBuilder
from semla_ros.engines.tensorrt.builder import load_tensorrt
from semla_ros.errors import EngineError

# The vocabulary that captured graphs are for, and the one before: they go as soon as another is set.
_CONTEXTS_KEPT = 2

Shapes = tuple[tuple[int, ...], ...]  # of the inputs of one call


class TensorRtToolkit:
    """TensorRT on one CUDA device.

    Args:
        device: Where plans run.
        trt: The TensorRT module, for tests; None = the installed one.
        builder: Makes plans; None = in a process of its own.

    Attributes:
        version: Of TensorRT; plans of another one are not loaded.
        device: Name of the GPU.
        device_index: Which GPU of this machine that is, as CUDA counts them.
        builder: Makes plans.

    Raises:
        EngineError: TensorRT is not installed or of another version, or the device is no CUDA device.
    """

    def __init__(self, device: torch.device, *, trt: Any = None, builder: SubprocessBuilder | None = None) -> None:
        self._trt = trt or load_tensorrt()
        if device.type != "cuda":
            raise EngineError(
                f"engine tensorrt needs a CUDA device, this pipeline runs on '{device}'; use onnx or torch"
            )
        self.version = str(self._trt.__version__)
        self.device_index = torch.cuda.current_device() if device.index is None else device.index
        self._torch_device = torch.device("cuda", self.device_index)  # with its index, as tensors on it have it
        major, minor = torch.cuda.get_device_capability(self._torch_device)
        self.device = f"{torch.cuda.get_device_name(self._torch_device)} sm_{major}{minor}"
        self.builder = builder or SubprocessBuilder()

    def load(self, path: Path, input_names: Sequence[str]) -> TensorRtRunner:
        """A plan, ready to run, see `TensorRtRunner`."""
        return TensorRtRunner(path, input_names, self._torch_device, self._trt)


class TensorRtRunner:
    """One plan with an execution context for each of the latest shapes.

    Runs on torch's current stream, so a CUDA graph can capture it.

    Args:
        path: The plan.
        input_names: Names of its input tensors, in the order in which a call gives them; the plan may keep another.
        device: The CUDA device it was built for.
        trt: The TensorRT module.

    Raises:
        EngineError: The plan cannot be loaded here, or has other tensors than fp32 ones of these names and one output.
    """

    runtime = "tensorrt"

    def __init__(self, path: Path, input_names: Sequence[str], device: torch.device, trt: Any) -> None:
        self._trt, self._device = trt, device
        with current(device):  # engine and context are bound to the GPU that is current when they are made
            self._load(path)
        self._shapes = self._checked_shapes(path, input_names)  # in the order of a call; -1: any size

    def _load(self, path: Path) -> None:
        trt = self._trt
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(
                f"TensorRT {trt.__version__} refuses the plan {path.name}: made by another version or GPU"
            )
        self._name = path.name
        self._spare: Any = self._new_context()  # where there is no memory for one, it is told now
        self._contexts: OrderedDict[Shapes, Any] = OrderedDict()

    def _new_context(self) -> Any:
        with current(self._device):
            context = self._engine.create_execution_context()
        if context is None:
            raise EngineError(f"TensorRT has no memory to run the plan {self._name}")
        return context

    def _context_for(self, shapes: Shapes) -> Any:
        """A graph goes on with the context that it was captured with, which must not be given other shapes."""
        if shapes not in self._contexts:
            if len(self._contexts) == _CONTEXTS_KEPT:
                self._contexts.popitem(last=False)
            self._contexts[shapes], self._spare = self._spare or self._new_context(), None
        return self._contexts[shapes]

    def _checked_shapes(self, path: Path, input_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        trt = self._trt
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if sorted(inputs) != sorted(input_names):
            raise EngineError(f"the plan {path.name} has the inputs {sorted(inputs)}, expected {sorted(input_names)}")
        if len(outputs) != 1:
            raise EngineError(f"the plan {path.name} has {len(outputs)} outputs, expected 1")
        for name in names:
            if (kind := self._engine.get_tensor_dtype(name)) != trt.DataType.FLOAT:
                raise EngineError(f"the plan {path.name} has '{name}' as {kind}, expected fp32")
        self._output = outputs[0]
        return {name: tuple(self._engine.get_tensor_shape(name)) for name in input_names}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run once; fp32 in, fp32 out.

        Args:
            inputs: On the device, in the order of `input_names`, each of the shape that the plan was built for.

        Raises:
            EngineError: An input does not fit the plan, the message names it; or the plan cannot be enqueued.
        """
        # Kept until all is enqueued; memory that torch frees after that is reused in stream order only.
        held = [item.contiguous() for item in inputs]
        if len(held) != len(self._shapes):
            raise EngineError(f"the plan takes {len(self._shapes)} inputs, got {len(held)}")
        for name, item in zip(self._shapes, held, strict=True):
            self._check_input(name, item)
        context = self._context_for(tuple(tuple(item.shape) for item in held))
        for name, item in zip(self._shapes, held, strict=True):
            if not context.set_input_shape(name, tuple(item.shape)):
                raise EngineError(f"TensorRT refuses shape {tuple(item.shape)} for '{name}'")
            self._set_address(context, name, item)
        shape = tuple(context.get_tensor_shape(self._output))
        if any(size < 0 for size in shape):
            raise EngineError(f"TensorRT cannot tell the shape of '{self._output}' from those of the inputs")
        output = torch.empty(shape, dtype=torch.float32, device=self._device)
        self._set_address(context, self._output, output)
        with current(self._device):
            is_enqueued = context.execute_async_v3(self._stream())
        if not is_enqueued:
            raise EngineError("TensorRT could not enqueue the plan")
        return output

    def _check_input(self, name: str, item: Tensor) -> None:
        """The runtime is given an address only, and would read whatever lies there."""
        expected, given = self._shapes[name], tuple(item.shape)
        fits = len(given) == len(expected) and all(b in (-1, a) for a, b in zip(given, expected, strict=True))
        if not fits:
            raise EngineError(f"input '{name}' has shape {given}, the plan was built for {expected}")
        if item.dtype != torch.float32 or item.device != self._device:
            raise EngineError(
                f"input '{name}' is {item.dtype} on '{item.device}', the plan takes fp32 on '{self._device}'"
            )

    def _set_address(self, context: Any, name: str, item: Tensor) -> None:
        if not context.set_tensor_address(name, item.data_ptr()):
            raise EngineError(f"TensorRT refuses the memory of '{name}'")

    def close(self) -> None:
        """Release contexts, engine and runtime, in the order that they depend on each other."""
        self._contexts.clear()
        self._spare = self._engine = self._runtime = None

    def _stream(self) -> int:
        return int(torch.cuda.current_stream(self._device).cuda_stream) if self._device.type == "cuda" else 0
