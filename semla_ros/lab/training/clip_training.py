"""Train a small CLIP on captioned scenes: contrastive for whole images, and per patch on clear-day masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from semla_ros.lab.training.batches import AugmentConfig, draw_batch
from semla_ros.lab.training.loop import LoopConfig, Run, run_loop
from semla_ros.lab.training.samples import ConcatenatedSamples, RenderedSamples, SampleSource
from semla_ros.results import UNLABELLED
from semla_ros.segmentation.clip import TextTower, VisualTower
from semla_ros.segmentation.protocol import CLIP_PIXEL_MEAN, CLIP_PIXEL_STD, SegmentationModel

_NORMALISATION = torch.tensor(CLIP_PIXEL_MEAN), torch.tensor(CLIP_PIXEL_STD)  # per channel, 0..255 scale


@dataclass(frozen=True, kw_only=True)
class ClipTrainingConfig:
    """How the small CLIP is trained."""

    loop: LoopConfig
    dense_weight: float = 1.0  # factor of the per-patch loss
    dense_batch_size: int = 16  # clear-day images per step for the per-patch loss
    caption_size: tuple[int, int] = (96, 128)  # height and width of captioned images: small, many per step


def train_clip(
    model: SegmentationModel,
    scene_tower: VisualTower | None,
    captioned: Sequence[RenderedSamples],
    clear: SampleSource,
    caption_tokens: Tensor,
    class_tokens: Tensor,
    config: ClipTrainingConfig,
    run: Run,
) -> list[float]:
    """Train the image towers and one text tower from scratch, in place.

    Args:
        model: Its CLIP is trained; the image tower also learns the per-patch loss.
        scene_tower: A smaller image tower into the same joint space, for scene embeddings alone, if one is wanted.
        captioned: Images with captions, of every weather that the scene encoder is to tell apart.
        clear: Clear-day images with masks, for the per-patch loss.
        caption_tokens: Token rows of the captions, in the order of `captioned`, shape (N, L), int64.
        class_tokens: Token rows of the prompts of the masks' classes, int64, shape (K, L), or of an ensemble (K, P, S,
            L), of which each step takes a prompt of each class at random.
        config: Steps and weights.
        run: Where to train, and what keeps and shows the progress.

    Returns:
        The loss of each step.
    """
    images, device, clip = ConcatenatedSamples(captioned), run.device, model.clip
    towers = [clip.visual] if scene_tower is None else [clip.visual, scene_tower]
    class_tokens = class_tokens.to(device)
    log_temperature = torch.nn.Parameter(torch.tensor(np.log(10.0), device=device, dtype=torch.float32))
    dense_temperature = torch.nn.Parameter(torch.tensor(np.log(10.0), device=device, dtype=torch.float32))
    plain = AugmentConfig(min_crop=0.85, brightness=0.05)
    temperatures = torch.nn.ParameterDict({"contrastive": log_temperature, "dense": dense_temperature})

    def step_loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (config.loop.batch_size,), generator=generator).tolist()
        size = config.caption_size
        batch, _ = draw_batch(images, len(chosen), size, plain, generator, *_NORMALISATION, indices=chosen)
        batch = batch.to(device)
        tokens = caption_tokens[chosen].to(device)
        text_features = clip.encode_text(tokens).float()  # (B, C), unit length
        is_same = (tokens[:, None] == tokens[None]).all(-1)  # (B, B)
        loss = torch.zeros((), device=device)
        for tower in towers:
            image_features = F.normalize(tower.pooled(batch).float(), dim=-1)
            logits = temperatures["contrastive"].exp().clamp(max=100) * image_features @ text_features.T  # (B, B)
            loss = loss + contrastive_loss(logits, is_same)
        dense_size = model.config.working_resolution
        dense_batch, masks = draw_batch(
            clear, config.dense_batch_size, dense_size, AugmentConfig(), generator, *_NORMALISATION
        )
        features = clip.visual.cells(dense_batch.to(device))
        patches = F.normalize(features.float(), dim=1)  # (B, C, h, w)
        classes = clip.encode_text(_one_prompt_each(class_tokens, generator)).float()
        dense = torch.einsum("bchw,kc->bkhw", patches, classes) * temperatures["dense"].exp().clamp(max=100)
        dense = F.interpolate(dense, scale_factor=2, mode="bilinear", align_corners=False)
        reduced = F.interpolate(masks[:, None].float(), size=dense.shape[-2:], mode="nearest")[:, 0].long()
        dense_loss = F.cross_entropy(dense, reduced.to(device), ignore_index=UNLABELLED)
        return loss + config.dense_weight * dense_loss

    parameters = [p for module in (clip, *towers[1:]) for p in module.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        {"params": list(temperatures.parameters()), "weight_decay": 0.0, "lr": config.loop.learning_rate * 3},
    ]
    modules = {"clip": clip, "temperatures": temperatures}
    if scene_tower is not None:
        modules["scene_tower"] = scene_tower
    return run_loop(modules, groups, step_loss, config.loop, run)


def _one_prompt_each(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """A prompt of each class, shape (K, L): its only one, or the first synonym in a random template."""
    if tokens.ndim == 2:
        return tokens
    templates = torch.randint(tokens.shape[1], (len(tokens),), generator=generator)
    return tokens[torch.arange(len(tokens)), templates, 0]


def refine_scene_tower(
    tower: VisualTower, sources: Sequence[SampleSource], targets: Tensor, loop: LoopConfig, run: Run
) -> list[float]:
    """Go on with the scene encoder's tower alone, in place, towards what each image is to be told from the others by.

    It is small, so many more images pass through it than the joint training could afford.

    Args:
        tower: What is trained.
        sources: Images.
        targets: Where each one's feature is to point, in the order of `sources`, shape (N, C), unit length; equal rows
            are one target.
        loop: Steps and rates.
        run: Where to train, and what keeps and shows the progress.

    Returns:
        The loss of each step.
    """
    images, device, size = ConcatenatedSamples(sources), run.device, tower.config.working_resolution
    augment = AugmentConfig(min_crop=0.8, brightness=0.08)
    temperature = torch.nn.Parameter(torch.tensor(np.log(20.0), device=device, dtype=torch.float32))
    temperatures = torch.nn.ParameterDict({"contrastive": temperature})
    targets = targets.to(device)

    def step_loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (loop.batch_size,), generator=generator)
        batch, _ = draw_batch(
            images, loop.batch_size, size, augment, generator, *_NORMALISATION, indices=chosen.tolist()
        )
        features = F.normalize(tower(batch.to(device)).float(), dim=-1)
        aims = targets[chosen.to(device)]
        logits = temperatures["contrastive"].exp().clamp(max=100) * features @ aims.T
        return contrastive_loss(logits, (aims[:, None] == aims[None]).all(-1))

    groups: list[dict[str, Any]] = [
        {"params": [p for p in tower.parameters() if p.ndim > 1]},
        {"params": [p for p in tower.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [temperature], "weight_decay": 0.0},
    ]
    return run_loop({"scene_tower": tower, "temperatures": temperatures}, groups, step_loss, loop, run)


@torch.no_grad()
def caption_targets(clip: TextTower, caption_tokens: Tensor, device: torch.device) -> Tensor:
    """Text embeddings of captions, token rows (N, L), shape (N, C); equal captions have equal rows."""
    captions, index = torch.unique(caption_tokens, dim=0, return_inverse=True)
    texts = torch.cat([clip.encode_text(part.to(device)) for part in torch.split(captions, 256)]).float()
    return texts[index.to(device)]


def contrastive_loss(logits: Tensor, is_same: Tensor) -> Tensor:
    """Symmetric contrastive loss in which images with the same caption share its target.

    Args:
        logits: Similarity of image and caption, shape (B, B).
        is_same: Whether two captions of the batch are equal, shape (B, B), bool.

    Returns:
        Scalar.
    """
    target = is_same.float() / is_same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
