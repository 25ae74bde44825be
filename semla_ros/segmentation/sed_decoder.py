"""SED's decoder: from a cost volume over all prompt templates to one logit map per class.

Class maps travel as (B*T, C, H, W). What all classes of an image share, the encoder's guidance, is convolved once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from semla_ros.errors import ConfigError
from semla_ros.segmentation.aggregation_layers import ClassPart, DoubleConvolution
from semla_ros.segmentation.convnext import EPS

REJECTED = -1e4  # logit of a class that was rejected early: its probability is exactly 0, in half precision too


@dataclass(frozen=True, kw_only=True)
class SedDecoderConfig:
    """Dimensions of the decoder; the defaults are the published ones (B size)."""

    templates: int = 80  # prompts for each class: channels of the cost volume
    hidden_dim: int = 128
    dims: tuple[int, ...] = (64, 32, 16)  # of each step
    encoder_dims: tuple[int, ...] = (512, 256, 128)  # of the encoder's maps at 1/16, 1/8 and 1/4 of the image
    guidance_dims: tuple[int, ...] = (32, 16, 8)  # of both guidances, for each step
    kernels: tuple[int, ...] = (9, 9, 9)  # edge of the spatial mixing
    heads: int = 4  # of class attention
    pooling: tuple[int, int] = (1, 1)  # before class attention; published: (2, 2) in training

    def __post_init__(self) -> None:
        steps = len(self.dims)
        for name in ("encoder_dims", "guidance_dims", "kernels"):
            if len(getattr(self, name)) != steps:
                raise ConfigError(f"'{name}' must have one entry for each of {steps} steps, got {getattr(self, name)}")
        for dim, guidance in zip((self.hidden_dim, *self.dims), self.guidance_dims, strict=False):
            if dim % self.heads or guidance >= dim:
                raise ConfigError(
                    f"a step of {dim} channels must be a multiple of the {self.heads} heads and have less guidance "
                    f"than channels, got {guidance}"
                )


class SpatialMixing(nn.Module):
    """The encoder's kind of block, under the names that the decoder gives it."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Transform class maps (M, C, H, W)."""
        mixed: Tensor = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))))
        return x + (self.gamma * mixed).permute(0, 3, 1, 2)


class SedStep(nn.Module):
    """Mixes space, then classes, and doubles the resolution under both guidances."""

    def __init__(self, config: SedDecoderConfig, index: int) -> None:
        super().__init__()
        dim, dim_out = (config.hidden_dim, *config.dims)[index : index + 2]
        guidance = config.guidance_dims[index]
        self.cnext = SpatialMixing(dim, config.kernels[index])
        self.attention = ClassPart(dim, config.heads, pooling=config.pooling)
        self.up = nn.ConvTranspose2d(dim, dim - guidance, 2, stride=2)
        self.conv = DoubleConvolution(dim + guidance, dim_out)

    def forward(
        self, x: Tensor, guidance: Tensor, cost_guidance: Tensor, presence: Tensor | None, *, exact_rewrites: bool
    ) -> Tensor:
        """Map (B*T, C, H, W) to (B*T, C_out, 2H, 2W).

        Args:
            x: Class maps.
            guidance: Of the encoder, shape (B, G, 2H, 2W).
            cost_guidance: Of each class, shape (B*T, G, 2H, 2W).
            presence: See `SedDecoder.forward`.
            exact_rewrites: Convolve the encoder's guidance once for each image.
        """
        x = self.cnext(x).permute(0, 2, 3, 1)
        x = x.reshape(len(guidance), -1, *x.shape[1:])  # (B, T, H, W, C)
        no_text = x.new_zeros(1, x.shape[1], 0)
        x = self.attention(x, no_text, presence, exact_rewrites=exact_rewrites)
        x = self.up(x.flatten(0, 1).permute(0, 3, 1, 2))
        doubled: Tensor = self.conv(x, guidance, cost_guidance, exact_rewrites=exact_rewrites)
        return doubled


