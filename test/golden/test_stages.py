"""Intermediate activations of the sliding-window batch, without adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from reference_set import Arrays, class_rows, image_tensor, largest_error, only_entry
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


def compare(stages: Arrays, pattern: str, values) -> None:
    """Hold the entries of this form against `values(match)`, a tensor before the stride that the name tells."""
    found = [match for name in stages if (match := re.fullmatch(pattern, name))]
    assert found, f"no entry of the form {pattern}"
    for match in found:
        assert_close(values(match), stages[match.string])


def test_crops_match(activations, golden_stages: Arrays) -> None:
    crops = activations["crops"]
    spread = torch.stack([crops.mean(dim=(2, 3)), crops.std(dim=(2, 3))])
    assert_close(spread, golden_stages["crops_mean_std"])

    def crop(match: re.Match[str]) -> Tensor:
        index = GLOBAL if match["which"] == "_global" else int(match["which"])
        return strided(crops[index], golden_stages[match.string])

    compare(golden_stages, r"crop(?P<which>\d+|_global)_ds", crop)


def test_dense_features_match(activations, golden_stages: Arrays) -> None:
    dense = activations["dense"]
    assert_close(dense[GLOBAL], golden_stages["dense_global"])
    compare(golden_stages, r"dense_crop(\d+)_every(\d+)", lambda match: dense[int(match[1]), :: int(match[2])])
    compare(
        golden_stages,
        r"hook(\d)_global_every(\d+)",
        lambda match: activations[f"hook{match[1]}"][GLOBAL, :: int(match[2])],
    )


def test_guidance_matches(activations, golden_stages: Arrays) -> None:
    names = {"res4": "res4", "res5": "res5", "appearance_guidance": "appearance"}
    for name, ours in names.items():
        pattern = rf"{name}_global_every\d+"
        compare(
            golden_stages, pattern, lambda match, a=activations[ours]: strided(a[GLOBAL], golden_stages[match.string])
        )
    text_guidance = activations["text_guidance"].reshape(golden_stages["text_guidance"].shape)
    assert_close(text_guidance, golden_stages["text_guidance"])


def test_the_cost_volume_matches(activations, golden_stages: Arrays) -> None:
    assert_close(activations["corr"][GLOBAL], golden_stages["corr_global"])


def test_each_half_of_each_aggregator_layer_matches(activations, golden_stages: Arrays) -> None:
    def half(match: re.Match[str]) -> Tensor:
        maps = activations[match[1]][GLOBAL].permute(3, 0, 1, 2)  # (C, T, H, W)
        return strided(maps, golden_stages[match.string])

    compare(golden_stages, r"((?:swin|layer)\d+)_global_every\d+", half)


def test_logits_match(activations, golden_stages: Arrays) -> None:
    logits = activations["logits"]
    assert largest_error(logits[GLOBAL], golden_stages["logits_global"]) < LOGIT_TOLERANCE
    name, match = only_entry(golden_stages, r"logits_crop(\d+)_every\d+")
    expected = golden_stages[name]
    assert largest_error(strided(logits[int(match[1])], expected), expected) < LOGIT_TOLERANCE


def test_the_set_holds_no_stage_that_these_tests_pass_over(golden_stages: Arrays) -> None:
    known = ("crop", "dense_", "hook", "res", "appearance_", "text_guidance", "corr_", "swin", "layer", "logits_")
    assert [name for name in golden_stages if not name.startswith(known)] == []
