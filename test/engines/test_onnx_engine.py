import copy
import dataclasses
import itertools

import numpy as np
import onnx
import pytest
import torch

import semla_ros.engines.onnx_engine as onnx_engine
from semla_ros.engines.cache import EngineCache
from semla_ros.engines.component_engine import ComponentEngine
from semla_ros.engines.components import SCENE_ENCODER
from semla_ros.engines.export import export_key, exported
from semla_ros.engines.gates import judge, smallest_cosine
from semla_ros.engines.onnx_engine import OnnxRunner, OnnxRuntime, choose_providers
from semla_ros.errors import EngineError
from semla_ros.segmentation.fixed_component import DECODER

NAMES = {SCENE_ENCODER, DECODER}


def runner_for(component, cache: EngineCache) -> OnnxRunner:
    return OnnxRunner(
        exported(component, cache), component.input_names, providers=[("CPUExecutionProvider", {})], threads=1
    )


def alternating(torch_ms: float, engine_ms: float):
    """A clock for gates: a component's torch and runtime are measured in turns, torch first."""
    times = itertools.cycle([torch_ms, engine_ms])

    def measure(call) -> float:
        call()
        return next(times)

    return measure


def test_every_exported_component_gives_the_answer_of_torch_at_any_batch_size(world, graphs) -> None:
    assert {component.name for component in world.components} == NAMES
    for component in world.components:
        runner = runner_for(component, graphs)
        for count in (1, 3):
            first, *others = component.inputs
            inputs = (torch.randn(count, *first.shape[1:], generator=torch.Generator().manual_seed(count)), *others)
            with torch.inference_mode():
                given, expected = runner(*inputs), component.original(*inputs)
            assert given.shape == expected.shape
            assert torch.allclose(given, expected, atol=2e-4, rtol=1e-4), component.name


def test_inputs_are_matched_by_name_whatever_order_the_graph_has_them_in(world, graphs, tmp_path) -> None:
    component = world.component(DECODER)
    model = onnx.load(exported(component, graphs))
    names = [item.name for item in model.graph.input]
    reordered = [*model.graph.input][::-1]
    del model.graph.input[:]
    model.graph.input.extend(reordered)
    onnx.save(model, tmp_path / "reordered.onnx")
    runner = OnnxRunner(
        tmp_path / "reordered.onnx", component.input_names, providers=[("CPUExecutionProvider", {})], threads=1
    )
    assert names == list(component.input_names)
    with torch.inference_mode():
        given, expected = runner(*component.inputs), component.original(*component.inputs)
    assert torch.allclose(given, expected, atol=2e-4, rtol=1e-4)


def test_initialisers_keep_the_names_and_values_of_the_weights(world, graphs) -> None:
    for component in world.components:
        graph = onnx.load(exported(component, graphs)).graph
        stored = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
        for name, weight in component.module.named_parameters():
            assert np.array_equal(stored[name], weight.detach().numpy()), f"{component.name}: {name}"


def test_half_precision_is_in_the_graph_while_inputs_and_output_stay_fp32(world, tmp_path) -> None:
    component = world.component(DECODER)
    path = exported(component, EngineCache(tmp_path), "fp16")
    graph = onnx.load(path).graph
    assert {item.data_type for item in graph.initializer if item.name.endswith("weight")} == {onnx.TensorProto.FLOAT16}
    kinds = {item.type.tensor_type.elem_type for item in [*graph.input, *graph.output]}
    assert kinds == {onnx.TensorProto.FLOAT}
    assert next(component.module.parameters()).dtype == torch.float32  # the model itself is untouched
    runner = OnnxRunner(path, component.input_names, providers=[("CPUExecutionProvider", {})], threads=1)
    with torch.inference_mode():
        cosine = smallest_cosine(runner(*component.inputs), component.original(*component.inputs))
    assert 0.9999 < cosine < 1.0


def onnx_engine_for(world, graphs, *, torch_ms: float, engine_ms: float) -> ComponentEngine:
    engine = ComponentEngine(
        world.torch_engine,
        world.components,
        [OnnxRuntime(torch.device("cpu"), cache=graphs, threads=1)],
        probe_images=world.images,
        measure=alternating(torch_ms, engine_ms),
    )
    engine.warm_up()
    return engine


def test_masks_and_embeddings_stay_the_same_when_onnx_runtime_takes_over(world, graphs) -> None:
    image = world.images[0]
    mask, embedding = world.torch_engine.segment(image).mask, world.encoder.embed(image)
    engine = onnx_engine_for(world, graphs, torch_ms=2.0, engine_ms=1.0)
    assert engine.name == "onnx (scene_encoder)"
    assert not engine.notes
    assert engine.serving[SCENE_ENCODER].cosine > 0.99999
    assert (engine.segment(image).mask == mask).all()
    assert np.allclose(world.encoder.embed(image), embedding, atol=1e-4)
    assert len(np.unique(mask)) > 1
    engine.close()
    assert "forward" not in vars(world.encoder.tower)


