"""Fixed components as ONNX graphs, and what runs them on a CPU or through ONNX Runtime's providers."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from semla_ros.engines.cache import EngineCache, EngineKey
from semla_ros.engines.component_engine import Runtime
from semla_ros.engines.torch_engine import choose_threads
from semla_ros.errors import EngineError, first_line
from semla_ros.segmentation.fixed_component import FixedComponent

# Raised when this module exports the same component in another way, or the code of a component computes something else:
# graphs and plans made before are then made anew.
EXPORT_REVISION = 5
OUTPUT_NAME = "output"
_FOLDED = 8  # values at most of a constant that is folded: axes and shapes have as many as a tensor has dimensions


class HalfPrecision(nn.Module):
    """A module computed in fp16 with fp32 inputs and output: a strongly typed builder takes its types as they stand."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Cast, compute, cast back."""
        output: Tensor = self.module(*(item.half() for item in inputs))
        return output.float()


def export_version() -> str:
    """What graphs depend on beside the component; graphs of another one are exported anew."""
    return f"torch {torch.__version__} revision {EXPORT_REVISION}"


def export_key(component: FixedComponent, precision: str) -> EngineKey:
    """Cache key of a component's graph."""
    return EngineKey(
        component=component.name,
        model_digest=component.digest,
        runtime="onnx",
        runtime_version=export_version(),
        device="any",
        precision=precision,
        shapes=component.shapes(),
    )


def exported(component: FixedComponent, cache: EngineCache, precision: str = "fp32") -> Path:
    """The component's graph, exported now unless the cache has it.

    Args:
        component: Not mounted.
        cache: Where graphs are kept.
        precision: "fp32", or "fp16": weights and arithmetic in fp16, inputs and output in fp32.

    Raises:
        EngineError: It cannot be exported, or the cache cannot be written.
    """
    key = export_key(component, precision)
    return cache.find(key) or cache.store(key, lambda path: export_onnx(component, path, precision))


class GraphRuntime(Runtime):
    """What ONNX Runtime and OpenVINO share: both run the graphs that a cache keeps.

    Args:
        cache: Where exported graphs are kept.
        threads: CPU threads; 0 = as torch.
    """

    def __init__(self, cache: EngineCache, threads: int) -> None:
        self._cache, self._threads = cache, choose_threads(threads)

    def is_built(self, component: FixedComponent) -> bool:
        """See `Runtime.is_built`."""
        return self._cache.find(export_key(component, "fp32")) is not None

    def build(self, component: FixedComponent) -> None:
        """See `Runtime.build`."""
        exported(component, self._cache)


def export_onnx(component: FixedComponent, path: Path, precision: str = "fp32") -> None:
    """Write a component as one ONNX file.

    Raises:
        EngineError: The exporter failed; its first line is told.
    """
    from onnxscript.optimizer import fold_constants

    module = HalfPrecision(component.module) if precision == "fp16" else component.module
    try:
        batch = torch.export.Dim("batch", min=1, max=component.max_batch)
        # Without the graph optimiser, which would fold weights into new ones, initialisers are named as parameters.
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                component.inputs,
                dynamo=True,
                optimize=False,
                verbose=False,
                input_names=list(component.input_names),
                output_names=[OUTPUT_NAME],
                dynamic_shapes=_dynamic(module, len(component.inputs), batch),
            )
            assert program is not None
            # TensorRT takes axes and shapes as constants only, not as what is computed from constants. Weights stay:
            # those that are transposed would be folded at any size.
            fold_constants(
                program.model,
                input_size_limit=_FOLDED,
                output_size_limit=_FOLDED,
                should_fold=lambda node: False if node.op_type == "Transpose" else None,
            )
            program.save(str(path), external_data=False)
    except Exception as error:  # the exporter has no error family of its own
        raise EngineError(f"component '{component.name}' cannot be exported to ONNX: {first_line(error)}") from error


def _dynamic(module: nn.Module, count: int, batch: object) -> tuple[object, ...]:
    axes: tuple[object, ...] = ({0: batch}, *({} for _ in range(count - 1)))
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return axes
    alone = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*axes[:alone], axes[alone:])  # one entry for a parameter that takes all the others


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells users about its own internals; what matters comes as an exception."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [item.level for item in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for item in loggers:
            item.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for item, level in zip(loggers, levels, strict=True):
                item.setLevel(level)
