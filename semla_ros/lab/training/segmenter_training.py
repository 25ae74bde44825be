"""Train the segmentation model on clear day, starting from the CLIP it is built on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from semla_ros.lab.training.batches import AugmentConfig, draw_batch
from semla_ros.lab.training.loop import LoopConfig, Run, run_loop
from semla_ros.lab.training.losses import class_weights, segmentation_loss
from semla_ros.lab.training.samples import SampleSource
from semla_ros.segmentation.protocol import SegmentationModel


@dataclass(frozen=True, kw_only=True)
class SegmenterTrainingConfig:
    """How the segmentation model is trained."""

    loop: LoopConfig
    visual_learning_rate: float = 6e-4  # of the CLIP image tower; the rest takes the loop's rate
    rarity_exponent: float = 0.35  # class weight = frequency ** -rarity_exponent
    overlap_weight: float = 0.5  # factor of the soft Jaccard loss
    cost_weight: float = 0.3  # factor of the cost volume's own cross-entropy, where the model gives one
    augment: AugmentConfig = field(default_factory=AugmentConfig)


def sample_class_weights(source: SampleSource, class_count: int, exponent: float, most: int = 200) -> Tensor:
    """Class weights from at most `most` masks spread evenly over a source, shape (K,)."""
    step = max(1, len(source) // most)
    return class_weights([source.mask(i) for i in range(0, len(source), step)], class_count, exponent)


def train_segmenter(
    model: SegmentationModel,
    source: SampleSource,
    class_tokens: Tensor,
    config: SegmenterTrainingConfig,
    run: Run,
) -> list[float]:
    """Train the image tower and what stands behind it in place; the text tower stays as it is.

    Args:
        model: Its CLIP is pre-trained.
        source: Images with masks.
        class_tokens: Token rows of the class prompts, shape (K, ...).
        config: Steps, rates, loss weights.
        run: Where to train, and what keeps and shows the progress.

    Returns:
        The loss of each step.
    """
    class_count = len(class_tokens)
    weights = sample_class_weights(source, class_count, config.rarity_exponent).to(run.device)
    visual, head = model.parameter_groups()
    with torch.no_grad():
        text = model.encode_text(class_tokens.to(run.device)).float()
    scale = torch.nn.Parameter(torch.tensor(20.0, device=run.device))
    extra = torch.nn.ParameterDict({"cost_scale": scale})
    mean, std = (torch.tensor(values) for values in (model.config.pixel_mean, model.config.pixel_std))

    def step_loss(generator: torch.Generator) -> Tensor:
        images, masks = draw_batch(
            source, config.loop.batch_size, model.config.working_resolution, config.augment, generator, mean, std
        )
        images, masks = images.to(run.device), masks.to(run.device)
        logits, cost = model.forward_with_cost(images, text)
        loss = segmentation_loss(logits, masks, weights, overlap=config.overlap_weight)
        if cost is None:
            return loss
        reduced = F.interpolate(masks[:, None].float(), size=cost.shape[-2:], mode="nearest")[:, 0].long()
        own = F.cross_entropy(cost.float() * extra["cost_scale"], reduced, weight=weights, ignore_index=255)
        return loss + config.cost_weight * own

    groups: list[dict[str, Any]] = [
        {"params": visual, "lr": config.visual_learning_rate},
        {"params": [*head, scale]},
    ]
    return run_loop({"model": model, "extra": extra}, groups, step_loss, config.loop, run)
