"""Which engine a pipeline gets."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.config import InferenceConfig
from semla_ros.engines.base import Engine
from semla_ros.engines.bf16_encoder import Bf16Runtime, has_bf16
from semla_ros.engines.cache import EngineCache
from semla_ros.engines.component_engine import FastestEngine, Runtime
from semla_ros.engines.components import fixed_components
from semla_ros.engines.export import export_key
from semla_ros.engines.onnx_engine import OnnxEngine, OnnxRuntime, servable
from semla_ros.engines.openvino_engine import OpenVinoRuntime
from semla_ros.engines.tensorrt.build import Toolkit, plan_key
from semla_ros.engines.tensorrt.engine import TensorRtEngine
from semla_ros.engines.tensorrt.runtime import TensorRtToolkit
from semla_ros.engines.torch_engine import TorchEngine, street_scenes
from semla_ros.errors import EngineError
from semla_ros.segmentation.model import CatSeg

logger = logging.getLogger(__name__)


def choose_engine(
    model: CatSeg,
    encoder: SceneEncoder,
    config: InferenceConfig,
    *,
    cache: EngineCache | None = None,
    make_toolkit: Callable[[torch.device], Toolkit] = TensorRtToolkit,
) -> Engine:
    """The engine that the settings ask for.

    "auto" is torch, and the runtimes whose engines `semla engine build` has put into the cache for this very model:
    nothing is exported or built unasked. On a CPU each fixed component gets the fastest of `cpu_runtimes`.

    Args:
        model: The segmenter.
        encoder: The scene encoder; parts of both may be taken over.
        config: `engine`, device and the settings of the torch engine.
        cache: Where engines are kept; None = the user's.
        make_toolkit: Makes the TensorRT toolkit for a device; for tests.

    Raises:
        EngineError: "onnx", "openvino" or "tensorrt" was asked for and is not installed, or cannot run on the device.
    """
    torch_engine = TorchEngine(model, config)
    cache = cache or EngineCache()
    if config.engine == "torch" or (config.engine == "auto" and not cache.entries()):
        return _torch_alone(torch_engine, encoder, config)
    scenes = street_scenes(model)
    components = fixed_components(model, encoder, probe_scenes=scenes)
    if config.engine in ("auto", "tensorrt") and (config.engine == "tensorrt" or torch_engine.device.type == "cuda"):
        try:
            toolkit = make_toolkit(torch_engine.device)
            if config.engine == "tensorrt" or any(
                cache.find(plan_key(item, toolkit, "fp16")) is not None for item in components
            ):
                return TensorRtEngine(torch_engine, components, toolkit, probe_images=scenes, cache=cache)
        except EngineError as error:
            if config.engine == "tensorrt":
                raise
            logger.info("engine auto: without TensorRT: %s", error)
    device, threads = torch_engine.device, config.threads
    if config.engine == "openvino":
        runtime = OpenVinoRuntime(device, cache=cache, threads=threads)
        return FastestEngine(torch_engine, servable(components, device), [runtime], probe_images=scenes)
    if config.engine == "onnx":
        return OnnxEngine(torch_engine, components, probe_images=scenes, cache=cache, threads=threads)
    candidates = [item for item in servable(components, device) if cache.find(export_key(item, "fp32")) is not None]
    if not candidates:
        return _torch_alone(torch_engine, encoder, config)
    if device.type == "cuda":
        return OnnxEngine(torch_engine, candidates, probe_images=scenes, cache=cache, threads=threads)
    runtimes = cpu_runtimes(device, cache=cache, threads=threads)
    return FastestEngine(torch_engine, candidates, runtimes, probe_images=scenes)


def cpu_runtimes(device: torch.device, *, cache: EngineCache, threads: int = 0) -> list[Runtime]:
    """What "auto" tries on a CPU: ONNX Runtime and OpenVINO where they are installed, and torch in bf16.

    Args:
        device: A CPU.
        cache: Where exported graphs are kept.
        threads: CPU threads; 0 = as torch.
    """
    makers: list[Callable[[], Runtime]] = [
        lambda: OnnxRuntime(device, cache=cache, threads=threads),
        lambda: OpenVinoRuntime(device, cache=cache, threads=threads),
        Bf16Runtime,
    ]
    found = []
    for make in makers:
        try:
            found.append(make())
        except EngineError as error:
            logger.info("engine auto: %s", error)
    return found


def _torch_alone(torch_engine: TorchEngine, encoder: SceneEncoder, config: InferenceConfig) -> Engine:
    """Torch; where another precision than fp32 is welcome, with the scene encoder in bf16 if that passes its gate."""
    is_welcome = config.precision in ("auto", "bf16") and torch_engine.device.type == "cpu" and has_bf16()
    if not is_welcome:
        return torch_engine
    return FastestEngine(torch_engine, fixed_components(None, encoder), [Bf16Runtime()], probe_images=[])
