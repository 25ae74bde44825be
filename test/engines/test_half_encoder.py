import numpy as np
import pytest
import torch
from stand_in_runtime import VirtualClock

from semla_ros.engines.component_engine import ComponentEngine
from semla_ros.engines.components import SCENE_ENCODER
from semla_ros.engines.gates import judge
from semla_ros.engines.half_encoder import HalfRunner, HalfRuntime
from semla_ros.engines.torch_engine import has_bf16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_gives_the_embedding_of_fp32_within_the_gate_and_leaves_the_encoder_as_it_is(world, dtype) -> None:
    component = world.component(SCENE_ENCODER)
    runner = HalfRunner(component.module, dtype)
    with torch.inference_mode():
        answer = runner(*component.inputs)
    assert answer.dtype == torch.float32
    assert judge(component, runner, measure=VirtualClock()).cosine > 0.999
    assert {item.dtype for item in component.module.parameters()} == {torch.float32}
    runner.close()


def test_embeddings_come_from_the_bf16_copy_once_it_serves(world) -> None:
    image = world.images[0]
    expected = world.encoder.embed(image)
    turns = iter([2.0, 1.0] * 5)

    def measure(call) -> float:
        call()
        return next(turns)

    engine = ComponentEngine(
        world.torch_engine,
        [world.component(SCENE_ENCODER)],
        [HalfRuntime(torch.bfloat16)],
        probe_images=[],
        measure=measure,
    )
    engine.warm_up()
    assert engine.name == "torch bf16 (scene_encoder)"
    given = world.encoder.embed(image)
    assert given.dtype == np.float32
    assert 0 < np.abs(given - expected).max() < 0.1 * expected.std()
    engine.close()
    assert np.array_equal(world.encoder.embed(image), expected)


def test_the_instructions_are_a_fact_about_this_machine() -> None:
    assert has_bf16() in (True, False)
