"""Intermediate activations of the sliding-window batch, without adapter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from reference_set import Arrays, class_rows, image_tensor, largest_error
from torch import Tensor

from semla_ros.segmentation.checkpoint import LoadedModel
from semla_ros.segmentation.inference import probability_maps

STAGE_TOLERANCE = 2e-4  # relative to the largest value of the tensor
LOGIT_TOLERANCE = 5e-4
GLOBAL = -1  # the global view stands behind the windows


@pytest.fixture(scope="module", params=[True, False], ids=["rewritten", "literal"])
def activations(request, golden_model: LoadedModel, golden_inputs, golden_tokens) -> Iterator[dict[str, Tensor]]:
    """What the model computes on the way, by the names of the reference file."""
    model = golden_model.model
    seen: dict[str, Tensor] = {}

    def record(name: str, module: torch.nn.Module, keep=lambda output: output) -> None:
        handles.append(module.register_forward_hook(lambda _m, _i, output: seen.__setitem__(name, keep(output))))

    handles: list = []
    aggregator = model.aggregator
    for index, layer in enumerate(aggregator.layers):
        record(f"swin{index}", layer.swin_block)
        record(f"layer{index}", layer)
    record("res4", model.upsample1)
    record("res5", model.upsample2)
    record("appearance", aggregator.guidance_projection)
    record("text_guidance", aggregator.text_guidance_projection)
    handles.append(aggregator.register_forward_pre_hook(lambda _m, inputs: seen.__setitem__("corr", inputs[0])))
    text = model.encode_text(class_rows(golden_tokens))

    def predict(images: Tensor) -> Tensor:
        seen["crops"] = images
        dense = model.encode_dense(images)
        seen["dense"], seen["hook0"], seen["hook1"] = dense.tokens, *dense.guidance
        seen["logits"] = model(images, text)
        return seen["logits"]

    model.exact_rewrites = request.param
    with torch.no_grad():
        probability_maps(predict, model.config, image_tensor(golden_inputs, "img0"), "sliding")
    yield seen
    model.exact_rewrites = True
    for handle in handles:
        handle.remove()


def assert_close(actual: Tensor, expected: np.ndarray, tolerance: float = STAGE_TOLERANCE) -> None:
    assert largest_error(actual, expected) < tolerance * np.abs(expected).max()


def strided(maps: Tensor, expected: np.ndarray) -> Tensor:
    """Every n-th row and column of (..., H, W), n from the size of the reference."""
    step = maps.shape[-1] // expected.shape[-1]
    return maps[..., ::step, ::step]


def test_crops_match(activations, golden_stages: Arrays) -> None:
    crops = activations["crops"]
    spread = torch.stack([crops.mean(dim=(2, 3)), crops.std(dim=(2, 3))])
    assert_close(spread, golden_stages["crops_mean_std"])
    for name, index in (("crop0_ds", 0), ("crop3_ds", 3), ("crop_global_ds", GLOBAL)):
        assert_close(strided(crops[index], golden_stages[name]), golden_stages[name])


def test_dense_features_match(activations, golden_stages: Arrays) -> None:
    assert_close(activations["dense"][GLOBAL], golden_stages["dense_global"])
    assert_close(activations["dense"][0, ::8], golden_stages["dense_crop0_every8"])
    for name in ("hook0", "hook1"):
        assert_close(activations[name][GLOBAL, ::8], golden_stages[f"{name}_global_every8"])


def test_guidance_matches(activations, golden_stages: Arrays) -> None:
    for name, key in (
        ("res4", "res4_global_every3"),
        ("res5", "res5_global_every6"),
        ("appearance", "appearance_guidance_global_every3"),
    ):
        expected = golden_stages[key]
        assert_close(strided(activations[name][GLOBAL], expected), expected)
    text_guidance = activations["text_guidance"].reshape(golden_stages["text_guidance"].shape)
    assert_close(text_guidance, golden_stages["text_guidance"])


def test_the_cost_volume_matches(activations, golden_stages: Arrays) -> None:
    assert_close(activations["corr"][GLOBAL], golden_stages["corr_global"])


def test_each_half_of_each_aggregator_layer_matches(activations, golden_stages: Arrays) -> None:
    names = [name for name in golden_stages if name.startswith(("swin", "layer"))]
    assert names
    for name in names:
        maps = activations[name.split("_")[0]][GLOBAL].permute(3, 0, 1, 2)  # (C, T, H, W)
        assert_close(strided(maps, golden_stages[name]), golden_stages[name])


def test_logits_match(activations, golden_stages: Arrays) -> None:
    logits = activations["logits"]
    assert largest_error(logits[GLOBAL], golden_stages["logits_global"]) < LOGIT_TOLERANCE
    expected = golden_stages["logits_crop0_every4"]
    assert largest_error(strided(logits[0], expected), expected) < LOGIT_TOLERANCE
