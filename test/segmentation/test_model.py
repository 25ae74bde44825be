import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from semla_ros.errors import ConfigError
from semla_ros.segmentation.aggregation_layers import AggregatorConfig, shifted_window_mask, to_windows
from semla_ros.segmentation.clip import Clip, ClipConfig, from_open_clip, to_open_clip
from semla_ros.segmentation.model import CatSeg, CatSegConfig
from semla_ros.torchvision_compat import import_open_clip, import_peft


def tiny_config(**aggregator: object) -> CatSegConfig:
    """A model small enough for a test, on a grid that is not square."""
    clip = ClipConfig(
        patch=4,
        visual_width=64,
        visual_layers=3,
        native_grid=(4, 8),
        working_grid=(4, 8),
        embed_dim=32,
        text_width=64,
        text_layers=1,
        context_length=12,
        vocab_rows=20,
    )
    settings = {
        "grid": (4, 8),
        "hidden_dim": 16,
        "heads": 2,
        "window": 4,
        "pad_len": 8,
        "embed_dim": 32,
        "text_guidance_dim": 6,
        "appearance_guidance_dim": 5,
        "decoder_dims": (16, 16),
        "decoder_guidance_dims": (8, 8),
        "decoder_guidance_proj_dims": (4, 4),
    }
    return CatSegConfig(clip=clip, aggregator=AggregatorConfig(**(settings | aggregator)), guidance_layers=(0, 1))


