"""SED beyond its reference set: sizes, batches, fillers, early rejection, checkpoints, on other dimensions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import small_model
from small_sed import small_sed
from torch import Tensor

from semla_ros.errors import CheckpointError, ConfigError
from semla_ros.segmentation.checkpoint import load_model
from semla_ros.segmentation.class_buckets import pad_vocabulary
from semla_ros.segmentation.convnext import ConvNextBlock, ConvNextTrunk
from semla_ros.segmentation.one_image import segment_probabilities
from semla_ros.segmentation.sed import Sed, SedConfig
from semla_ros.segmentation.sed_decoder import REJECTED

ROUNDING = 1e-4


@pytest.fixture
def model() -> Sed:
    return small_sed()


def images(count: int = 1, size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def class_embeddings(model: Sed, count: int = 9) -> Tensor:
    values = torch.randn(count, *model.text_shape, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.normalize(values, dim=-1)


def logits_of(model: Sed, view: Tensor, text: Tensor, presence: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(view, text, presence)
    return logits


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 32), (160, 288)])
def test_any_size_in_steps_of_32_gives_maps_of_a_quarter(model: Sed, size: tuple[int, int]) -> None:
    maps = logits_of(model, images(size=size), class_embeddings(model, 3))
    assert maps.shape == (1, 3, size[0] // 4, size[1] // 4)
    assert bool(maps.isfinite().all())


@pytest.mark.parametrize("size", [(64, 90), (33, 64), (16, 16)])
def test_another_size_is_refused(model: Sed, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="multiples of 32"):
        logits_of(model, images(size=size), class_embeddings(model))
    with pytest.raises(ConfigError, match="multiples of 32"):
        replace(model.config, working_resolution=size)


def test_each_image_of_a_batch_gets_the_answer_that_it_gets_alone(model: Sed) -> None:
    batch, text = images(3), class_embeddings(model)
    alone = torch.cat([logits_of(model, image[None], text) for image in batch])
    assert (logits_of(model, batch, text) - alone).abs().max() < ROUNDING
    model.decoder.top_k = 1
    alone = torch.cat([logits_of(model, image[None], text) for image in batch])
    rejected = alone == REJECTED
    assert bool(rejected.any())
    together = logits_of(model, batch, text)
    assert torch.equal(together == REJECTED, rejected)
    assert (together - alone).abs().max() < ROUNDING


def test_what_is_rewritten_is_the_same_function(model: Sed) -> None:
    rewritten = logits_of(model, images(2), class_embeddings(model))
    model.decoder.exact_rewrites = False
    assert (logits_of(model, images(2), class_embeddings(model)) - rewritten).abs().max() < ROUNDING


def test_rows_that_stand_in_for_no_class_change_nothing(model: Sed) -> None:
    text = class_embeddings(model, 5)
    padded, presence = pad_vocabulary(text, 8)
    expected = logits_of(model, images(), text)
    assert (logits_of(model, images(), padded, presence)[:, :5] - expected).abs().max() < ROUNDING
    model.decoder.top_k = 2
    with pytest.raises(ConfigError, match="early rejection"):
        logits_of(model, images(), padded, presence)


def test_a_class_that_was_rejected_has_no_probability_and_where_none_is_all_is_as_without(model: Sed) -> None:
    text = class_embeddings(model)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    full = segment_probabilities(model, image, text, (64, 96))
    assert bool((full > 0).all())
    model.decoder.top_k = len(text)
    assert (segment_probabilities(model, image, text, (64, 96)) - full).abs().max() < ROUNDING
    model.decoder.top_k = 1
    maps = segment_probabilities(model, image, text, (64, 96))
    gone = (maps == 0).flatten(1).all(dim=1)
    assert 0 < int(gone.sum()) < len(text)
    assert bool((maps[~gone] > 0).all())


def test_size_and_early_rejection_are_settings(model: Sed) -> None:
    model.choose((96, 64), 2)
    assert (model.config.working_resolution, model.decoder.top_k) == ((96, 64), 2)
    with pytest.raises(ConfigError, match="multiples of 32"):
        model.choose((96, 65), 0)


def test_a_model_that_leaves_neither_open_says_so() -> None:
    other = small_model()
    other.choose(other.config.working_resolution, 0)
    with pytest.raises(ConfigError, match="'working_resolution' of a model of the kind 'catseg' is 32x64"):
        other.choose((64, 64), 0)
    with pytest.raises(ConfigError, match="'early_rejection'"):
        other.choose(None, 2)


def test_dropping_acts_while_training_alone_and_nowhere_that_it_was_not_published(model: Sed) -> None:
    view, text = images(4), class_embeddings(model)
    expected = logits_of(model, view, text)
    for drop in (0.0, 0.5):
        other = Sed(replace(model.config, drop=drop))
        other.load_state_dict(model.state_dict())
        assert torch.equal(logits_of(other.train(), view, text), expected) == (drop == 0)
        assert torch.equal(logits_of(other.eval(), view, text), expected)
    assert (SedConfig.sed_b().drop, SedConfig.sed_l().drop) == (0.0, 0.1)


def test_a_block_that_is_passed_by_is_made_up_for_by_the_others() -> None:
    torch.manual_seed(0)
    block, x = ConvNextBlock(8, 0.25), torch.randn(1, 8, 4, 4).expand(4000, -1, -1, -1)
    with torch.no_grad():
        whole = block.eval()(x[:1]) - x[:1]
        some = block.train()(x) - x
    assert float((some == 0).all(dim=(1, 2, 3)).float().mean()) == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(some.mean(0, keepdim=True), whole, atol=0.03 * float(whole.abs().max()), rtol=0)


def test_the_share_that_is_dropped_grows_over_the_blocks() -> None:
    with torch.device("meta"):
        trunk = ConvNextTrunk((8, 8, 8, 8), (1, 2, 1, 1), 0.1)
    drops = [block.drop for stage in trunk.stages for block in stage.blocks]
    assert drops == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])


def test_prompts_of_another_number_of_templates_are_refused(model: Sed) -> None:
    with pytest.raises(ConfigError, match="80 prompts for each class"):
        model.encode_text(torch.ones(2, 8, 1, 5, dtype=torch.int64))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_training_checkpoint_loads_from_its_shapes_alone(tmp_path: Path, head: str) -> None:
    model = small_sed(head=head)
    published = model.published_names(model.state_dict())
    assert any(name.endswith("attn.in_proj_weight") for name in published)
    torch.save({"model": published, "optimizer": {}, "iteration": 3}, tmp_path / "toy.pth")
    loaded = load_model(tmp_path / "toy.pth")
    assert isinstance(loaded.model, Sed)
    assert loaded.model.config == replace(model.config, working_resolution=SedConfig().working_resolution)
    assert (loaded.model_id, loaded.template) == ("toy", "imagenet")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(tmp_path: Path) -> None:
    published = Sed.published_names(small_sed().state_dict())
    for name in ("sem_seg_head.predictor.transformer.conv1.weight", "sem_seg_head.predictor.transformer.head2.bias"):
        torch.save({key: item for key, item in published.items() if key != name}, tmp_path / "toy.pth")
        with pytest.raises(CheckpointError, match=name):
            load_model(tmp_path / "toy.pth")
