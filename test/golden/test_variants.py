"""Other code paths: pooling, plain inference, more classes than the limit, duplicated hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from published_ways import duplicated_hooks, plain_maps, plain_probabilities
from reference_set import class_rows, image_tensor, largest_error, load_golden_model, only_entry

from semla_ros.segmentation.one_image import segment_probabilities

TOLERANCE = 5e-5
PLAIN = {r"plain_big_out\d+": "img_big", r"plain_odd_out\d+": "img_odd", r"plain_small_img0": "img0"}


@pytest.mark.parametrize("rewrites", [True, False], ids=["rewritten", "literal"])
def test_pooled_class_attention_matches(
    golden_dir, golden_config, golden_tokens, golden_inputs, golden_variants, rewrites: bool
) -> None:
    for name, settings in golden_config["variants"].items():
        changes = {key: tuple(value) for key, value in settings.items()}
        model = load_golden_model(golden_dir, changes).model
        model.exact_rewrites = rewrites
        text = model.encode_text(class_rows(golden_tokens))
        image = image_tensor(golden_inputs, name.split("_")[-1])
        expected = golden_variants[name]
        maps = segment_probabilities(model, image, text, expected.shape[1:], "sliding")
        assert largest_error(maps, expected) < TOLERANCE, name


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_inference_matches(golden_model, golden_tokens, golden_inputs, golden_variants, name: str) -> None:
    model, expected = golden_model.model, golden_variants[only_entry(golden_variants, name)[0]]
    text = model.encode_text(class_rows(golden_tokens))
    maps = plain_probabilities(model, image_tensor(golden_inputs, PLAIN[name]), text, expected.shape[1:])
    assert largest_error(maps, expected) < TOLERANCE


def test_above_the_class_limit_the_best_classes_match(
    golden_model, golden_tokens, golden_inputs, golden_variants
) -> None:
    model = golden_model.model
    text = model.encode_text(class_rows(golden_tokens, "many"))
    seen = {}

    def predict(images: torch.Tensor) -> torch.Tensor:
        logits, seen["cost"] = model.forward_with_cost(images, text)
        return logits

    count = len(class_rows(golden_tokens, "many"))
    expected = golden_variants[only_entry(golden_variants, rf"many{count}_out\d+x\d+")[0]]
    with torch.no_grad():
        maps = plain_maps(predict, model.config, image_tensor(golden_inputs, "img_big"))
    maps = torch.nn.functional.interpolate(maps[None], expected.shape[1:], mode="bilinear")[0]
    assert largest_error(maps, expected) < TOLERANCE
    kept = model.aggregator.select_classes(seen["cost"])[0].numpy()
    assert np.array_equal(np.sort(kept), np.sort(golden_variants[f"many{count}_selected"]))


def test_exactly_the_class_limit_matches(golden_model, golden_tokens, golden_inputs, golden_variants) -> None:
    model = golden_model.model
    limit = model.config.aggregator.pad_len
    expected = golden_variants[only_entry(golden_variants, rf"many{limit}_out\d+x\d+")[0]]
    text = model.encode_text(class_rows(golden_tokens, "many")[: len(expected)])
    maps = plain_probabilities(model, image_tensor(golden_inputs, "img_big"), text, expected.shape[1:])
    assert largest_error(maps, expected) < TOLERANCE


def test_duplicated_hooks_match(golden_model, golden_tokens, golden_inputs, golden_variants) -> None:
    model, expected = golden_model.model, golden_variants["doublehook_img0"]
    text = model.encode_text(class_rows(golden_tokens))
    with duplicated_hooks(model):
        maps = segment_probabilities(model, image_tensor(golden_inputs, "img0"), text, expected.shape[1:], "sliding")
    assert largest_error(maps, expected) < TOLERANCE
