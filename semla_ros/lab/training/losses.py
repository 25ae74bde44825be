"""What segmentation training minimises."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from semla_ros.results import UNLABELLED


def class_weights(masks: list[np.ndarray], class_count: int, exponent: float) -> Tensor:
    """Weights that lift rare classes: frequency to the power of `-exponent`, mean 1 over pixels.

    Args:
        masks: Class indices per pixel, 255 ignored.
        class_count: Number of classes K.
        exponent: 0 = all equal, 1 = inversely proportional.

    Returns:
        Shape (K,), float32.
    """
    counts = np.zeros(class_count)
    for mask in masks:
        counts += np.bincount(mask[mask != UNLABELLED], minlength=class_count)[:class_count]
    frequency = np.maximum(counts / max(1.0, counts.sum()), 1e-4)
    weights = frequency**-exponent
    return torch.from_numpy(weights / (weights * frequency).sum()).float()


def segmentation_loss(logits: Tensor, masks: Tensor, weights: Tensor, *, overlap: float) -> Tensor:
    """Weighted cross-entropy plus `overlap` times the soft Jaccard loss, which counts a thin class like a large one.

    Args:
        logits: Shape (B, K, h, w); resized to the masks' size.
        masks: Shape (B, H, W), int64; 255 is ignored.
        weights: Per class, shape (K,).
        overlap: Factor of the Jaccard part, >= 0.

    Returns:
        Scalar.
    """
    logits = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, masks, weight=weights, ignore_index=UNLABELLED)
    if overlap:
        loss = loss + overlap * soft_jaccard_loss(logits, masks)
    return loss


def soft_jaccard_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the mean over the classes present of (sum of p·y) / (sum of p + y - p·y), summed over the batch."""
    valid = (masks != UNLABELLED)[:, None]  # (B, 1, H, W)
    probabilities = logits.softmax(1) * valid
    target = F.one_hot(masks.clamp_max(logits.shape[1] - 1), logits.shape[1]).movedim(-1, 1) * valid
    intersection = (probabilities * target).sum((0, 2, 3))
    union = (probabilities + target - probabilities * target).sum((0, 2, 3))
    present = target.sum((0, 2, 3)) > 0
    return 1 - (intersection[present] / union[present]).mean()


def sigmoid_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Sigmoid cross-entropy averaged over all pixels and classes, as the published adapters were trained.

    Ignored pixels (255) stay in the average as negatives of every class, as published.

    Args:
        logits: Shape (B, K, h, w); resized to the masks' size.
        masks: Shape (B, H, W), int64.
    """
    logits = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    classes = torch.arange(logits.shape[1], device=masks.device)[None, :, None, None]
    return F.binary_cross_entropy_with_logits(logits, (masks[:, None] == classes).float())
