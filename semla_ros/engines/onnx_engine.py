"""The scene encoder through ONNX Runtime: on a CPU, or through its CUDA and TensorRT providers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semla_ros.engines.cache import EngineCache
from semla_ros.engines.component_engine import Maker
from semla_ros.engines.export import GraphRuntime, exported
from semla_ros.errors import EngineError, first_line
from semla_ros.extras import how_to_install
from semla_ros.segmentation.fixed_component import FixedComponent

_CUDA_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")

Provider = tuple[str, dict[str, str]]


def load_onnxruntime() -> Any:
    """The ONNX Runtime module.

    Raises:
        EngineError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"engine onnx needs ONNX Runtime ({first_line(error)}): {how_to_install('onnx')}, or choose engine torch"
        ) from None
    return onnxruntime


def choose_providers(device: torch.device, available: Sequence[str]) -> list[Provider]:
    """Execution providers to try with their options, best first; the CPU always stands last."""
    found = [name for name in _CUDA_PROVIDERS if name in available] if device.type == "cuda" else []
    options = {"device_id": str(device.index or 0)}  # without it they take the first GPU
    return [*((name, options) for name in found), ("CPUExecutionProvider", {})]


class OnnxRunner:
    """One exported graph in an ONNX Runtime session.

    Args:
        path: The graph.
        input_names: Names of its inputs, in the order in which a call gives them.
        providers: See `choose_providers`.
        threads: CPU threads of one run; the session has no others, and they sleep between two runs.

    Attributes:
        provider: The first execution provider in use.

    Raises:
        EngineError: ONNX Runtime refuses the graph.
    """

    runtime = "onnx"

    def __init__(self, path: Path, input_names: Sequence[str], *, providers: Sequence[Provider], threads: int) -> None:
        runtime = load_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        # Threads that spin while torch computes would take its cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # its own errors have no common base
            raise EngineError(f"ONNX Runtime refuses {path.name}: {first_line(error)}") from None
        self._names = list(input_names)
        self.provider: str = self._session.get_providers()[0]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run once; without copies on a CPU."""
        arrays = [np.ascontiguousarray(item.detach().cpu().numpy()) for item in inputs]
        result = self._session.run(None, dict(zip(self._names, arrays, strict=True)))[0]
        return torch.from_numpy(result).to(inputs[0].device)

    def close(self) -> None:
        """Drop the session."""
        self._session = None


class OnnxRuntime(GraphRuntime):
    """ONNX Runtime with the providers for a device; a `Runtime`.

    Args:
        device: Of the pipeline.
        cache: Where exported graphs are kept.
        threads: CPU threads; 0 = as torch.

    Raises:
        EngineError: ONNX Runtime is not installed.
    """

    name = "onnx"

    def __init__(self, device: torch.device, *, cache: EngineCache, threads: int = 0) -> None:
        super().__init__(cache, threads)
        self._providers = choose_providers(device, load_onnxruntime().get_available_providers())

    def makers(self, component: FixedComponent) -> Sequence[Maker]:
        """See `Runtime.makers`."""
        return [lambda: self._runner(component)]

    def _runner(self, component: FixedComponent) -> OnnxRunner:
        graph = exported(component, self._cache)
        return OnnxRunner(graph, component.input_names, providers=self._providers, threads=self._threads)
