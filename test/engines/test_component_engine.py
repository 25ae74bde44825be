import numpy as np
import pytest
from stand_in_runtime import StandInRuntime, VirtualClock

from semla_ros.engines.component_engine import ComponentEngine
from semla_ros.engines.components import SCENE_ENCODER
from semla_ros.segmentation.fixed_component import DECODER

WRONG = 0.5  # an error that no gate lets pass


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def warm_engine(world, clock, names, *runtimes) -> ComponentEngine:
    engine = ComponentEngine(
        world.torch_engine,
        [world.component(name) for name in names],
        runtimes,
        probe_images=world.images,
        measure=clock,
    )
    engine.warm_up()
    return engine


def test_each_component_is_served_by_its_fastest_runtime_and_diagnostics_name_both(world, clock) -> None:
    first = StandInRuntime("onnx", clock, {"onnx": 0.6})
    second = StandInRuntime("openvino", clock, {"openvino bf16": 0.3, "openvino": 0.7}, components=(SCENE_ENCODER,))
    engine = warm_engine(world, clock, (SCENE_ENCODER, DECODER), first, second)
    assert engine.name == "onnx (decoder), openvino bf16 (scene_encoder)"
    assert list(engine.serving) == [DECODER, SCENE_ENCODER]
    assert engine.notes == []
    assert engine.serving[SCENE_ENCODER].runtime == "openvino bf16"
    assert [item.runtime for item in engine.comparisons] == ["onnx", "openvino bf16", "openvino", "onnx"]
    # A session or compiled graph that lost would keep its weights in memory.
    assert {runner.runtime: runner.is_closed for runner in second.made} == {"openvino bf16": False, "openvino": True}
    assert [runner.is_closed for runner in first.made] == [True, False]
    engine.close()
    assert all(runner.is_closed for runner in (*first.made, *second.made))
    assert "forward" not in vars(world.encoder.tower)


def test_the_fastest_serves_only_if_its_answer_is_that_of_torch(world, clock) -> None:
    runtime = StandInRuntime("openvino", clock, {"openvino bf16": 0.1, "openvino": 0.8}, {"openvino bf16": WRONG})
    engine = warm_engine(world, clock, (SCENE_ENCODER,), runtime)
    assert engine.name == "openvino (scene_encoder)"
    assert engine.notes == []  # torch does not go on, so nothing is to be told


@pytest.mark.parametrize("ways", [{"a": 0.2, "b": 0.4}, {"b": 0.4, "a": 0.2}])
def test_runtimes_are_tried_in_any_order_of_speed(world, clock, ways) -> None:
    engine = warm_engine(world, clock, (SCENE_ENCODER,), StandInRuntime("onnx", clock, ways))
    assert engine.name == "a (scene_encoder)"
    assert engine.serving[SCENE_ENCODER].runtime == "a"


def test_where_none_serves_a_note_tells_of_each_why(world, clock) -> None:
    first = StandInRuntime("onnx", clock, {"onnx": 2.0})
    second = StandInRuntime("openvino", clock, {"openvino bf16": 0.1, "openvino": None}, {"openvino bf16": WRONG})
    engine = warm_engine(world, clock, (SCENE_ENCODER,), first, second)
    assert engine.name == "torch"
    slow, refused, *others = engine.notes
    assert slow == "onnx: scene_encoder: not faster (2.00 ms, torch 1.00 ms)"
    assert refused.startswith("openvino bf16: scene_encoder: cosine 0.")
    assert others == ["openvino: openvino refuses scene_encoder"]
    assert all(runner.is_closed for runner in (*first.made, *second.made))


def test_a_runtime_that_fails_leaves_the_others(world, clock) -> None:
    broken = StandInRuntime("onnx", clock, {"onnx": None})
    engine = warm_engine(world, clock, (SCENE_ENCODER,), broken, StandInRuntime("torch", clock, {"torch bf16": 0.5}))
    assert engine.name == "torch bf16 (scene_encoder)"
    assert engine.notes == []


def test_runners_are_chosen_once(world, clock) -> None:
    runtime = StandInRuntime("onnx", clock, {"onnx": 0.5})
    engine = warm_engine(world, clock, (SCENE_ENCODER,), runtime)
    engine.warm_up()
    assert len(runtime.made) == 1


def decoder_engine(world, clock, ways: dict[str, float], errors: dict[str, float] | None = None) -> ComponentEngine:
    runtime = StandInRuntime("tensorrt", clock, ways, errors)
    return ComponentEngine(
        world.torch_engine, [world.component(DECODER)], [runtime], probe_images=world.images, measure=clock
    )


def test_a_component_whose_masks_differ_is_taken_out_again(world, clock) -> None:
    engine = decoder_engine(world, clock, {"tensorrt": 0.5})
    plain = engine._masks()
    answers = iter([plain, [mask + 1 for mask in plain]])
    engine._masks = lambda: next(answers)
    engine.warm_up()
    assert list(engine.serving) == []
    assert engine.notes == ["decoder: masks agree with torch on 0.00% of the probe pixels, below 99.5%"]
    assert "decode" not in vars(world.model.aggregator)


def test_what_slows_the_whole_frame_down_is_taken_out_again(world, clock) -> None:
    engine = decoder_engine(world, clock, {"tensorrt": 0.5})
    frames = iter([1.0, 3.0])
    engine._frame_ms = lambda: next(frames)
    engine.warm_up()
    assert list(engine.serving) == []
    assert engine.notes == ["decoder: a whole frame takes 3.0 ms, 1.0 ms without"]


def test_what_breaks_whole_frames_is_taken_out_again(world, clock) -> None:
    engine = decoder_engine(world, clock, {"tensorrt": 0.5})
    expected = engine.segment(world.images[0]).mask
    component = engine._components[0]
    plain, calls = component.original, iter(range(13))  # the gate on the component alone calls it so often

    def failing_later(*inputs):
        if next(calls, None) is None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return plain(*inputs)

    object.__setattr__(component, "original", failing_later)
    engine.warm_up()
    assert list(engine.serving) == []
    assert engine.notes == ["decoder: a whole frame fails (CUDA error: an illegal memory access was encountered)"]
    assert np.array_equal(engine.segment(world.images[0]).mask, expected)


def test_the_scene_encoder_is_no_part_of_whole_frames(world, clock) -> None:
    runtime = StandInRuntime("onnx", clock, {"onnx": 0.5})
    engine = ComponentEngine(
        world.torch_engine, [world.component(SCENE_ENCODER)], [runtime], probe_images=[], measure=clock
    )
    engine.warm_up()
    assert list(engine.serving) == [SCENE_ENCODER]
