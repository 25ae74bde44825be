import importlib.util
import itertools
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from fake_tensorrt import FakeToolkit
from tiny_parts import EMBEDDING_DIM

from semla_ros.engines.cache import EngineCache
from semla_ros.engines.components import DECODER, SCENE_ENCODER
from semla_ros.engines.tensorrt.build import BuildRequest, plan_key, provision
from semla_ros.engines.tensorrt.engine import TensorRtEngine
from semla_ros.errors import EngineError

NAMES = {SCENE_ENCODER, DECODER, "patch_embedding", "appearance_guidance", "guidance_1", "guidance_2"}
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def _no_export(monkeypatch, tmp_path) -> None:
    """The exporter has tests of its own; builds here get a file that names the component."""
    graph = tmp_path / "graph.onnx"
    graph.write_text("graph")
    monkeypatch.setattr("semla_ros.engines.tensorrt.build.exported", lambda component, cache, precision: graph)


@pytest.fixture
def cache(tmp_path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def clock(torch_ms: float, engine_ms: float):
    """A clock for gates: a component's torch and runtime are measured in turns, torch first."""
    times = itertools.cycle([torch_ms, engine_ms])

    def measure(call) -> float:
        call()
        return next(times)

    return measure


def make_engine(world, toolkit, cache, **options) -> TensorRtEngine:
    engine = TensorRtEngine(
        world.torch_engine,
        options.pop("components", world.components),
        toolkit,
        probe_images=world.images,
        cache=cache,
        measure=options.pop("measure", clock(2.0, 1.0)),
        **options,
    )
    generator = torch.Generator().manual_seed(5)
    engine.set_text(F.normalize(torch.randn(4, EMBEDDING_DIM, generator=generator), dim=-1))
    return engine


def test_torch_serves_while_plans_are_built_and_they_take_over_when_they_are_ready(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    toolkit.builder.gate = threading.Event()
    engine = make_engine(world, toolkit, cache)
    engine.warm_up()
    expected = engine.segment(world.images[0]).mask
    assert engine.is_building
    assert engine.serving == ()
    assert engine.name.startswith("torch; tensorrt: building scene_encoder (1 of 6)")
    toolkit.builder.gate.set()
    assert engine.wait_until_built(WAIT_S)
    assert np.array_equal(engine.segment(world.images[0]).mask, expected)
    assert set(engine.serving) == NAMES
    assert engine.name.startswith("tensorrt (appearance_guidance, decoder, ")
    assert not engine.notes
    before = toolkit.runners[DECODER].calls
    engine.segment(world.images[0])
    assert toolkit.runners[DECODER].calls > before
    engine.close()
    assert all(runner.is_closed for runner in toolkit.runners.values())


def test_progress_is_told_while_building(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    toolkit.builder.gate = threading.Event()
    engine = make_engine(world, toolkit, cache)
    engine.warm_up()
    deadline = threading.Event()
    for _ in range(200):
        if "50% tactics" in engine.name:
            break
        deadline.wait(0.02)
    assert "50% tactics" in engine.name
    engine.close()
    assert toolkit.builder.was_stopped
    assert not engine.is_building


def test_a_second_start_finds_its_plans_and_builds_nothing(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    assert set(provision(world.components, toolkit, cache).values()) == {"built"}
    again = FakeToolkit(world.components)
    assert set(provision(world.components, again, cache).values()) == {"present"}
    engine = make_engine(world, again, cache)
    engine.warm_up()
    assert set(engine.serving) == NAMES
    assert again.builder.requests == []


def test_provisioning_builds_a_plan_anew_that_cannot_be_loaded(world, cache) -> None:
    provision(world.components, FakeToolkit(world.components), cache)
    toolkit = FakeToolkit(world.components)
    toolkit.refused = {DECODER: RuntimeError("made by another driver")}
    outcome = provision(world.components, toolkit, cache)
    assert outcome == {**dict.fromkeys(NAMES, "present"), DECODER: "built"}
    assert len(toolkit.builder.requests) == 1


@pytest.mark.parametrize("change", ["version", "device"])
def test_plans_of_another_version_or_gpu_are_built_anew(world, cache, change: str) -> None:
    provision(world.components, FakeToolkit(world.components), cache)
    toolkit = FakeToolkit(world.components)
    setattr(toolkit, change, "other")
    engine = make_engine(world, toolkit, cache)
    engine.warm_up()
    assert engine.serving == ()
    assert engine.wait_until_built(WAIT_S)
    engine.segment(world.images[0])
    assert set(engine.serving) == NAMES
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
def test_a_plan_that_cannot_be_loaded_is_built_anew_while_torch_serves(world, cache, failure: Exception) -> None:
    provision(world.components, FakeToolkit(world.components), cache)
    toolkit = FakeToolkit(world.components)
    toolkit.refused = {DECODER: failure}
    engine = make_engine(world, toolkit, cache)
    engine.warm_up()
    assert set(engine.serving) == NAMES - {DECODER}
    first = str(failure).split("\n")[0]
    assert engine.notes == [f"decoder: its plan cannot be loaded and is built anew ({first})"]
    assert engine.wait_until_built(WAIT_S)
    engine.segment(world.images[0])
    assert set(engine.serving) == NAMES
    assert engine.notes == []
    assert [request.destination.name.split("-")[0] for request in toolkit.builder.requests] == [".decoder"]


def test_a_new_plan_that_cannot_be_loaded_leaves_torch_and_is_tried_at_the_next_start(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    toolkit.refused = {DECODER: RuntimeError("CUDA error: out of memory")}
    engine = make_engine(world, toolkit, cache)
    engine.warm_up()
    assert engine.wait_until_built(WAIT_S)
    engine.segment(world.images[0])
    assert set(engine.serving) == NAMES - {DECODER}
    assert engine.notes == ["decoder: its new plan cannot be loaded (CUDA error: out of memory)"]
    engine.close()
    again = FakeToolkit(world.components)
    engine = make_engine(world, again, cache)
    engine.warm_up()
    assert set(engine.serving) == NAMES
    assert again.builder.requests == []


def test_a_plan_that_never_can_be_loaded_is_built_twice_and_then_no_more(world, cache) -> None:
    components = [world.component("guidance_1")]
    key = plan_key(components[0], FakeToolkit(components), "fp16")
    builds, notes = [], []
    for _ in range(4):
        toolkit = FakeToolkit(components)
        toolkit.refused_always = {"guidance_1": EngineError("the driver is too old")}
        engine = make_engine(world, toolkit, cache, components=components)
        engine.warm_up()
        assert engine.wait_until_built(WAIT_S)
        engine.segment(world.images[0])
        assert engine.serving == ()
        builds.append(len(toolkit.builder.requests))
        notes.append(engine.notes)
        engine.close()
    assert builds == [1, 1, 0, 0]
    assert notes[1] == [
        "guidance_1: its new plan cannot be loaded (the driver is too old); not built again until 'semla engine build' "
        "is run"
    ]
    assert (
        notes[2]
        == notes[3]
        == [
            "guidance_1: no plan (two in a row could not be loaded, the driver is too old); 'semla engine build' "
            "tries again"
        ]
    )
    assert cache.find(key) is None
    toolkit = FakeToolkit(components)
    assert provision(components, toolkit, cache) == {"guidance_1": "built"}
    engine = make_engine(world, toolkit, cache, components=components)
    engine.warm_up()
    assert engine.serving == ("guidance_1",)


def test_an_engine_that_builds_nothing_serves_what_the_cache_has(world, cache) -> None:
    components = [world.component("guidance_1"), world.component(DECODER)]
    toolkit = FakeToolkit(world.components)
    provision(components, toolkit, cache)
    toolkit.refused = {DECODER: RuntimeError("CUDA error: out of memory")}
    engine = make_engine(world, toolkit, cache, components=[*components, world.component("guidance_2")], builds=False)
    engine.warm_up()
    assert engine.serving == ("guidance_1",)
    assert not engine.is_building
    assert engine.notes == [
        "decoder: its plan cannot be loaded (CUDA error: out of memory)",
        "guidance_2: no plan (it has not been built); 'semla engine build' tries again",
    ]
    assert len(toolkit.builder.requests) == 2


def test_a_build_that_fails_leaves_torch_with_the_reason_and_the_others_served(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    toolkit.builder.failing = {"guidance_2": "out of memory"}
    engine = make_engine(world, toolkit, cache)
    engine.warm_up()
    assert engine.wait_until_built(WAIT_S)
    engine.segment(world.images[0])
    assert set(engine.serving) == NAMES - {"guidance_2"}
    assert engine.notes == ["the build of guidance_2: out of memory"]


def test_a_plan_that_answers_otherwise_than_torch_is_refused(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    provision(world.components, toolkit, cache)
    toolkit.answer = lambda name, output: output.flip(-1) if name == SCENE_ENCODER else output
    engine = make_engine(world, toolkit, cache)
    engine.warm_up()
    assert SCENE_ENCODER not in engine.serving
    assert "below 0.999" in engine.notes[0]
    assert toolkit.runners[SCENE_ENCODER].is_closed
    assert "forward" not in vars(world.encoder.tower)


def test_a_plan_that_is_slower_than_torch_is_refused(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    provision(world.components, toolkit, cache)
    engine = make_engine(world, toolkit, cache, measure=clock(1.0, 2.0))
    engine.warm_up()
    assert engine.serving == ()
    assert len(engine.notes) == len(NAMES)
    assert all("not faster (2.00 ms, torch 1.00 ms)" in note for note in engine.notes)


def test_plans_that_slow_the_whole_frame_down_are_taken_out_again(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    provision(world.components, toolkit, cache)
    engine = make_engine(world, toolkit, cache, components=[world.component(DECODER)])
    frames = iter([1.0, 3.0])
    engine._frame_ms = lambda: next(frames)
    engine.warm_up()
    assert engine.serving == ()
    assert "a whole frame takes 3.0 ms, 1.0 ms without" in engine.notes[0]


def test_a_plan_that_comes_later_is_compared_with_torch_alone_not_with_the_plans_that_serve(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    first, late = world.component("guidance_2"), world.component(DECODER)
    provision([first], toolkit, cache)
    engine = make_engine(world, toolkit, cache, components=[first, late])
    alone = engine._masks()
    references, judged = [], []
    plain = engine._masks
    engine._frame_ms = lambda: 1.0
    engine._judge_masks = lambda names, expected, before_ms: (references.append(expected), judged.append(names))

    def masks():
        # What the plan of guidance_2 does to whole frames, told by a class that nothing else gives.
        shift = 100 if "guidance_2" in engine.serving and "forward" in vars(world.model.upsample2) else 0
        return [mask + shift for mask in plain()]

    engine._masks = masks
    engine.warm_up()
    assert engine.serving == ("guidance_2",)
    assert engine.wait_until_built(WAIT_S)
    engine.segment(world.images[0])
    assert judged == [["guidance_2"], [DECODER]]
    for expected in references:
        assert all(np.array_equal(given, wanted) for given, wanted in zip(expected, alone, strict=True))
    assert "forward" in vars(world.model.upsample2)  # it serves again after the comparison
    assert set(engine.serving) == {"guidance_2", DECODER}
    engine.close()
    assert "forward" not in vars(world.model.upsample2)


def test_a_plan_that_breaks_whole_frames_is_taken_out_again(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    provision(world.components, toolkit, cache)
    engine = make_engine(world, toolkit, cache, components=[world.component("guidance_1")])
    expected = engine.segment(world.images[0]).mask
    calls = itertools.count()

    def failing_later(name, output):
        # The gate on the component alone calls it seven times.
        if next(calls) > 6:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return output

    toolkit.answer = failing_later
    engine.warm_up()
    assert engine.serving == ()
    assert "illegal memory access" in engine.notes[0]
    assert np.array_equal(engine.segment(world.images[0]).mask, expected)


def test_requests_name_the_range_of_shapes(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    provision(world.components, toolkit, cache)
    profiles = {
        request.destination.name.split("-")[0].lstrip("."): request.profiles for request in toolkit.builder.requests
    }
    assert profiles[SCENE_ENCODER] == {"images": ((1, 3, 48, 64), (1, 3, 48, 64), (8, 3, 48, 64))}
    smallest, usual, largest = profiles[DECODER]["maps"]
    assert (smallest[0], usual[0], largest[0]) == (1, 8, 8)  # this model pads to 8 classes


def test_requests_name_the_gpu_of_the_toolkit(world, cache) -> None:
    toolkit = FakeToolkit(world.components)
    toolkit.device_index = 1
    provision([world.component("guidance_1")], toolkit, cache)
    engine = make_engine(world, toolkit, cache, components=[world.component("guidance_2")])
    engine.warm_up()
    assert engine.wait_until_built(WAIT_S)
    requests = [BuildRequest.from_json(request.as_json()) for request in toolkit.builder.requests]
    assert [request.device_index for request in requests] == [1, 1]
    engine.close()


def test_importing_the_engines_imports_no_runtime() -> None:
    import subprocess

    code = (
        "import sys, semla_ros.engines.choice; "
        "sys.exit(any(name in sys.modules for name in ('tensorrt', 'onnxruntime', 'openvino')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("tensorrt") is None,
    reason="needs a CUDA device and TensorRT 10.3 to 11",
)
def test_a_real_plan_gives_the_answer_of_torch(world, cache, monkeypatch) -> None:
    from semla_ros.engines.export import exported
    from semla_ros.engines.tensorrt.runtime import TensorRtToolkit

    monkeypatch.setattr("semla_ros.engines.tensorrt.build.exported", exported)
    world.model.cuda()
    world.encoder.tower.cuda()
    from semla_ros.engines.components import fixed_components

    components = fixed_components(world.model, world.encoder)
    toolkit = TensorRtToolkit(torch.device("cuda"))
    assert set(provision(components, toolkit, cache).values()) == {"built"}
    from semla_ros.engines.gates import smallest_cosine
    from semla_ros.engines.tensorrt.build import plan_key

    for component in components:
        path = cache.find(plan_key(component, toolkit, "fp16"))
        assert path is not None
        runner = toolkit.load(path, component.input_names)
        with torch.inference_mode():
            assert smallest_cosine(runner(*component.inputs), component.original(*component.inputs)) > 0.999
        runner.close()


def test_without_a_gpu_the_engine_says_what_it_needs() -> None:
    from fake_tensorrt import fake_module

    from semla_ros.engines.tensorrt.runtime import TensorRtToolkit

    with pytest.raises(EngineError, match="needs a CUDA device, this pipeline runs on 'cpu'"):
        TensorRtToolkit(torch.device("cpu"), trt=fake_module())