def test_what_is_not_faster_stays_in_torch_with_the_figures(world, graphs) -> None:
    engine = onnx_engine_for(world, graphs, torch_ms=1.0, engine_ms=1.0)
    assert list(engine.serving) == []
    assert engine.name == "torch"
    assert engine.notes == ["scene_encoder: not faster (1.00 ms, torch 1.00 ms)"]


def test_an_answer_that_differs_from_torch_is_refused(world) -> None:
    component = world.component(DECODER)
    noise = torch.randn(component.original(*component.inputs).shape)

    def wrong(*inputs):
        return component.original(*inputs) + noise

    verdict = judge(component, wrong)
    assert not verdict.passed
    assert "below 0.999" in verdict.reason
    assert not judge(component, lambda *inputs: component.original(*inputs) * float("nan")).passed
    assert not judge(component, lambda *inputs: component.original(*inputs)[..., :1]).passed

    def broken(*inputs):
        raise RuntimeError("out of memory\nsecond line")

    assert judge(component, broken).reason == "decoder: does not run (out of memory)"


def decoder_inputs(world, count: int, images: int = 1) -> tuple[torch.Tensor, list[torch.Tensor], tuple[()]]:
    """Aggregated maps, channels-last, of some classes, and what guides their decoding before it is upsampled."""
    maps, *blocks = world.component(DECODER).inputs
    x = torch.randn(images, count, *maps.shape[2:], maps.shape[1], generator=torch.Generator().manual_seed(count))
    return x, [torch.cat([block * (image + 1) for image in range(images)]) for block in blocks], ()


def decode(world, x: torch.Tensor, blocks: list[torch.Tensor], details: tuple[()]) -> torch.Tensor:
    upsampled = [world.model.upsample1(blocks[0]), world.model.upsample2(blocks[1])]
    return world.model.aggregator.decode(x, upsampled, details)


def test_inputs_that_an_engine_was_not_built_for_go_to_torch(world) -> None:
    component = world.component(DECODER)
    seen = []

    def runner(maps, *guidance):
        seen.append(len(maps))
        return component.original(maps, *guidance)

    for count in (1, component.max_batch, component.max_batch + 1):
        inputs = decoder_inputs(world, count)
        expected = decode(world, *inputs)
        with component.mount(runner):
            assert torch.allclose(decode(world, *inputs), expected, atol=1e-6)
    assert seen == [1, component.max_batch]


def test_the_decoder_is_served_image_by_image(world) -> None:
    component = world.component(DECODER)
    inputs = decoder_inputs(world, 3, images=2)
    expected = decode(world, *inputs)
    with component.mount(copy.deepcopy(component.module)):
        assert torch.allclose(decode(world, *inputs), expected, atol=1e-5)
    assert "decode" not in vars(world.model.aggregator)
    assert "forward" not in vars(world.model.upsample1)


def test_an_export_is_made_once(world, graphs, monkeypatch) -> None:
    component = world.component(DECODER)
    monkeypatch.setattr("semla_ros.engines.export.export_onnx", None)  # would be called for a new one
    assert exported(component, graphs).is_file()


def test_other_weights_are_another_key(world) -> None:
    component = world.component(DECODER)
    before = export_key(component, "fp32")
    assert export_key(component, "fp16") != before
    for module in (world.model.aggregator.head, world.model.upsample1):
        module.weight.data[0, 0, 0, 0] += 1e-3
        assert export_key(dataclasses.replace(component), "fp32") != before
        module.weight.data[0, 0, 0, 0] -= 1e-3


def test_what_adapters_change_is_in_no_component(world) -> None:
    from semla_ros.segmentation.targets import lora_signature

    adapted = {id(world.model.get_submodule(path).weight) for path in lora_signature(world.model)}
    fixed = {id(item) for component in world.components for item in component.module.parameters()}
    assert not adapted & fixed


def test_a_component_that_cannot_be_exported_leaves_torch_with_the_reason(world, graphs, monkeypatch) -> None:
    def failing(component, cache):
        raise EngineError(f"component '{component.name}' cannot be exported to ONNX: no such operator")

    monkeypatch.setattr(onnx_engine, "exported", failing)
    engine = onnx_engine_for(world, graphs, torch_ms=2.0, engine_ms=1.0)
    assert list(engine.serving) == []
    assert engine.notes == ["component 'scene_encoder' cannot be exported to ONNX: no such operator"]


def test_a_damaged_graph_is_an_error_with_its_name(tmp_path) -> None:
    path = tmp_path / "broken.engine"
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"refuses broken\.engine"):
        OnnxRunner(path, ["x"], providers=[("CPUExecutionProvider", {})], threads=1)


def test_providers_follow_the_device() -> None:
    available = ["CUDAExecutionProvider", "CPUExecutionProvider", "TensorrtExecutionProvider"]
    assert choose_providers(torch.device("cpu"), available) == [("CPUExecutionProvider", {})]
    for name, index in (("cuda", "0"), ("cuda:1", "1")):
        first, *_, last = choose_providers(torch.device(name), available)
        assert first == ("TensorrtExecutionProvider", {"device_id": index})
        assert last == ("CPUExecutionProvider", {})