def seeded_model(config: CatSegConfig) -> CatSeg:
    torch.manual_seed(0)
    model = CatSeg(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model


def images_and_text(classes: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 16, 32, generator=generator)
    return images, F.normalize(torch.randn(classes, 32, generator=generator), dim=-1)


@pytest.mark.parametrize("settings", [{}, {"pad_len": 0}, {"pooling": (2, 2)}, {"window": 2}])
@pytest.mark.parametrize("classes", [1, 5, 8, 11])
def test_rewrites_compute_the_same_function_as_the_literal_form(settings: dict, classes: int) -> None:
    model = seeded_model(tiny_config(**settings))
    images, text = images_and_text(classes)
    with torch.no_grad():
        rewritten = model(images, text)
        model.exact_rewrites = False
        literal = model(images, text)
    assert rewritten.shape == (2, classes, 16, 32)
    assert torch.allclose(rewritten, literal, atol=2e-5 * literal.abs().max().item())


def test_rewrites_give_the_same_gradients_as_the_literal_form() -> None:
    model = seeded_model(tiny_config())
    images, text = images_and_text(3)
    gradients = []
    for rewrites in (True, False):
        model.exact_rewrites = rewrites
        model.zero_grad()
        model(images, text).sigmoid().mean().backward()
        gradients.append({name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert "sem_seg_head.predictor.transformer.layers.0.attention.padding_tokens" in gradients[0]
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        assert torch.allclose(gradient, expected, atol=1e-4 * expected.abs().max().item() + 1e-9), name


@pytest.mark.parametrize("rewrites", [True, False])
def test_a_wrapped_linear_layer_acts_as_if_its_delta_were_in_the_weight(rewrites: bool) -> None:
    peft = import_peft()
    base = seeded_model(tiny_config())
    images, text = images_and_text(3)
    base.exact_rewrites = rewrites
    wrapped = peft.get_peft_model(
        base, peft.LoraConfig(r=2, lora_alpha=4, target_modules=base.lora_targets(), init_lora_weights=False)
    ).eval()
    with torch.no_grad():
        with_adapter = wrapped(images, text)
        merged = wrapped.merge_and_unload()(images, text)
    assert torch.allclose(with_adapter, merged, atol=1e-4 * merged.abs().max().item())


def test_only_the_best_classes_are_processed_above_the_class_limit() -> None:
    model = seeded_model(tiny_config())
    images, text = images_and_text(11, batch=2)
    with torch.no_grad():
        logits, cost = model.forward_with_cost(images, text)
        kept = cost.amax(dim=(2, 3)).topk(8).indices
        for image in range(2):
            dropped = sorted(set(range(11)) - set(kept[image].tolist()))
            assert (logits[image, dropped] == -100).all()
            alone = model(images[image : image + 1], text[kept[image]])[0]
            assert torch.allclose(logits[image, kept[image]], alone, atol=1e-4)


def test_weights_overwritten_between_two_calls_act_at_once() -> None:
    model, other = seeded_model(tiny_config()), seeded_model(tiny_config())
    images, text = images_and_text(3)
    with torch.no_grad():
        model(images, text)
        for parameter, changed in zip(model.parameters(), other.parameters(), strict=True):
            changed.mul_(1.1)
            parameter.data.copy_(changed)
        assert torch.equal(model(images, text), other(images, text))


def test_the_number_of_images_in_a_batch_does_not_change_a_result() -> None:
    model = seeded_model(tiny_config())
    images, text = images_and_text(4, batch=3)
    with torch.no_grad():
        together = model(images, text)
        apart = torch.cat([model(image[None], text) for image in images])
    assert torch.allclose(together, apart, atol=1e-4)


def test_prompts_cut_at_the_longest_end_token_embed_like_full_length_ones() -> None:
    torch.manual_seed(0)
    clip = Clip(tiny_config().clip).eval()
    ids = torch.zeros(2, 12, dtype=torch.long)
    ids[0, :4] = torch.tensor([18, 3, 4, 19])
    ids[1, :6] = torch.tensor([18, 5, 6, 7, 3, 19])
    padded = ids.clone()
    padded[:, -1] = 1  # no longer padding at the end, still behind every end token
    with torch.no_grad():
        x = clip.token_embedding(padded) + clip.positional_embedding
        for block in clip.transformer.resblocks:
            x = block(x, is_causal=True)
        x = clip.ln_final(x)[torch.arange(2), padded.argmax(-1)] @ clip.text_projection
        assert torch.allclose(clip.encode_text(ids), F.normalize(x, dim=-1), atol=1e-6)


def test_towers_agree_with_open_clip_on_the_same_weights() -> None:
    open_clip = import_open_clip()
    torch.manual_seed(0)
    peer = open_clip.model.CLIP(
        embed_dim=32,
        vision_cfg=open_clip.CLIPVisionCfg(layers=3, width=64, head_width=64, patch_size=4, image_size=(16, 32)),
        text_cfg=open_clip.CLIPTextCfg(context_length=12, vocab_size=20, width=64, heads=1, layers=1),
        quick_gelu=True,
    ).eval()
    clip = Clip(tiny_config().clip).eval()
    clip.load_state_dict(from_open_clip(peer.state_dict()))
    images, _ = images_and_text(1)
    ids = torch.tensor([[18, 3, 19] + [0] * 9, [18, 5, 4, 19] + [0] * 8])
    with torch.no_grad():
        assert torch.allclose(clip.visual(images), peer.encode_image(images), atol=1e-5)
        assert torch.allclose(clip.encode_text(ids), F.normalize(peer.encode_text(ids), dim=-1), atol=1e-5)
    back = to_open_clip(clip.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in peer.state_dict().items())


def test_training_under_bfloat16_autocast_gives_finite_gradients_everywhere() -> None:
    model = seeded_model(tiny_config()).train()
    images, _ = images_and_text(1)
    ids = torch.tensor([[18, 3, 19], [18, 5, 19]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images, model.encode_text(ids))
    logits.float().sigmoid().mean().backward()
    unused = {
        name.split("clip_model.")[-1]
        for name, item in model.named_parameters()
        if item.grad is None or not item.grad.isfinite().all()
    }
    last = "visual.transformer.resblocks.2.attn."
    assert unused == {"logit_scale", last + "q_proj.weight", last + "k_proj.weight"}


def test_shift_mask_separates_exactly_the_cells_that_were_not_neighbours() -> None:
    grid, window, shift = (4, 8), 4, 2
    mask = shifted_window_mask(grid, window, shift)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(8), indexing="ij")
    position = torch.stack([rows, columns], dim=-1)[None, None]
    shifted = to_windows(torch.roll(position, (-shift, -shift), dims=(2, 3)), window)[0, 0]
    within = to_windows(position, window)[0, 0] % window
    for index, cells in enumerate(shifted):
        # Neighbours before the shift keep their displacement; cells brought together by wrapping round do not.
        kept = ((cells[:, None] - cells[None]) == (within[index][:, None] - within[index][None])).all(dim=-1)
        assert torch.equal(mask[index] == 0, kept)
        assert not kept.all()


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        ("aggregator", {"window": 3}, "window"),
        ("aggregator", {"pooling": (3, 1)}, "pooling"),
        ("aggregator", {"heads": 5}, "heads"),
        ("aggregator", {"grid": (8, 8)}, "grid"),
        ("aggregator", {"embed_dim": 64}, "embed_dim"),
        ("clip", {"visual_width": 100}, "visual_width"),
        ("clip", {"pool": "max"}, "pool"),
    ],
)
def test_dimensions_that_cannot_work_are_refused_by_name(part: str, settings: dict, named: str) -> None:
    config = tiny_config()
    with pytest.raises(ConfigError, match=f"'{named}'"):
        dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **settings)})


def test_an_image_of_another_size_is_refused() -> None:
    model = seeded_model(tiny_config())
    with pytest.raises(ConfigError, match="16x32"):
        model(torch.zeros(1, 3, 16, 16), torch.zeros(2, 32))


def test_a_config_survives_a_round_trip_through_plain_values() -> None:
    config = tiny_config()
    assert CatSegConfig.from_dict(config.as_dict()) == config
    with pytest.raises(ConfigError, match="'colour'"):
        CatSegConfig.from_dict(config.as_dict() | {"colour": 1})
