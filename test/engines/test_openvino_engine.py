import sys
import types

import numpy as np
import pytest
import torch

import semla_ros.engines.openvino_engine as openvino_engine
from semla_ros.engines.component_engine import ComponentEngine
from semla_ros.engines.components import SCENE_ENCODER
from semla_ros.engines.export import exported
from semla_ros.engines.gates import smallest_cosine
from semla_ros.engines.openvino_engine import OpenVinoRunner, OpenVinoRuntime, load_openvino
from semla_ros.errors import EngineError

CPU = torch.device("cpu")


class StandInOpenVino:
    """The part of OpenVINO that is used, without its arithmetic: the answer is the input doubled."""

    def __init__(self, abilities: tuple[str, ...] = ("FP32", "BF16"), failure: str = "") -> None:
        self.abilities, self.failure = abilities, failure
        self.compiled: list[tuple[str, str, dict]] = []

    def Core(self):  # noqa: N802
        return self

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return list(self.abilities)

    def compile_model(self, path: str, device: str, settings: dict):
        if self.failure:
            raise RuntimeError(self.failure)
        self.compiled.append((path, device, settings))
        return self

    def create_infer_request(self):
        return self

    def infer(self, arrays: dict, share_inputs: bool):
        assert list(arrays) == ["x"]
        return {0: arrays["x"] * 2}


@pytest.fixture
def stand_in(monkeypatch) -> StandInOpenVino:
    module = StandInOpenVino()
    monkeypatch.setattr(openvino_engine, "load_openvino", lambda: module)
    return module


def test_a_missing_package_is_an_error_that_tells_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"needs OpenVINO .*pip install \'semla_ros\[openvino\]\'"):
        load_openvino()


def test_openvino_is_imported_without_its_telemetry(monkeypatch, tmp_path) -> None:
    (tmp_path / "openvino_telemetry.py").write_text("")
    (tmp_path / "openvino.py").write_text(
        "try:\n    import openvino_telemetry\n    sends = True\nexcept ImportError:\n    sends = False\n"
    )
    for name in ("openvino", "openvino_telemetry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_openvino().sends is False
    assert "openvino_telemetry" not in sys.modules  # others may import it
    del sys.modules["openvino"]


def test_telemetry_that_another_part_of_the_program_has_loaded_stays(monkeypatch) -> None:
    theirs = types.ModuleType("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    monkeypatch.setitem(sys.modules, "openvino", types.ModuleType("openvino"))
    load_openvino()
    assert sys.modules["openvino_telemetry"] is theirs


def test_threads_and_precision_are_what_was_chosen(stand_in, tmp_path) -> None:
    runner = OpenVinoRunner(tmp_path / "graph.engine", ["x"], precision="bf16", threads=3)
    path, device, settings = stand_in.compiled[0]
    assert (path, device) == (str(tmp_path / "graph.engine"), "CPU")
    assert settings["INFERENCE_NUM_THREADS"] == 3
    assert settings["INFERENCE_PRECISION_HINT"] == "bf16"
    assert settings["PERFORMANCE_HINT"] == "LATENCY"
    assert settings["ENABLE_CPU_PINNING"] is False
    assert runner.runtime == "openvino bf16"
    assert torch.equal(runner(torch.ones(1, 2)), torch.full((1, 2), 2.0))
    runner.close()
    assert OpenVinoRunner(tmp_path / "graph.engine", ["x"], precision="f32", threads=1).runtime == "openvino"


def test_a_graph_that_is_refused_is_an_error_with_its_name(stand_in, tmp_path) -> None:
    stand_in.failure = "Unsupported operation\nat line 12"
    with pytest.raises(EngineError, match=r"OpenVINO refuses graph\.engine: Unsupported operation$"):
        OpenVinoRunner(tmp_path / "graph.engine", ["x"], precision="f32", threads=1)


@pytest.mark.parametrize(("abilities", "tried"), [(("FP32", "BF16"), ["bf16", "f32"]), (("FP32",), ["f32"])])
def test_bf16_is_tried_for_the_scene_encoder_where_the_cpu_has_it(stand_in, world, graphs, abilities, tried) -> None:
    stand_in.abilities = abilities
    runtime = OpenVinoRuntime(CPU, cache=graphs, threads=1)
    assert [make().runtime for make in runtime.makers(world.component(SCENE_ENCODER))] == [
        "openvino" if precision == "f32" else "openvino bf16" for precision in tried
    ]


def test_a_pipeline_on_a_gpu_is_told_that_openvino_runs_on_a_cpu(stand_in, graphs) -> None:
    with pytest.raises(EngineError, match="engine openvino runs on a CPU, this pipeline runs on 'cuda'"):
        OpenVinoRuntime(torch.device("cuda"), cache=graphs)


@pytest.fixture
def real():
    return pytest.importorskip("openvino", reason="needs OpenVINO: the extra openvino")


def test_every_component_gives_the_answer_of_torch_at_any_batch_size(real, world, graphs) -> None:
    for component in world.components:
        runner = OpenVinoRunner(exported(component, graphs), component.input_names, precision="f32", threads=1)
        for count in (1, 3):
            first, *others = component.inputs
            inputs = (torch.randn(count, *first.shape[1:], generator=torch.Generator().manual_seed(count)), *others)
            with torch.inference_mode():
                given, expected = runner(*inputs), component.original(*inputs)
            assert given.shape == expected.shape
            assert torch.allclose(given, expected, atol=2e-4, rtol=1e-4), component.name


def test_an_answer_is_not_overwritten_by_the_next_one(real, world, graphs) -> None:
    component = world.component(SCENE_ENCODER)
    runner = OpenVinoRunner(exported(component, graphs), component.input_names, precision="f32", threads=1)
    first = runner(component.inputs[0])
    kept = first.clone()
    runner(component.inputs[0] * 2)
    assert torch.equal(first, kept)


def test_bf16_passes_the_gate_of_the_scene_encoder(real, world, graphs) -> None:
    component = world.component(SCENE_ENCODER)
    runtime = OpenVinoRuntime(CPU, cache=graphs, threads=1)
    for make in runtime.makers(component):
        with torch.inference_mode():
            assert smallest_cosine(make()(*component.inputs), component.original(*component.inputs)) > 0.999


def test_masks_and_embeddings_stay_the_same_when_openvino_takes_over(real, world, graphs) -> None:
    image = world.images[0]
    mask, embedding = world.torch_engine.segment(image).mask, world.encoder.embed(image)
    runtime = OpenVinoRuntime(CPU, cache=graphs, threads=1)
    turns = [0]

    def measure(call) -> float:  # torch first: always slower
        call()
        turns[0] += 1
        return 2.0 if turns[0] % 2 else 1.0

    engine = ComponentEngine(
        world.torch_engine, world.components, [runtime], probe_images=world.images, measure=measure
    )
    engine.warm_up()
    assert list(engine.serving) == [SCENE_ENCODER]
    assert engine.notes == []
    assert (engine.segment(image).mask == mask).mean() > 0.999
    cosine = float(np.dot(world.encoder.embed(image), embedding))
    cosine /= float(np.linalg.norm(world.encoder.embed(image)) * np.linalg.norm(embedding))
    assert cosine > 0.999
    engine.close()


def test_a_damaged_graph_is_refused_by_the_real_one(real, tmp_path) -> None:
    path = tmp_path / "broken.engine"
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"OpenVINO refuses broken\.engine"):
        OpenVinoRunner(path, ["x"], precision="f32", threads=1)
