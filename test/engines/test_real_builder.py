"""Every component through a real TensorRT parser and builder: that of TensorRT-RTX builds plans without a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.scene_image import ScenePreprocessing
from semla_ros.adaptation.scene_tower import SceneTower
from semla_ros.engines.components import fixed_components
from semla_ros.engines.export import export_onnx
from semla_ros.engines.tensorrt.builder import BuildRequest, build_plan
from semla_ros.engines.tensorrt.runtime import profiles_of
from semla_ros.errors import EngineError
from semla_ros.resources import find_model
from semla_ros.segmentation.checkpoint import load_model
from semla_ros.segmentation.clip import ClipConfig
from semla_ros.segmentation.fixed_component import FixedComponent
from semla_ros.segmentation.model import CatSeg, CatSegConfig

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: the extra dev")

SHIPPED = "semla-tiny"
WORKSPACE = 768 << 20  # bytes


def shipped_encoder() -> FixedComponent:
    return fixed_components(None, SceneEncoder.load(find_model(SHIPPED)))[0]


def shipped_decoder() -> FixedComponent:
    return fixed_components(load_model(find_model(SHIPPED)).model, None)[0]


def published_decoder() -> FixedComponent:
    """That of B with random weights, made without most of the towers, which are no part of it."""
    config = CatSegConfig.catseg_b()
    clip = dataclasses.replace(config.clip, visual_layers=3, text_layers=1, vocab_rows=2)
    return fixed_components(CatSeg(dataclasses.replace(config, clip=clip, guidance_layers=(0, 1))).eval(), None)[0]


def published_encoder() -> FixedComponent:
    """ViT-L/14, that of both published sizes, with random weights in two of its 24 layers."""
    grid = (16, 16)
    config = ClipConfig(
        patch=14, visual_width=1024, visual_layers=2, native_grid=grid, working_grid=grid, embed_dim=768
    )
    encoder = SceneEncoder(SceneTower(config), ScenePreprocessing(height=224, width=224), id="ViT-L-14/cut", dim=768)
    return fixed_components(None, encoder)[0]


def request_for(component: FixedComponent, folder: Path) -> BuildRequest:
    export_onnx(component, folder / "graph.onnx", "fp16")
    graph, plan = str(folder / "graph.onnx"), str(folder / "plan")
    return BuildRequest(graph=graph, destination=plan, profiles=profiles_of(component))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> BuildRequest:
    """That of the shipped model; not built yet."""
    return request_for(shipped_decoder(), tmp_path_factory.mktemp("decoder"))


def test_the_shipped_decoder_is_built(decoder: BuildRequest) -> None:
    build_plan(decoder, trt, WORKSPACE)
    size = Path(decoder.destination).stat().st_size
    assert size > Path(decoder.graph).stat().st_size / 2  # the weights are in it
    Path(decoder.destination).unlink()


@pytest.mark.parametrize("make", [shipped_encoder, published_encoder, published_decoder])
def test_every_other_component_is_built_from_the_graph_that_is_exported(make, tmp_path) -> None:
    torch.manual_seed(0)
    request = request_for(make(), tmp_path)
    build_plan(request, trt, WORKSPACE)
    assert Path(request.destination).stat().st_size > Path(request.graph).stat().st_size / 2


def test_what_the_builder_refuses_is_told_in_its_own_words(decoder: BuildRequest) -> None:
    smallest, usual, largest = decoder.profiles["maps"]
    for profiles, workspace, reason in [
        ({"maps": (largest, usual, smallest)}, WORKSPACE, r"refuses the range of shapes.*MIN<=OPT<=MAX"),
        ({"map": (smallest, usual, largest)}, WORKSPACE, "built no plan: .*maps is missing dimensions in profile 0"),
        ({"maps": ((1, 4), (2, 4), (4, 4))}, WORKSPACE, "built no plan: .*maps has 4 dimensions but profile 0 has 2"),
        (decoder.profiles, 1 << 20, "built no plan: .*workspace"),
    ]:
        with pytest.raises(EngineError, match=reason):
            build_plan(dataclasses.replace(decoder, profiles=profiles), trt, workspace)
    assert not Path(decoder.destination).exists()


def test_a_graph_that_computes_its_axes_is_refused_with_the_parsers_reason(tmp_path) -> None:
    """What torch exports and `export_onnx` folds."""
    kind, helper = onnx.TensorProto, onnx.helper
    constants = [helper.make_tensor("axis", kind.INT64, [], [1]), helper.make_tensor("as_list", kind.INT64, [1], [-1])]
    nodes = [
        helper.make_node("Reshape", ["axis", "as_list"], ["axes"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("x", kind.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("mean", kind.FLOAT, [2])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "graph.onnx")
    request = BuildRequest(graph=str(tmp_path / "graph.onnx"), destination=str(tmp_path / "plan"), profiles={})
    with pytest.raises(EngineError, match=r"cannot read the graph: .*must resolve to a build-time constant"):
        build_plan(request, trt, WORKSPACE)
