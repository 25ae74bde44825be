"""Fixed components through ONNX Runtime: on a CPU, or its CUDA and TensorRT providers for the scene encoder.

Each component is exported once into the cache, and serves only where it gives torch's answer in less time. What the
adapters change stays in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semla_ros.engines.cache import EngineCache
from semla_ros.engines.component_engine import FastestEngine
from semla_ros.engines.components import DECODER, SCENE_ENCODER, FixedComponent
from semla_ros.engines.export import exported
from semla_ros.engines.gates import Measure, first_line, one_run_ms
from semla_ros.engines.torch_engine import TorchEngine, choose_threads
from semla_ros.errors import EngineError
from semla_ros.results import ImageArray

_CUDA_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


def load_onnxruntime() -> Any:
    """The ONNX Runtime module.

    Raises:
        EngineError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"engine onnx needs ONNX Runtime ({first_line(error)}); 'pip install onnxruntime', or choose engine torch"
        ) from None
    return onnxruntime


def choose_providers(device: torch.device, available: Sequence[str]) -> list[str]:
    """Execution providers to try, best first; the CPU always stands last."""
    found = [name for name in _CUDA_PROVIDERS if name in available] if device.type == "cuda" else []
    return [*found, "CPUExecutionProvider"]


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

    def __init__(self, path: Path, input_names: Sequence[str], *, providers: Sequence[str], threads: int) -> None:
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


class OnnxRuntime:
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
        self._providers = choose_providers(device, load_onnxruntime().get_available_providers())
        self._device, self._cache, self._threads = device, cache, choose_threads(threads)

    def makers(self, component: FixedComponent) -> Sequence[Callable[[], OnnxRunner]]:
        """See `Runtime.makers`."""
        return [partial(self._runner, component)] if servable([component], self._device) else []

    def _runner(self, component: FixedComponent) -> OnnxRunner:
        graph = exported(component, self._cache)
        return OnnxRunner(graph, component.input_names, providers=self._providers, threads=self._threads)


class OnnxEngine(FastestEngine):
    """The torch engine with fixed components in ONNX Runtime alone.

    Args:
        torch_engine: Serves everything else.
        components: See `fixed_components`.
        probe_images: What masks are compared on, uint8 RGB.
        cache: Where exported graphs are kept.
        threads: CPU threads; 0 = as torch.
        measure: Times a call; for tests.
    """

    def __init__(
        self,
        torch_engine: TorchEngine,
        components: Sequence[FixedComponent],
        *,
        probe_images: Sequence[ImageArray],
        cache: EngineCache | None = None,
        threads: int = 0,
        measure: Measure = one_run_ms,
    ) -> None:
        device = torch_engine.device
        super().__init__(
            torch_engine,
            servable(components, device),
            [OnnxRuntime(device, cache=cache or EngineCache(), threads=threads)],
            probe_images=probe_images,
            measure=measure,
        )


def servable(components: Sequence[FixedComponent], device: torch.device) -> list[FixedComponent]:
    """What ONNX Runtime is tried for.

    On a GPU the segmenter runs as one captured CUDA graph, which a session cannot be part of. On a CPU the decoder is
    left out: torch decodes in the layout and chunks that suit its caches, and was the faster one.
    """
    if device.type == "cuda":
        return [component for component in components if component.name == SCENE_ENCODER]
    return [component for component in components if component.name != DECODER]
