import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from test_model import seeded_model, tiny_config

from semla_ros.engines.components import fixed_components
from semla_ros.errors import ConfigError
from semla_ros.lab.training.weights_files import save_model
from semla_ros.segmentation.checkpoint import load_model
from semla_ros.segmentation.model import CatSeg, CatSegConfig
from semla_ros.segmentation.targets import lora_signature
from semla_ros.segmentation.text_prompts import Vocabulary
from semla_ros.torchvision_compat import import_peft

STEM = (8, 16, 24)


def stem_config(**clip: object) -> CatSegConfig:
    """Three halving stages before 16-pixel patches, and a decoder step for each."""
    plain = tiny_config()
    aggregator = dataclasses.replace(
        plain.aggregator,
        decoder_dims=(16, 16, 16),
        decoder_guidance_proj_dims=(4, 4, 4),
        detail_dims=STEM[::-1],
        pad_len=0,
    )
    settings = {"patch": 16, "stem_dims": STEM} | clip
    return CatSegConfig(clip=dataclasses.replace(plain.clip, **settings), aggregator=aggregator, guidance_layers=(0, 1))


def images_and_text(batch: int = 2, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 64, 128, generator=generator)
    return images, F.normalize(torch.randn(classes, 32, generator=generator), dim=-1)


@pytest.mark.parametrize("rewrites", [True, False])
def test_three_decoder_steps_answer_at_half_the_image_in_either_form(rewrites: bool) -> None:
    model = seeded_model(stem_config())
    images, text = images_and_text()
    with torch.no_grad():
        together = model(images, text)
        model.exact_rewrites = rewrites
        alone = torch.cat([model(image[None], text) for image in images])
    assert together.shape == (2, 3, 32, 64)
    assert torch.allclose(together, alone, atol=2e-5 * alone.abs().max().item())


def test_a_detail_of_two_pixels_reaches_the_answer_at_its_place() -> None:
    model = seeded_model(stem_config())
    images, text = images_and_text(batch=1)
    model.aggregator.detail_projection[2].weight.data.mul_(5)
    changed = images.clone()
    changed[..., 20:22, 40:42] += 3.0
    with torch.no_grad():
        difference = (model(changed, text) - model(images, text)).abs().amax(dim=(0, 1))
    near = difference[6:15, 16:25].max()
    assert near > 3 * difference.median()


def test_a_model_with_a_stem_survives_its_file(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_texts(["a photo of a road in the scene"], context_length=12)
    config = stem_config(vocab_rows=len(vocabulary))
    model = seeded_model(config)
    save_model(model, tmp_path / "m.safetensors", class_names=("road",), vocabulary=vocabulary, model_id="m")
    loaded = load_model(tmp_path / "m.safetensors").model
    assert loaded.config == config
    images, text = images_and_text(classes=1)
    with torch.no_grad():
        assert torch.allclose(loaded(images, text), model.half().float()(images, text), atol=1e-5)


def test_adapters_reach_the_stem_through_its_linear_maps_only() -> None:
    model = seeded_model(stem_config())
    plain = seeded_model(tiny_config())
    own = set(model.lora_targets()) - set(plain.lora_targets())
    transformer = "sem_seg_head.predictor.transformer"
    assert own == {
        "sem_seg_head.predictor.clip_model.visual.conv1.to_tokens",
        *(f"{transformer}.detail_projection.{index}" for index in range(3)),
    }
    assert lora_signature(model)[f"{transformer}.detail_projection.0"] == (4, 24)


def test_a_wrapped_stem_acts_as_if_the_delta_were_in_the_weights() -> None:
    base = seeded_model(stem_config())
    images, text = images_and_text()
    peft = import_peft()
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=base.lora_targets(), init_lora_weights=False)
    wrapped = peft.get_peft_model(base, settings).eval()
    with torch.no_grad():
        with_adapter = wrapped(images, text)
        merged = wrapped.merge_and_unload()(images, text)
    assert torch.allclose(with_adapter, merged, atol=1e-4 * merged.abs().max().item())


def test_the_decoder_of_a_stem_model_serves_what_torch_computes() -> None:
    model = seeded_model(stem_config())
    images, text = images_and_text()
    with torch.no_grad():
        expected = model(images, text)
        (decoder,) = fixed_components(model, None)
        calls = []

        def served(*inputs: torch.Tensor) -> torch.Tensor:
            calls.append(decoder.accepts(inputs))
            return module(*inputs)

        module = copy.deepcopy(decoder.module)
        with decoder.mount(served):
            assert torch.allclose(model(images, text), expected, atol=2e-5 * expected.abs().max().item())
        assert calls == [True] * len(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 8}, "needs patches of 16 pixels, got 8"),
        ({"stem_dims": (8, 16)}, "needs patches of 8 pixels, got 16"),
    ],
)
def test_a_stem_that_does_not_fit_the_patches_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(stem_config().clip, **changes)


def test_a_decoder_whose_steps_do_not_fit_the_stem_is_refused() -> None:
    config = stem_config()
    with pytest.raises(ConfigError, match="'detail_dims' of the aggregator must be the stem's"):
        dataclasses.replace(config, aggregator=dataclasses.replace(config.aggregator, detail_dims=(24, 16, 12)))
    with pytest.raises(ConfigError, match="3 decoder steps need 'detail_dims'"):
        dataclasses.replace(config.aggregator, detail_dims=())
    with pytest.raises(ConfigError, match="must have one entry for each"):
        dataclasses.replace(config.aggregator, detail_dims=(24, 16))


def test_published_sizes_have_no_stem() -> None:
    for config in (CatSegConfig.catseg_b(), CatSegConfig.catseg_l()):
        assert config.clip.stem_dims == ()
        assert config.aggregator.detail_dims == ()
        with torch.device("meta"):
            model = CatSeg(config)
        assert not [name for name in model.state_dict() if "detail_projection" in name or "stages" in name]