class SedDecoder(nn.Module):
    """Embeds the cost volume and decodes it in steps that double the resolution.

    Attributes:
        exact_rewrites: Whether work that is the same for all classes is done once.
        top_k: Category early rejection: before each step only those classes go on that are among so many best ones at
            some pixel; 0 = all go on.
    """

    def __init__(self, config: SedDecoderConfig) -> None:
        super().__init__()
        self.exact_rewrites = True
        self.top_k = 0
        dims, costs = (config.hidden_dim, *config.dims), (config.templates, *config.guidance_dims)
        self.conv1 = nn.Conv2d(config.templates, config.hidden_dim, 7, padding=3)
        self.decoder_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, guidance, 3, padding=1), nn.ReLU())
            for channels, guidance in zip(config.encoder_dims, config.guidance_dims, strict=True)
        )
        self.decoder_corr_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(before, after, 2, stride=2), nn.ReLU())
            for before, after in pairwise(costs)
        )
        self._count = len(config.dims)
        for index, dim in enumerate(dims[:-1]):
            self.add_module(f"decoder{index + 1}", SedStep(config, index))
            self.add_module(f"head{index}", nn.Conv2d(dim, 1, 3, padding=1))  # for training and early rejection
        self.head = nn.Conv2d(dims[-1], 1, 3, padding=1)

    @property
    def steps(self) -> tuple[SedStep, ...]:
        """`decoder1`, `decoder2`, ..."""
        return tuple(cast(SedStep, self.get_submodule(f"decoder{index + 1}")) for index in range(self._count))

    def forward(
        self,
        cost: Tensor,
        encoder_maps: list[Tensor],
        presence: Tensor | None = None,
        auxiliary: list[Tensor] | None = None,
    ) -> Tensor:
        """Turn a cost volume into logits.

        Args:
            cost: Cosine similarity with each prompt of each class, shape (B, T, P, h, w).
            encoder_maps: Coarse to fine, shapes (B, ., 2h, 2w), (B, ., 4h, 4w), (B, ., 8h, 8w).
            presence: Shape (T,), 1 for a class and 0 for a row that stands in for none, see `class_buckets`; None = all
                are classes.
            auxiliary: The auxiliary heads' logits, (B, T, h, w) to (B, T, 4h, 4w), are appended, for training.

        Returns:
            Shape (B, T, 8h, 8w); `REJECTED` where a class was rejected early.
        """
        if self.top_k and not self.training:
            if presence is not None:
                raise ConfigError("early rejection reads each image: it cannot be captured, compiled or filled up")
            each = ([item[image : image + 1] for item in (cost, *encoder_maps)] for image in range(len(cost)))
            return torch.cat([self._decode(own, maps, None, None) for own, *maps in each])
        return self._decode(cost, encoder_maps, presence, auxiliary)

    def _decode(
        self, cost: Tensor, encoder_maps: list[Tensor], presence: Tensor | None, auxiliary: list[Tensor] | None
    ) -> Tensor:
        b, t = cost.shape[:2]
        layout = torch.channels_last if self.exact_rewrites else torch.contiguous_format
        maps = cost.flatten(0, 1).contiguous(memory_format=layout)
        guides = [project(item) for project, item in zip(self.decoder_guidance_projection, encoder_maps, strict=True)]
        cost_guides, cost_guide = [], maps
        for project in self.decoder_corr_guidance_projection:
            cost_guide = project(cost_guide)
            cost_guides.append(cost_guide)
        x = self.conv1(maps)
        kept = torch.arange(t, device=cost.device)
        for index, step in enumerate(self.steps):
            if auxiliary is not None:
                auxiliary.append(self._auxiliary(index, x.detach()).reshape(b, t, *x.shape[2:]))
            if self.top_k and not self.training:
                chosen = self.contenders(self._auxiliary(index, x))
                kept, x = kept[chosen], x[chosen]
                cost_guides[index:] = [item[chosen] for item in cost_guides[index:]]
            x = step(x, guides[index], cost_guides[index], presence, exact_rewrites=self.exact_rewrites)
        logits: Tensor = self.head(x)[:, 0]
        if len(logits) == b * t:
            return logits.reshape(b, t, *logits.shape[1:])
        every = logits.new_full((t, *logits.shape[1:]), REJECTED)
        return every.index_copy(0, kept, logits)[None]

    def _auxiliary(self, index: int, x: Tensor) -> Tensor:
        logits: Tensor = self.get_submodule(f"head{index}")(x)
        return logits

    def contenders(self, logits: Tensor) -> Tensor:
        """Which classes are among the best `top_k` at some pixel, ascending; logits (T, 1, H, W)."""
        count = min(self.top_k, len(logits))
        chosen = logits.flatten(1).topk(count, dim=0).indices.flatten()
        return torch.bincount(chosen, minlength=len(logits)).nonzero()[:, 0]
