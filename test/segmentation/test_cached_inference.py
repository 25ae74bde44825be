"""The grouped forms on a CPU compute what the plain modules do, whatever the size of a group."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from test_model import images_and_text, seeded_model, tiny_config

from semla_ros.segmentation import cached_inference
from semla_ros.segmentation.cost_aggregation import CostAggregator
from semla_ros.segmentation.model import CatSeg
from semla_ros.torchvision_compat import import_peft


@pytest.fixture(params=[1, 100_000], ids=["one at a time", "all at once"])
def group_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(cached_inference, "FLOATS_AT_ONCE", request.param)
    monkeypatch.setattr(cached_inference, "DECODED_AT_ONCE", request.param)
    return int(request.param)


def logits_without_groups(model: CatSeg, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached_inference, "is_possible", lambda *_: False)
        logits: torch.Tensor = model(images, text)
        return logits


@pytest.mark.parametrize("settings", [{}, {"window": 2}, {"pad_len": 0}, {"pooling": (2, 2)}, {"layers": 1}])
def test_groups_of_any_size_give_the_same_logits(settings: dict, group_size: int) -> None:
    model = seeded_model(tiny_config(**settings))
    images, text = images_and_text(5, batch=3)
    with torch.inference_mode():
        grouped = model(images, text)
        together = logits_without_groups(model, images, text)
    assert grouped.shape == together.shape
    assert torch.allclose(grouped, together, atol=2e-5 * together.abs().max().item())


def test_each_image_is_mixed_under_its_own_guidance(group_size: int) -> None:
    model = seeded_model(tiny_config())
    images, text = images_and_text(4, batch=2)
    texts = torch.stack([text, F.normalize(text.flip(0) + 0.3, dim=-1)])  # (B, T, C): each image its own classes
    with torch.inference_mode():
        dense = model.encode_dense(images)
        guidance = model.upsample1(dense.guidance_map(0)), model.upsample2(dense.guidance_map(1))
        cost = model.cost_volume(dense.feature_map(), text)
        together = model.aggregator(cost, dense.feature_map(), guidance, texts)
        for image in range(2):
            own = slice(image, image + 1)
            alone = model.aggregator(
                cost[own], dense.feature_map()[own], tuple(item[own] for item in guidance), texts[image]
            )
            assert torch.allclose(together[own], alone, atol=2e-5 * alone.abs().max().item())


def test_the_two_convolutions_of_a_doubling_are_one_up_to_the_border() -> None:
    step = seeded_model(tiny_config()).aggregator.decoder_steps[0]
    maps, guide = torch.randn(3, 16, 3, 5), torch.randn(1, 4, 6, 10)
    with torch.inference_mode():
        first = step.conv.double_conv[0]
        expected = first(torch.cat([step.up(maps), guide.expand(3, -1, -1, -1)], dim=1))
        kernel = cached_inference._doubling(step)
        actual = F.conv_transpose2d(maps, kernel, stride=2, padding=1) + cached_inference._guide_part(step, guide)
    assert torch.allclose(actual, expected, atol=1e-5 * expected.abs().max().item())


def test_a_convolution_to_one_channel_is_nine_shifted_products() -> None:
    head = seeded_model(tiny_config()).aggregator.head
    maps = torch.randn(2, 16, 5, 7)
    with torch.inference_mode():
        assert torch.allclose(cached_inference._single_channel(head, maps), head(maps), atol=1e-5)


def test_gradients_and_lora_layers_take_the_plain_way() -> None:
    model = seeded_model(tiny_config())
    part, x = model.aggregator.layers[0], torch.zeros(1)
    assert not cached_inference.is_possible(part, x)  # gradients are on
    with torch.no_grad():
        assert cached_inference.is_possible(part, x)
        assert not cached_inference.is_possible(part, x.to("meta"))
    peft = import_peft()
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=model.lora_targets()))
    with torch.no_grad():
        assert not cached_inference.is_possible(model.aggregator.layers[0], x)


def test_lower_precision_stays_close_to_full_precision() -> None:
    model = seeded_model(tiny_config())
    images, text = images_and_text(5)
    with torch.inference_mode():
        expected = model(images, text).sigmoid()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = model(images, text).float().sigmoid()
            plain = logits_without_groups(model, images, text).float().sigmoid()
    error = (actual - expected).abs().mean()
    assert error < 1.5 * (plain - expected).abs().mean() + 1e-3


def test_the_literal_form_never_comes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(cached_inference, "is_possible", refuse)
    model = seeded_model(tiny_config())
    model.exact_rewrites = False
    assert isinstance(model.aggregator, CostAggregator)
    with torch.inference_mode():
        model(*images_and_text(3))
