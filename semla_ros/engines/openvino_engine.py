"""The scene encoder through OpenVINO on a CPU: the graph that ONNX Runtime runs too.

OpenVINO is optional: the extra `openvino`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
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

_TELEMETRY = "openvino_telemetry"


def load_openvino() -> Any:
    """The OpenVINO module, which sends nothing.

    Raises:
        EngineError: It is not installed.
    """
    # Where its telemetry package is there, OpenVINO reports to Google Analytics that it was imported.
    is_blocked = _TELEMETRY not in sys.modules
    if is_blocked:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # "import" of it fails
    try:
        import openvino
    except ImportError as error:
        raise EngineError(
            f"engine openvino needs OpenVINO ({first_line(error)}): {how_to_install('openvino')}, "
            "or choose engine onnx or torch"
        ) from None
    finally:
        if is_blocked:
            del sys.modules[_TELEMETRY]
    return openvino


class OpenVinoRunner:
    """One exported graph, compiled for the CPU. Not thread-safe.

    Args:
        path: The graph.
        input_names: Names of its inputs, in the order in which a call gives them.
        precision: "f32", or "bf16": arithmetic in bfloat16, inputs and output in fp32.
        threads: CPU threads of one run.

    Attributes:
        runtime: "openvino" or "openvino bf16".

    Raises:
        EngineError: OpenVINO is not installed or refuses the graph.
    """

    def __init__(self, path: Path, input_names: Sequence[str], *, precision: str, threads: int) -> None:
        openvino = load_openvino()
        self._names = list(input_names)
        self.runtime = "openvino" if precision == "f32" else f"openvino {precision}"
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            # A thread that is tied to a core waits for it while torch computes there, though another is free.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = openvino.Core().compile_model(str(path), "CPU", settings)
            self._request = model.create_infer_request()
        except Exception as error:  # its errors are plain RuntimeErrors
            raise EngineError(f"OpenVINO refuses {path.name}: {first_line(error)}") from None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run once; the inputs are not copied."""
        arrays = [np.ascontiguousarray(item.detach().cpu().numpy()) for item in inputs]
        result = self._request.infer(dict(zip(self._names, arrays, strict=True)), share_inputs=True)[0]
        return torch.from_numpy(np.asarray(result)).to(inputs[0].device)

    def close(self) -> None:
        """Drop the compiled graph."""
        self._request = None


class OpenVinoRuntime(GraphRuntime):
    """OpenVINO on this machine's CPU, in bf16 too where that has the instructions; a `Runtime`.

    Args:
        device: Of the pipeline.
        cache: Where exported graphs are kept.
        threads: CPU threads; 0 = as torch.

    Raises:
        EngineError: OpenVINO is not installed, or the pipeline does not run on a CPU.
    """

    name = "openvino"

    def __init__(self, device: torch.device, *, cache: EngineCache, threads: int = 0) -> None:
        super().__init__(cache, threads)
        if device.type != "cpu":
            raise EngineError(
                f"engine openvino runs on a CPU, this pipeline runs on '{device}'; use auto, onnx or torch"
            )
        abilities = load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._precisions = ("bf16", "f32") if "BF16" in abilities else ("f32",)

    def makers(self, component: FixedComponent) -> Sequence[Maker]:
        """See `Runtime.makers`."""
        return [partial(self._runner, component, precision) for precision in self._precisions]

    def _runner(self, component: FixedComponent, precision: str) -> OpenVinoRunner:
        graph = exported(component, self._cache)
        return OpenVinoRunner(graph, component.input_names, precision=precision, threads=self._threads)
