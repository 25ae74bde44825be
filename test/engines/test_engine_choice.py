import numpy as np
import pytest
import torch

from semla_ros.config import InferenceConfig
from semla_ros.engines.cache import EngineCache
from semla_ros.engines.choice import choose_engine, cpu_runtimes
from semla_ros.engines.component_engine import FastestEngine
from semla_ros.engines.onnx_engine import OnnxEngine
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.errors import EngineError


def settings(engine: str, **others: object) -> InferenceConfig:
    return InferenceConfig(device="cpu", threads=1, engine=engine, **others)


def no_openvino(*given: object, **named: object):
    raise EngineError("engine openvino needs OpenVINO")


def no_toolkit(device: torch.device):
    raise EngineError("engine tensorrt needs TensorRT 10.3 to 11")


def test_auto_is_torch_until_engines_of_this_model_have_been_built(world, graphs, tmp_path) -> None:
    empty = EngineCache(tmp_path)
    assert isinstance(choose_engine(world.model, world.encoder, settings("auto"), cache=empty), TorchEngine)
    assert isinstance(choose_engine(world.model, world.encoder, settings("auto"), cache=graphs), FastestEngine)
    with torch.no_grad():
        for weight in [*world.model.parameters(), *world.encoder.tower.parameters()]:
            weight.add_(1e-3)
    assert isinstance(choose_engine(world.model, world.encoder, settings("auto"), cache=graphs), TorchEngine)


def test_torch_is_torch_whatever_has_been_built(world, graphs) -> None:
    assert isinstance(choose_engine(world.model, world.encoder, settings("torch"), cache=graphs), TorchEngine)


def test_onnx_alone_is_tried_where_it_was_asked_for(world, graphs) -> None:
    assert isinstance(choose_engine(world.model, world.encoder, settings("onnx"), cache=graphs), OnnxEngine)


def test_openvino_that_was_asked_for_and_is_missing_is_an_error(world, graphs, monkeypatch) -> None:
    monkeypatch.setattr("semla_ros.engines.choice.OpenVinoRuntime", no_openvino)
    with pytest.raises(EngineError, match="needs OpenVINO"):
        choose_engine(world.model, world.encoder, settings("openvino"), cache=graphs)


def test_auto_goes_on_without_openvino(world, graphs, monkeypatch) -> None:
    monkeypatch.setattr("semla_ros.engines.choice.OpenVinoRuntime", no_openvino)
    names = [runtime.name for runtime in cpu_runtimes(torch.device("cpu"), cache=graphs)]
    assert names == ["onnx", "torch"]
    assert isinstance(choose_engine(world.model, world.encoder, settings("auto"), cache=graphs), FastestEngine)


@pytest.mark.parametrize(("precision", "is_tried"), [("fp32", False), ("bf16", True), ("auto", True)])
def test_torch_tries_a_bf16_scene_encoder_only_where_another_precision_is_welcome(
    world, tmp_path, monkeypatch, precision, is_tried
) -> None:
    monkeypatch.setattr("semla_ros.engines.choice.has_bf16", lambda: True)
    for name in ("torch", "auto"):
        engine = choose_engine(
            world.model, world.encoder, settings(name, precision=precision), cache=EngineCache(tmp_path)
        )
        assert isinstance(engine, FastestEngine if is_tried else TorchEngine)
    if is_tried:
        assert [component.name for component in engine.components] == ["scene_encoder"]


def test_tensorrt_that_was_asked_for_and_is_missing_is_an_error(world, tmp_path) -> None:
    with pytest.raises(EngineError, match="needs TensorRT"):
        choose_engine(
            world.model, world.encoder, settings("tensorrt"), cache=EngineCache(tmp_path), make_toolkit=no_toolkit
        )


def test_a_pipeline_on_onnx_gives_the_masks_of_torch_and_names_what_serves(
    tiny_model_folder, tiny_library_folder, tmp_path, monkeypatch
) -> None:
    from semla_ros.config import SemlaConfig
    from semla_ros.pipeline import PerceptionPipeline
    from semla_ros.results import Frame

    monkeypatch.setenv("SEMLA_ENGINE_DIR", str(tmp_path))
    # One component is enough to see that it serves, and keeps the export short; it always counts as faster.
    import semla_ros.engines.choice as choice

    plain = choice.fixed_components

    def only_one(*given, **named):
        return [component for component in plain(*given, **named) if component.name == "guidance_1"]

    monkeypatch.setattr(choice, "fixed_components", only_one)
    monkeypatch.setattr("semla_ros.engines.gates.LARGEST_TIME_RATIO", 1e9)
    monkeypatch.setattr("semla_ros.engines.component_engine._NOISE_RATIO", 1e9)
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    masks, names = [], []
    for engine in ("torch", "onnx"):
        pipeline = PerceptionPipeline.load(
            SemlaConfig(model=str(tiny_model_folder), library=str(tiny_library_folder), inference=settings(engine))
        )
        segmentation, step = pipeline.process(Frame(image=image, stamp_ns=1, camera="front", frame_id="front"))
        assert step.action == "fused"
        masks.append(segmentation.mask)
        names.append(pipeline.status().engine)
        assert pipeline.status().engine_notes == ()
        pipeline.close()
    assert names == ["torch", "onnx (guidance_1)"]
    assert (masks[0] == masks[1]).mean() > 0.999
