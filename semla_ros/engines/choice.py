"""Which engine a pipeline gets."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch

from semla_ros.config import InferenceConfig
from semla_ros.engines.base import Engine
from semla_ros.engines.build import Toolkit, plan_key
from semla_ros.engines.cache import EngineCache
from semla_ros.engines.components import fixed_components
from semla_ros.engines.export import export_key
from semla_ros.engines.onnx_engine import OnnxEngine, servable
from semla_ros.engines.tensorrt_engine import TensorRtEngine
from semla_ros.engines.tensorrt_runtime import TensorRtToolkit
from semla_ros.engines.torch_engine import TorchEngine, street_scenes
from semla_ros.errors import EngineError
from semla_ros.scene_embedding import SceneEncoder
from semla_ros.segmentation.model import CatSeg

logger = logging.getLogger(__name__)

REFIT_SWITCH = "SEMLA_TENSORRT_REFIT"  # environment: "1" tries the refitted segmenter, too


def choose_engine(
    model: CatSeg,
    encoder: SceneEncoder,
    config: InferenceConfig,
    *,
    cache: EngineCache | None = None,
    make_toolkit: Callable[[torch.device], Toolkit] = TensorRtToolkit,
) -> Engine:
    """The engine that the settings ask for.

    "auto" is torch, and the runtime whose engines `semla engine build` has put into the cache for this very model:
    nothing is exported or built unasked.

    Args:
        model: The segmenter.
        encoder: The scene encoder; parts of both may be taken over.
        config: `engine`, device and the settings of the torch engine.
        cache: Where engines are kept; None = the user's.
        make_toolkit: Makes the TensorRT toolkit for a device; for tests.

    Raises:
        EngineError: "onnx" or "tensorrt" was asked for and is not installed, or cannot run on the device.
    """
    torch_engine = TorchEngine(model, config)
    if config.engine == "torch":
        return torch_engine
    cache = cache or EngineCache()
    if config.engine == "auto" and not cache.entries():
        return torch_engine
    scenes = street_scenes(model)
    components = fixed_components(model, encoder, probe_scenes=scenes)
    if config.engine in ("auto", "tensorrt") and (config.engine == "tensorrt" or torch_engine.device.type == "cuda"):
        try:
            toolkit = make_toolkit(torch_engine.device)
            if config.engine == "tensorrt" or any(
                cache.find(plan_key(item, toolkit, "fp16")) is not None for item in components
            ):
                return TensorRtEngine(
                    torch_engine,
                    components,
                    toolkit,
                    probe_images=scenes,
                    cache=cache,
                    refit_model=model if os.environ.get(REFIT_SWITCH) == "1" else None,
                )
        except EngineError as error:
            if config.engine == "tensorrt":
                raise
            logger.info("engine auto: without TensorRT: %s", error)
    candidates = servable(components, torch_engine.device)
    if config.engine == "auto":
        candidates = [item for item in candidates if cache.find(export_key(item, "fp32")) is not None]
        if not candidates:
            return torch_engine
    return OnnxEngine(torch_engine, candidates, probe_images=scenes, cache=cache, threads=config.threads)
