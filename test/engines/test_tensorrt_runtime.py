import importlib.util
import itertools
import threading

import numpy as np
import pytest
import torch
from fake_tensorrt import FakeToolkit, component_of, fake_module

from semla_ros.engines.cache import EngineCache
from semla_ros.engines.component_engine import ComponentEngine
from semla_ros.engines.components import SCENE_ENCODER, fixed_components
from semla_ros.engines.gates import smallest_cosine
from semla_ros.engines.tensorrt.runner import TensorRtToolkit
from semla_ros.engines.tensorrt.runtime import TensorRtRuntime
from semla_ros.errors import EngineError
from semla_ros.segmentation.fixed_component import DECODER

NAMES = [DECODER, SCENE_ENCODER]
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def _no_export(request, monkeypatch, tmp_path) -> None:
    """The exporter has tests of its own; builds here get a file that names the component."""
    if request.node.get_closest_marker("gpu") is None:
        graph = tmp_path / "graph.onnx"
        graph.write_text("graph")
        monkeypatch.setattr("semla_ros.engines.tensorrt.runtime.exported", lambda component, cache, precision: graph)


@pytest.fixture
def cache(tmp_path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def toolkit(world) -> FakeToolkit:
    return FakeToolkit(world.components)


def clock(torch_ms: float, engine_ms: float):
    """A clock for gates: a component's torch and runtime are measured in turns, torch first."""
    times = itertools.cycle([torch_ms, engine_ms])

    def measure(call) -> float:
        call()
        return next(times)

    return measure


def build_all(world, toolkit, cache) -> list[str]:
    """What `semla engine build` does; names of what was built."""
    before = len(toolkit.builder.requests)
    runtime = TensorRtRuntime(toolkit, cache=cache, builds=False)
    for component in world.components:
        runtime.build(component)
        assert runtime.is_built(component)
    return sorted(map(component_of, toolkit.builder.requests[before:]))


def make_engine(world, toolkit, cache, *, names=tuple(NAMES), builds: bool = True, measure=None) -> ComponentEngine:
    """An engine that has just been started; `runtime` is its runtime."""
    engine = ComponentEngine(
        world.torch_engine,
        [world.component(name) for name in names],
        [TensorRtRuntime(toolkit, cache=cache, builds=builds)],
        probe_images=world.images,
        measure=measure or clock(2.0, 1.0),
    )
    engine.runtime = engine._runtimes[0]
    engine._frame_ms = lambda: 1.0
    engine.set_text(world.text)  # a close takes it away
    engine.warm_up()
    return engine


def finish_builds(world, engine) -> list[str]:
    """Names of what serves after the background builds."""
    assert engine.runtime.wait_until_built(WAIT_S)
    engine.catch_up()
    engine.segment(world.images[0])
    return list(engine.serving)


def test_torch_serves_while_plans_are_built_and_they_take_over_when_they_are_ready(world, toolkit, cache) -> None:
    toolkit.builder.gate = threading.Event()
    engine = make_engine(world, toolkit, cache)
    expected = engine.segment(world.images[0]).mask
    assert list(engine.serving) == []
    assert engine.name == "torch; tensorrt: building decoder (1 of 2)"
    toolkit.builder.gate.set()
    assert finish_builds(world, engine) == NAMES
    assert np.array_equal(engine.segment(world.images[0]).mask, expected)
    assert engine.name == "tensorrt (decoder, scene_encoder)"
    assert not engine.notes
    before = toolkit.runners[DECODER].calls
    engine.segment_batch(world.images[:1])
    assert toolkit.runners[DECODER].calls > before
    engine.close()
    assert all(runner.is_closed for runner in toolkit.runners.values())
    assert "forward" not in vars(world.encoder.tower)


def test_plans_are_loaded_and_judged_before_a_frame_and_only_whole_frames_are_compared_within_one(
    world, toolkit, cache
) -> None:
    engine = make_engine(world, toolkit, cache)
    expected = engine.segment(world.images[0]).mask
    assert engine.runtime.wait_until_built(WAIT_S)
    engine.segment(world.images[0])
    assert not toolkit.runners  # a frame alone loads nothing
    engine.catch_up()
    assert sorted(toolkit.runners) == NAMES
    assert list(engine.serving) == [SCENE_ENCODER]
    assert np.array_equal(engine.segment(world.images[0]).mask, expected)
    assert list(engine.serving) == NAMES
    engine.close()


def test_a_plan_that_no_frame_came_to_try_is_given_back(world, toolkit, cache) -> None:
    engine = make_engine(world, toolkit, cache)
    assert engine.runtime.wait_until_built(WAIT_S)
    engine.catch_up()
    engine.close()
    assert all(runner.is_closed for runner in toolkit.runners.values())


def test_a_close_ends_the_build(world, toolkit, cache) -> None:
    toolkit.builder.gate = threading.Event()
    engine = make_engine(world, toolkit, cache)
    engine.close()
    assert toolkit.builder.was_stopped
    assert engine.runtime.state == ""
    assert engine.runtime.arrivals() == []
    assert len(toolkit.builder.requests) <= 1


def test_a_second_start_finds_its_plans_and_builds_nothing(world, toolkit, cache) -> None:
    assert build_all(world, toolkit, cache) == NAMES
    assert build_all(world, toolkit, cache) == []
    again = FakeToolkit(world.components)
    assert list(make_engine(world, again, cache).serving) == NAMES
    assert again.builder.requests == []


def test_provisioning_builds_a_plan_anew_that_cannot_be_loaded(world, toolkit, cache) -> None:
    build_all(world, toolkit, cache)
    toolkit.refused = {DECODER: RuntimeError("made by another driver")}
    assert build_all(world, toolkit, cache) == [DECODER]


@pytest.mark.parametrize("change", ["version", "device"])
def test_plans_of_another_version_or_gpu_are_built_anew(world, toolkit, cache, change: str) -> None:
    build_all(world, FakeToolkit(world.components), cache)
    setattr(toolkit, change, "other")
    engine = make_engine(world, toolkit, cache)
    assert list(engine.serving) == []
    assert finish_builds(world, engine) == NAMES
    assert len(toolkit.builder.requests) == len(NAMES)


@pytest.mark.parametrize(
    "failure",
    [
        EngineError("TensorRT 10.3.0 refuses the plan"),
        RuntimeError("CUDA error: out of memory\nsecond line"),
        TypeError("deserialize_cuda_engine(): incompatible arguments"),
        FileNotFoundError("another process removed it"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_plan_that_cannot_be_loaded_is_built_anew_while_torch_serves(
    world, toolkit, cache, failure: Exception
) -> None:
    build_all(world, FakeToolkit(world.components), cache)
    toolkit.refused = {DECODER: failure}
    engine = make_engine(world, toolkit, cache)
    assert list(engine.serving) == [SCENE_ENCODER]
    first = str(failure).split("\n")[0]
    assert engine.notes == [f"decoder: its plan cannot be loaded and is built anew ({first})"]
    assert finish_builds(world, engine) == NAMES
    assert engine.notes == []
    assert list(map(component_of, toolkit.builder.requests)) == [DECODER]
    engine.close()
    again = FakeToolkit(world.components)
    assert list(make_engine(world, again, cache).serving) == NAMES
    assert again.builder.requests == []


def test_a_new_plan_that_cannot_be_loaded_leaves_torch_and_is_tried_at_the_next_start(world, toolkit, cache) -> None:
    toolkit.refused = {DECODER: RuntimeError("CUDA error: out of memory")}
    engine = make_engine(world, toolkit, cache)
    assert finish_builds(world, engine) == [SCENE_ENCODER]
    assert engine.notes == ["decoder: its new plan cannot be loaded (CUDA error: out of memory)"]
    engine.close()
    again = FakeToolkit(world.components)
    assert list(make_engine(world, again, cache).serving) == NAMES
    assert again.builder.requests == []


def test_a_plan_that_never_can_be_loaded_is_built_twice_and_then_no_more(world, cache) -> None:
    builds, notes = [], []
    for _ in range(4):
        toolkit = FakeToolkit(world.components)
        toolkit.refused_always = {DECODER: EngineError("the driver is too old")}
        engine = make_engine(world, toolkit, cache, names=[DECODER])
        assert finish_builds(world, engine) == []
        builds.append(len(toolkit.builder.requests))
        notes.append(engine.notes)
        engine.close()
    assert builds == [1, 1, 0, 0]
    assert notes[1] == [
        "decoder: its new plan cannot be loaded (the driver is too old); not built again until 'semla engine build' is "
        "run"
    ]
    last = ["decoder: its plan cannot be loaded (the driver is too old); 'semla engine build' makes another"]
    assert notes[2] == notes[3] == last
    toolkit = FakeToolkit(world.components)
    toolkit.refused = {DECODER: EngineError("the driver is too old")}  # the second one, once more
    assert DECODER in build_all(world, toolkit, cache)
    assert list(make_engine(world, toolkit, cache, names=[DECODER]).serving) == [DECODER]


def test_an_engine_that_builds_nothing_serves_what_the_cache_has(world, toolkit, cache) -> None:
    runtime = TensorRtRuntime(toolkit, cache=cache)
    runtime.build(world.component(SCENE_ENCODER))
    engine = make_engine(world, toolkit, cache, builds=False)
    assert list(engine.serving) == [SCENE_ENCODER]
    assert engine.notes == ["decoder: no plan; 'semla engine build' makes it"]
    runtime.build(world.component(DECODER))
    toolkit.refused = {DECODER: RuntimeError("CUDA error: out of memory")}
    engine = make_engine(world, toolkit, cache, builds=False)
    (note,) = engine.notes
    assert note.startswith("decoder: its plan cannot be loaded (CUDA error: out of memory)")
    assert len(toolkit.builder.requests) == 2


def test_a_build_that_fails_leaves_torch_with_the_reason_and_the_others_served(world, toolkit, cache) -> None:
    toolkit.builder.failing = {DECODER: "out of memory"}
    engine = make_engine(world, toolkit, cache)
    assert finish_builds(world, engine) == [SCENE_ENCODER]
    assert engine.notes == ["the build of decoder: out of memory"]


def test_a_plan_that_answers_otherwise_than_torch_is_refused(world, toolkit, cache) -> None:
    build_all(world, toolkit, cache)
    toolkit.answer = lambda name, output: output.flip(-1) if name == SCENE_ENCODER else output
    engine = make_engine(world, toolkit, cache)
    assert list(engine.serving) == [DECODER]
    assert "below 0.999" in engine.notes[0]
    assert toolkit.runners[SCENE_ENCODER].is_closed
    assert "forward" not in vars(world.encoder.tower)


def test_a_plan_that_is_slower_than_torch_is_refused(world, toolkit, cache) -> None:
    build_all(world, toolkit, cache)
    engine = make_engine(world, toolkit, cache, measure=clock(1.0, 2.0))
    assert list(engine.serving) == []
    assert engine.notes == [f"{name}: not faster (2.00 ms, torch 1.00 ms)" for name in NAMES]


def test_requests_name_the_gpu_of_the_toolkit_and_the_range_of_shapes(world, toolkit, cache) -> None:
    toolkit.device_index = 1
    build_all(world, toolkit, cache)
    requests = {component_of(item): item for item in toolkit.builder.requests}
    assert [request.device_index for request in requests.values()] == [1, 1]
    assert requests[SCENE_ENCODER].profiles == {"images": ((1, 3, 48, 64), (1, 3, 48, 64), (8, 3, 48, 64))}
    smallest, usual, largest = requests[DECODER].profiles["maps"]
    assert (smallest[0], usual[0], largest[0]) == (1, 8, 8)  # this model pads to 8 classes


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("tensorrt") is None,
    reason="needs a CUDA device and TensorRT 10.3 to 11",
)
def test_a_real_plan_gives_the_answer_of_torch(world, cache) -> None:
    world.model.cuda()
    world.encoder.tower.cuda()
    runtime = TensorRtRuntime(TensorRtToolkit(torch.device("cuda")), cache=cache)
    for component in fixed_components(world.model, world.encoder):
        runtime.build(component)
        (make,) = runtime.makers(component)
        runner = make()
        with torch.inference_mode():
            assert smallest_cosine(runner(*component.inputs), component.original(*component.inputs)) > 0.999
        runner.close()


def test_without_a_gpu_the_toolkit_says_what_it_needs() -> None:
    with pytest.raises(EngineError, match="needs a CUDA device, this pipeline runs on 'cpu'"):
        TensorRtToolkit(torch.device("cpu"), trt=fake_module())
