"""Final maps without adapter."""

from __future__ import annotations

import pytest
from reference_set import class_rows, image_tensor, largest_error

from semla_ros.segmentation.one_image import segment_probabilities

TOLERANCE = 5e-5


@pytest.mark.parametrize("rewrites", [True, False], ids=["rewritten", "literal"])
def test_zero_shot_maps_match(golden_model, golden_tokens, golden_inputs, golden_seg, rewrites: bool) -> None:
    model = golden_model.model
    names = [name for name in golden_seg if name.startswith("zeroshot_")]
    assert names
    if not rewrites:
        names = names[:1]  # the literal form is an order of magnitude slower; its stages are held elsewhere
    text = model.encode_text(class_rows(golden_tokens))
    model.exact_rewrites = rewrites
    try:
        for name in names:
            image = image_tensor(golden_inputs, name.split("_")[1])
            maps = segment_probabilities(model, image, text, golden_seg[name].shape[1:], "sliding")
            assert largest_error(maps, golden_seg[name]) < TOLERANCE, name
    finally:
        model.exact_rewrites = True
