"""Cost aggregation and decoder: from one similarity map per class to one logit map per class.

The layers stand in `aggregation_layers`. With `exact_rewrites`, on a CPU without gradients, `cached_inference` computes
the same a few class maps or pixels at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from semla_ros.errors import ConfigError
from semla_ros.segmentation import cached_inference
from semla_ros.segmentation.aggregation_layers import AggregatorConfig, ClassPart, DecoderStep, SpatialPart


class GroupedSpatialPart(SpatialPart):
    """`SpatialPart`, a few class maps at a time where that is possible."""

    def forward(self, x: Tensor, appearance: Tensor, *, exact_rewrites: bool) -> Tensor:
        """See `SpatialPart.forward`."""
        if exact_rewrites and cached_inference.is_possible(self, x):
            return cached_inference.mix_space(self, x, appearance)
        return super().forward(x, appearance, exact_rewrites=exact_rewrites)


class GroupedClassPart(ClassPart):
    """`ClassPart`, a few pixels at a time where that is possible."""

    def forward(
        self, x: Tensor, text_guidance: Tensor, presence: Tensor | None = None, *, exact_rewrites: bool
    ) -> Tensor:
        """See `ClassPart.forward`."""
        is_plain = presence is None and self.pooling == (1, 1)
        if exact_rewrites and is_plain and cached_inference.is_possible(self, x):
            return cached_inference.mix_classes(self, x, text_guidance)
        return super().forward(x, text_guidance, presence, exact_rewrites=exact_rewrites)


class AggregatorLayer(nn.Module):
    """The spatial part, then the class part."""

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__()
        self.swin_block = GroupedSpatialPart(config)
        self.attention = GroupedClassPart(
            config.hidden_dim,
            config.heads,
            guidance_dim=config.text_guidance_dim,
            pad_len=config.pad_len,
            pooling=config.pooling,
        )

    def forward(
        self, x: Tensor, appearance: Tensor, text_guidance: Tensor, presence: Tensor | None, *, exact_rewrites: bool
    ) -> Tensor:
        """Transform (B, T, H, W, C) under appearance (B, 1, H, W, Ga) and text guidance (B or 1, T, Gt)."""
        x = self.swin_block(x, appearance, exact_rewrites=exact_rewrites)
        mixed: Tensor = self.attention(x, text_guidance, presence, exact_rewrites=exact_rewrites)
        return mixed


class CostAggregator(nn.Module):
    """Embeds the cost volume, aggregates it over space and classes, and decodes it to logits."""

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__()
        self.config = config
        self.exact_rewrites = True
        dim = config.hidden_dim
        self.conv1 = nn.Conv2d(1, dim, 7, padding=3)
        self.guidance_projection = nn.Sequential(
            nn.Conv2d(config.embed_dim, config.appearance_guidance_dim, 3, padding=1), nn.ReLU()
        )
        self.text_guidance_projection = nn.Sequential(nn.Linear(config.embed_dim, config.text_guidance_dim), nn.ReLU())
        self.decoder_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, projected, 3, padding=1), nn.ReLU())
            for channels, projected in zip(
                config.decoder_guidance_dims, config.decoder_guidance_proj_dims[:2], strict=True
            )
        )
        self.detail_projection = nn.ModuleList(
            nn.Linear(channels, projected)
            for channels, projected in zip(config.detail_dims, config.decoder_guidance_proj_dims, strict=False)
        )
        self.layers = nn.ModuleList(AggregatorLayer(config) for _ in range(config.layers))
        for index, (above, below) in enumerate(pairwise((dim, *config.decoder_dims))):
            step = DecoderStep(above, below, config.decoder_guidance_proj_dims[index])
            self.add_module(f"decoder{index + 1}", step)
        self.head = nn.Conv2d(config.decoder_dims[-1], 1, 3, padding=1)

    @property
    def decoder_steps(self) -> tuple[DecoderStep, ...]:
        """`decoder1`, `decoder2`, ..."""
        names = [f"decoder{index + 1}" for index in range(len(self.config.decoder_dims))]
        return tuple(cast(DecoderStep, self.get_submodule(name)) for name in names)

    def forward(
        self,
        cost: Tensor,
        features: Tensor,
        guidance: tuple[Tensor, Tensor],
        text: Tensor,
        details: tuple[Tensor, ...] = (),
        presence: Tensor | None = None,
    ) -> Tensor:
        """Turn a cost volume into logits.

        Args:
            cost: Cosine similarity, shape (B, T, H, W).
            features: Dense image features, shape (B, embed_dim, H, W).
            guidance: Shapes (B, ., 2H, 2W) and (B, ., 4H, 4W).
            text: Class embeddings, shape (T, embed_dim) or (B, T, embed_dim), unit length.
            details: Maps of a convolutional stem, shapes (B, ., 2H, 2W), (B, ., 4H, 4W), ..., one for each decoder
                step; empty where the model has no stem.
            presence: Shape (T,), 1 for a class and 0 for a row that stands in for none, see `class_buckets`; None = all
                are classes. Not with more than `pad_len` of them.

        Returns:
            Shape (B, T, sH, sW), s = 2 ** decoder steps (published: 4). Where T exceeds `pad_len`, all but the
            `pad_len` classes with the highest similarity anywhere in the image have the logit -100.
        """
        if text.ndim == 2:
            text = text[None]
        limit = self.config.pad_len
        if limit and cost.shape[1] > limit:
            if presence is not None:
                raise ConfigError(f"a vocabulary of {cost.shape[1]} classes, more than {limit}, cannot be filled up")
            return self._best_classes(cost, features, guidance, text, details)
        b, t = cost.shape[:2]
        x = self.conv1(cost.flatten(0, 1)[:, None])  # (B*T, C, H, W)
        x = x.permute(0, 2, 3, 1).reshape(b, t, *cost.shape[2:], -1)
        appearance = self.guidance_projection(features).permute(0, 2, 3, 1)[:, None]
        text_guidance = self.text_guidance_projection(text)
        for layer in self.layers:
            x = layer(x, appearance, text_guidance, presence, exact_rewrites=self.exact_rewrites)
        return self.decode(x, guidance, details)

    def _best_classes(
        self,
        cost: Tensor,
        features: Tensor,
        guidance: tuple[Tensor, Tensor],
        text: Tensor,
        details: tuple[Tensor, ...],
    ) -> Tensor:
        kept = self.select_classes(cost)  # (B, pad_len)
        images = torch.arange(cost.shape[0], device=cost.device)[:, None]
        text = text.expand(cost.shape[0], -1, -1)
        logits = self.forward(cost[images, kept], features, guidance, text[images, kept], details)
        every = torch.full((*cost.shape[:2], *logits.shape[2:]), -100.0, dtype=logits.dtype, device=logits.device)
        index = kept[:, :, None, None].expand(-1, -1, *logits.shape[2:])
        return every.scatter(1, index, logits)

    def select_classes(self, cost: Tensor) -> Tensor:
        """Indices of the `pad_len` classes with the highest similarity anywhere, best first, shape (B, pad_len)."""
        return cost.amax(dim=(2, 3)).topk(self.config.pad_len, dim=1).indices

    def decode(self, x: Tensor, guidance: Sequence[Tensor], details: Sequence[Tensor]) -> Tensor:
        """Decode (B, T, H, W, C) to (B, T, sH, sW); `guidance` and `details` as in `forward`."""
        b, t = x.shape[:2]
        guides = self.guides(guidance, self.project_details(details))
        return self.decode_maps(x.flatten(0, 1).permute(0, 3, 1, 2), *guides).view(b, t, *guides[-1].shape[2:])

    def project_details(self, details: Sequence[Tensor]) -> list[Tensor]:
        """A stem's maps (B, ., 2H, 2W), (B, ., 4H, 4W), ... with the channels that the decoder steps read."""
        return [
            projection(item.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for projection, item in zip(self.detail_projection, details, strict=True)
        ]

    def guides(self, guidance: Sequence[Tensor], details: Sequence[Tensor]) -> list[Tensor]:
        """What each decoder step reads beside its maps: projected transformer blocks plus projected stem maps."""
        blocks = [projection(item) for projection, item in zip(self.decoder_guidance_projection, guidance, strict=True)]
        return with_details(blocks, details)

    def decode_maps(self, maps: Tensor, *guides: Tensor) -> Tensor:
        """Decode class maps (B*T, C, H, W) under guides (B, ., 2H, 2W), (B, ., 4H, 4W), ... to (B*T, 1, sH, sW)."""
        # The maps are channels-last already, and convolutions are several times faster that way; the literal form
        # keeps the published layout.
        layout = torch.channels_last if self.exact_rewrites else torch.contiguous_format
        maps, *shared = (item.contiguous(memory_format=layout) for item in (maps, *guides))
        if self.exact_rewrites and cached_inference.is_possible(self, maps):
            return cached_inference.decode(self.decoder_steps, self.head, maps, shared)
        for step, guide in zip(self.decoder_steps, shared, strict=True):
            maps = step(maps, guide, exact_rewrites=self.exact_rewrites)
        logits: Tensor = self.head(maps)
        return logits


def with_details(blocks: Sequence[Tensor], details: Sequence[Tensor]) -> list[Tensor]:
    """Guides of the decoder steps: those of transformer blocks, each plus a stem's map of its size where there is one.

    Args:
        blocks: Projected, shapes (B, ., 2H, 2W), (B, ., 4H, 4W).
        details: See `CostAggregator.project_details`; may be more than there are blocks.
    """
    guides = list(blocks)
    for index, detail in enumerate(details):
        guides[index : index + 1] = [guides[index] + detail if index < len(guides) else F.relu(detail)]
    return guides
