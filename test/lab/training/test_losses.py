"""Segmentation losses against hand-computed values."""

import math

import numpy as np
import pytest
import torch

from semla_ros.lab.training.clip_training import contrastive_loss
from semla_ros.lab.training.losses import class_weights, segmentation_loss, sigmoid_loss, soft_jaccard_loss


def one_hot_logits(mask: torch.Tensor, classes: int, strength: float) -> torch.Tensor:
    return strength * torch.nn.functional.one_hot(mask, classes).movedim(-1, 1).float()


def test_rare_classes_weigh_more_and_the_mean_over_pixels_is_one() -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[0] = 1
    mask[1] = 255
    weights = class_weights([mask], 2, exponent=0.5)
    frequency = np.array([80 / 90, 10 / 90])
    assert weights[1] / weights[0] == pytest.approx(math.sqrt(8), rel=1e-5)
    assert float((weights.numpy() * frequency).sum()) == pytest.approx(1.0, rel=1e-5)


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much() -> None:
    mask = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    weights = torch.ones(3)
    good = segmentation_loss(one_hot_logits(mask, 3, 50.0), mask, weights, overlap=1.0)
    bad = segmentation_loss(one_hot_logits((mask + 1) % 3, 3, 50.0), mask, weights, overlap=1.0)
    assert float(good) < 1e-4
    assert float(bad) > 10


def test_ignored_pixels_do_not_count() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.long)
    logits = one_hot_logits(mask, 2, 4.0)
    worse = logits.clone()
    worse[:, :, 0] = logits.flip(1)[:, :, 0]
    ignored = mask.clone()
    ignored[:, 0] = 255
    weights = torch.ones(2)
    assert float(segmentation_loss(worse, ignored, weights, overlap=0.0)) == pytest.approx(
        float(segmentation_loss(logits, mask, weights, overlap=0.0)), rel=1e-5
    )


def test_the_overlap_loss_counts_a_thin_class_like_a_large_one() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[:, :, 3] = 1  # one column of sixteen
    missed = soft_jaccard_loss(one_hot_logits(torch.zeros_like(mask), 2, 50.0), mask)
    # IoU of class 0 is 240/256 and of class 1 is 0: the loss is 1 - their mean.
    assert float(missed) == pytest.approx(1 - 0.5 * 240 / 256, abs=1e-4)


def test_the_published_loss_counts_ignored_pixels_as_negatives() -> None:
    mask = torch.full((1, 2, 2), 255)
    logits = torch.full((1, 3, 2, 2), 2.0)
    assert float(sigmoid_loss(logits, mask)) == pytest.approx(math.log1p(math.exp(2.0)), rel=1e-5)


def test_images_with_one_caption_share_its_target() -> None:
    is_same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    shared = 30.0 * is_same.float()
    # The first two rows split their target over two equal captions: log 2 each, the third costs nothing.
    assert float(contrastive_loss(shared, is_same)) == pytest.approx(2 / 3 * math.log(2), abs=1e-4)
    assert float(contrastive_loss(shared.flip(1), is_same)) > 10
