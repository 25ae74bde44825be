import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import semla_ros
from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.engines import choice
from semla_ros.engines.cache import EngineCache
from semla_ros.engines.choice import choose_engine, find_runtimes
from semla_ros.engines.component_engine import ComponentEngine
from semla_ros.engines.torch_engine import TorchEngine, wanted_precision
from semla_ros.errors import EngineError
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import Frame


def settings(engine: str, **others: object) -> InferenceConfig:
    return InferenceConfig(device="cpu", threads=1, engine=engine, **others)


def tried(engine) -> list[str]:
    """Runtimes that an engine would try; none of plain torch."""
    return [] if isinstance(engine, TorchEngine) else [runtime.name for runtime in engine._runtimes]


@pytest.fixture(autouse=True)
def _has_bf16(monkeypatch) -> None:
    """A CPU that has the instructions; others compute the same, only slower."""
    monkeypatch.setattr(choice, "has_bf16", lambda: True)


@pytest.fixture
def no_openvino(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)


def test_auto_is_torch_until_engines_of_this_model_have_been_built(world, graphs, tmp_path) -> None:
    empty = EngineCache(tmp_path)
    assert isinstance(choose_engine(world.model, world.encoder, settings("auto"), cache=empty), TorchEngine)
    assert isinstance(choose_engine(world.model, world.encoder, settings("auto"), cache=graphs), ComponentEngine)
    with torch.no_grad():
        for weight in [*world.model.parameters(), *world.encoder.tower.parameters()]:
            weight.add_(1e-3)
    assert isinstance(choose_engine(world.model, world.encoder, settings("auto"), cache=graphs), TorchEngine)


def test_torch_is_torch_whatever_has_been_built(world, graphs) -> None:
    assert isinstance(choose_engine(world.model, world.encoder, settings("torch"), cache=graphs), TorchEngine)


def test_onnx_alone_is_tried_where_it_was_asked_for(world, graphs) -> None:
    assert tried(choose_engine(world.model, world.encoder, settings("onnx"), cache=graphs)) == ["onnx"]


def test_openvino_that_was_asked_for_and_is_missing_is_an_error(world, graphs, no_openvino) -> None:
    with pytest.raises(EngineError, match="needs OpenVINO"):
        choose_engine(world.model, world.encoder, settings("openvino"), cache=graphs)


def test_auto_goes_on_without_openvino(world, graphs, no_openvino) -> None:
    assert tried(choose_engine(world.model, world.encoder, settings("auto"), cache=graphs)) == ["onnx", "torch"]


@pytest.mark.parametrize(
    ("precision", "is_welcome"), [("default", False), ("fp32", False), ("fp16", False), ("bf16", True), ("auto", True)]
)
@pytest.mark.parametrize("has_bf16", [True, False])
def test_torch_tries_a_bf16_scene_encoder_only_where_it_is_welcome_and_fast(
    world, tmp_path, monkeypatch, precision, is_welcome, has_bf16
) -> None:
    monkeypatch.setattr(choice, "has_bf16", lambda: has_bf16)
    for name in ("torch", "auto"):
        engine = choose_engine(
            world.model, world.encoder, settings(name, precision=precision), cache=EngineCache(tmp_path)
        )
        assert tried(engine) == (["torch"] if is_welcome and has_bf16 else [])


def test_on_a_gpu_the_precision_is_auto_by_default_and_torch_has_the_scene_encoder_in_fp16(tmp_path) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [wanted_precision(InferenceConfig(), device) for device in (gpu, cpu)] == ["auto", "fp32"]
    assert wanted_precision(InferenceConfig(precision="fp32"), gpu) == "fp32"
    (maker,) = find_runtimes("torch", gpu, cache=EngineCache(tmp_path))[0].makers(
        SimpleNamespace(module=nn.Linear(2, 2))
    )
    assert maker().runtime == "torch fp16"


def test_tensorrt_that_was_asked_for_and_is_missing_is_an_error(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="needs TensorRT"):
        choose_engine(world.model, world.encoder, settings("tensorrt"), cache=EngineCache(tmp_path))


class StandIn:
    """A runtime for the decoder that is there, or not."""

    components = ("decoder",)

    def __init__(self, name: str, is_there: bool) -> None:
        self.name, self.is_there = name, is_there

    def is_built(self, component) -> bool:
        assert component.name == "decoder"
        return self.is_there


@pytest.mark.parametrize(
    ("tensorrt", "onnx", "found"),
    [(True, True, "tensorrt"), (None, True, "onnx"), (False, True, "onnx"), (False, False, "")],
)
def test_on_a_gpu_auto_is_tensorrt_where_it_has_plans_else_onnx(
    world, tmp_path, monkeypatch, tensorrt, onnx, found
) -> None:
    def make(name, *_given):
        is_there = {"tensorrt": tensorrt, "onnx": onnx}[name]
        if is_there is None:
            raise EngineError("engine tensorrt needs TensorRT 10.3 to 11")
        return StandIn(name, is_there)

    monkeypatch.setattr(choice, "_make", make)
    runtimes = find_runtimes("auto", torch.device("cuda"), cache=EngineCache(tmp_path), built_for=world.components)
    assert [runtime.name for runtime in runtimes] == ([found] if found else [])


def test_a_pipeline_on_onnx_gives_the_masks_of_torch_and_names_what_serves(
    tiny_model_folder, tiny_library_folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("SEMLA_ENGINE_DIR", str(tmp_path))
    monkeypatch.setattr("semla_ros.engines.gates.LARGEST_TIME_RATIO", 1e9)  # it always counts as faster
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
    assert names == ["torch", "onnx (scene_encoder)"]
    assert (masks[0] == masks[1]).mean() > 0.999


@pytest.mark.parametrize(
    "error", [OSError("libgomp.so.1: cannot open shared object file"), AttributeError("_ARRAY_API")]
)
def test_a_package_that_is_broken_in_any_way_is_left_out_or_named(world, graphs, monkeypatch, error) -> None:
    plain = choice._make

    def broken(name, *rest):
        if name == "openvino":
            raise error
        return plain(name, *rest)

    monkeypatch.setattr(choice, "_make", broken)
    assert tried(choose_engine(world.model, world.encoder, settings("auto"), cache=graphs)) == ["onnx", "torch"]
    with pytest.raises(EngineError, match=str(error)):
        choose_engine(world.model, world.encoder, settings("openvino"), cache=graphs)


def test_what_is_not_used_is_not_imported() -> None:
    code = (
        "import sys, semla_ros.pipeline; "
        "print(*sorted(name for name in sys.modules if name.startswith('semla_ros.engines.'))); "
        "print(*(name for name in ('tensorrt', 'onnxruntime', 'openvino') if name in sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    ours, theirs = output.splitlines()
    assert [name.split(".")[-1] for name in ours.split()] == [
        "base", "choice", "fallback", "mask_from_maps", "torch_engine",
    ]  # fmt: skip
    assert theirs == ""


def test_only_the_choice_meets_tensorrt_and_late() -> None:
    package = Path(semla_ros.__file__).parent
    found = {}
    for path in package.rglob("*.py"):
        name = str(path.relative_to(package))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        early = {node for node in tree.body if isinstance(node, ast.ImportFrom)}
        for node in ast.walk(tree):
            is_meant = isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("semla_ros.engines.tensorrt.")
            if is_meant and not name.startswith("engines/tensorrt/"):
                found[name] = "early" if node in early else "late"
    assert found == {"engines/choice.py": "late", "commands/engine.py": "late"}
