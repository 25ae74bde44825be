"""Which engine a pipeline gets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.config import InferenceConfig
from semla_ros.engines.base import Engine
from semla_ros.engines.torch_engine import TorchEngine, has_bf16, wanted_precision
from semla_ros.errors import EngineError, first_line
from semla_ros.resources import engine_folder
from semla_ros.segmentation.protocol import SegmentationModel

if TYPE_CHECKING:
    from semla_ros.engines.cache import EngineCache
    from semla_ros.engines.component_engine import Runtime
    from semla_ros.segmentation.fixed_component import FixedComponent

logger = logging.getLogger(__name__)

# Setting -> kind of device -> runtimes beside torch in fp32. On a CPU all compete, on a GPU the first one serves.
_TRIED: dict[str, dict[str, tuple[str, ...]]] = {
    "torch": {"cpu": ("half",), "cuda": ("half",)},
    "onnx": {"cpu": ("onnx",), "cuda": ("onnx",)},
    "openvino": {"cpu": ("openvino",), "cuda": ("openvino",)},
    "tensorrt": {"cpu": ("tensorrt",), "cuda": ("tensorrt",)},
    "auto": {"cpu": ("onnx", "openvino", "half"), "cuda": ("tensorrt", "onnx", "half")},
}
# Kind of device -> settings of `precision` with which the scene encoder is tried in torch's half precision.
_HALF_WELCOME = {"cpu": ("auto", "bf16"), "cuda": ("auto", "fp16", "bf16")}


def choose_engine(
    model: SegmentationModel, encoder: SceneEncoder, config: InferenceConfig, *, cache: EngineCache | None = None
) -> Engine:
    """The engine that the settings ask for.

    "auto" is torch, and the runtimes whose engines `semla engine build` has put into the cache for this very model:
    nothing is exported or built unasked. Where another precision than fp32 is welcome, the scene encoder is tried in
    torch's bf16 (on a GPU fp16) without them, too.

    Args:
        model: The segmenter.
        encoder: The scene encoder; parts of both may be taken over.
        config: `engine`, device and the settings of the torch engine.
        cache: Where engines are kept; None = the user's.

    Raises:
        EngineError: "onnx", "openvino" or "tensorrt" was asked for and is not installed, or cannot run on the device.
    """
    torch_engine = TorchEngine(model, config)
    is_half_welcome = wanted_precision(config, torch_engine.device) in _HALF_WELCOME[torch_engine.device.type]
    folder = engine_folder() if cache is None else cache.folder
    is_alone = config.engine == "torch" or (config.engine == "auto" and not any(folder.glob("*.json")))
    if is_alone and not is_half_welcome:
        return torch_engine
    # What most robots do not use is imported where it is.
    from semla_ros.engines.cache import EngineCache
    from semla_ros.engines.component_engine import ComponentEngine
    from semla_ros.engines.components import fixed_components
    from semla_ros.engines.probe_images import probe_images

    scenes = probe_images(*model.config.working_resolution)
    components = fixed_components(model, encoder, probe_scenes=scenes)
    runtimes = find_runtimes(
        "torch" if is_alone else config.engine,
        torch_engine.device,
        cache=cache or EngineCache(folder),
        threads=config.threads,
        built_for=components if config.engine == "auto" else (),
    )
    if not is_half_welcome and all(runtime.name == "torch" for runtime in runtimes):
        return torch_engine
    return ComponentEngine(torch_engine, components, runtimes, probe_images=scenes) if runtimes else torch_engine


def find_runtimes(
    engine: str,
    device: torch.device,
    *,
    cache: EngineCache,
    threads: int = 0,
    builds: bool = True,
    built_for: Sequence[FixedComponent] = (),
    tell: Callable[[str], object] = logger.info,
) -> list[Runtime]:
    """The runtimes beside torch in fp32 that a setting asks for.

    Args:
        engine: As in the settings; of "auto" those that are not installed are left out.
        device: Of the pipeline.
        cache: Where exported graphs and plans are kept.
        threads: CPU threads; 0 = as torch.
        builds: TensorRT plans that are missing are built in the background.
        built_for: Only those that find what they need for one of these components; empty = all.
        tell: Told why one is left out.

    Raises:
        EngineError: The runtime that was asked for is not installed, or cannot run on the device.
    """
    found = []
    for name in _TRIED[engine][device.type]:
        try:
            runtime = _make(name, device, cache, threads, builds)
        except Exception as error:  # a package that is broken can fail in any way
            if name == engine:
                raise EngineError(first_line(error)) from error
            tell(first_line(error))
            continue
        wanted = [item for item in built_for if item.name in runtime.components]
        if not built_for or any(map(runtime.is_built, wanted)):
            found.append(runtime)
    return found[:1] if device.type == "cuda" else found


def _make(name: str, device: torch.device, cache: EngineCache, threads: int, builds: bool) -> Runtime:
    """One runtime; its package is imported here and nowhere earlier."""
    if name == "onnx":
        from semla_ros.engines.onnx_engine import OnnxRuntime

        return OnnxRuntime(device, cache=cache, threads=threads)
    if name == "openvino":
        from semla_ros.engines.openvino_engine import OpenVinoRuntime

        return OpenVinoRuntime(device, cache=cache, threads=threads)
    if name == "tensorrt":
        from semla_ros.engines.tensorrt.runner import TensorRtToolkit
        from semla_ros.engines.tensorrt.runtime import TensorRtRuntime

        return TensorRtRuntime(TensorRtToolkit(device), cache=cache, builds=builds)
    from semla_ros.engines.half_encoder import HalfRuntime

    if device.type == "cpu" and not has_bf16():
        raise EngineError("this CPU does not compute in bf16")
    return HalfRuntime(torch.bfloat16 if device.type == "cpu" else torch.float16)
