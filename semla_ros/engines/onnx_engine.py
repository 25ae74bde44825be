"""Fixed components through ONNX Runtime: on a CPU, or its CUDA and TensorRT providers for the scene encoder.

Each component is exported once into the cache, and serves only where it gives torch's answer in less time. What the
adapters change stays in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semla_ros.engines.cache import EngineCache
from semla_ros.engines.component_engine import ComponentEngine
from semla_ros.engines.components import DECODER, SCENE_ENCODER, FixedComponent
from semla_ros.engines.export import exported
from semla_ros.engines.gates import Measure, first_line, one_run_ms
from semla_ros.engines.torch_engine import TorchEngine, choose_threads
from semla_ros.errors import EngineError, SemlaError
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
        providers: See `choose_providers`.
        threads: CPU threads of one run; the session has no others, and they sleep between two runs.

    Attributes:
        provider: The first execution provider in use.

    Raises:
        EngineError: ONNX Runtime refuses the graph.
    """

    def __init__(self, path: Path, *, providers: Sequence[str], threads: int) -> None:
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
        self._names = [item.name for item in self._session.get_inputs()]
        self.provider: str = self._session.get_providers()[0]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run once; without copies on a CPU."""
        arrays = [np.ascontiguousarray(item.detach().cpu().numpy()) for item in inputs]
        result = self._session.run(None, dict(zip(self._names, arrays, strict=True)))[0]
        return torch.from_numpy(result).to(inputs[0].device)

    def close(self) -> None:
        """Drop the session."""
        self._session = None


class OnnxEngine(ComponentEngine):
    """The torch engine with fixed components in ONNX Runtime.

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
        self._onnxruntime = load_onnxruntime()
        super().__init__(
            torch_engine,
            servable(components, torch_engine.device),
            runtime="onnx",
            probe_images=probe_images,
            measure=measure,
        )
        self._cache = cache or EngineCache()
        self._threads = choose_threads(threads)
        self._is_settled = False

    def warm_up(self) -> None:
        """Warm torch up, then let ONNX Runtime have what it does as well and faster.

        The first time on a machine this exports the components, which takes seconds each.
        """
        super().warm_up()
        if self._is_settled:
            return
        self._is_settled = True
        providers = choose_providers(self._torch.device, self._onnxruntime.get_available_providers())
        candidates = []
        for component in self.components:
            try:
                path = exported(component, self._cache)
                candidates.append((component, OnnxRunner(path, providers=providers, threads=self._threads)))
            except SemlaError as error:
                self.refuse(str(error))
        self.take_over(candidates)


def servable(components: Sequence[FixedComponent], device: torch.device) -> list[FixedComponent]:
    """What ONNX Runtime is tried for.

    On a GPU the segmenter runs as one captured CUDA graph, which a session cannot be part of. On a CPU the decoder is
    left out: torch decodes in the layout and chunks that suit its caches, and was the faster one.
    """
    if device.type == "cuda":
        return [component for component in components if component.name == SCENE_ENCODER]
    return [component for component in components if component.name != DECODER]
