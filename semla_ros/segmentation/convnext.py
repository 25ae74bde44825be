"""CLIP's ConvNeXt image tower with dense features, under the names that open_clip and timm give it."""

from __future__ import annotations

from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from semla_ros.segmentation.aggregation_layers import WindowMlp
from semla_ros.segmentation.clip import ImageTower

EPS = 1e-6  # of every layer norm in it


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position apart."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """Depthwise 7x7 convolution, norm and MLP, with one residual around them.

    Args:
        channels: Of the maps.
        drop: Stochastic depth: share of the images that pass it unchanged while training (Huang et al., ECCV 2016).
    """

    def __init__(self, channels: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.gamma = nn.Parameter(torch.ones(channels))
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.mlp = WindowMlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform maps (B, C, H, W)."""
        mixed: Tensor = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        mixed = self.gamma * mixed
        if self.training and self.drop:
            kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
            mixed = mixed * kept / (1 - self.drop)
        return x + mixed.permute(0, 3, 1, 2)


class ConvNextStage(nn.Module):
    """Halves the maps, unless it is the first one, and transforms them."""

    def __init__(self, channels_in: int, channels: int, drops: list[float]) -> None:
        super().__init__()
        if channels_in:
            self.downsample = nn.Sequential(ChannelNorm(channels_in), nn.Conv2d(channels_in, channels, 2, stride=2))
        self.blocks = nn.Sequential(*(ConvNextBlock(channels, drop) for drop in drops))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C, H/2, W/2), the first stage to (B, C, H, W)."""
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        transformed: Tensor = self.blocks(x)
        return transformed


class ConvNextTrunk(nn.Module):
    """Four stages at 1/4, 1/8, 1/16 and 1/32 of the image, and the norm of CLIP's image head."""

    def __init__(self, dims: tuple[int, ...], depths: tuple[int, ...], drop: float) -> None:
        super().__init__()
        every = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), ChannelNorm(dims[0]))
        self.stages = nn.ModuleList(
            ConvNextStage(before, channels, list(islice(every, depth)))
            for before, channels, depth in zip((0, *dims), dims, depths, strict=False)
        )
        self.head = nn.ModuleDict({"norm": ChannelNorm(dims[-1])})

    def forward(self, images: Tensor) -> list[Tensor]:
        """Outputs of the stages, fine to coarse."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class HeadMlp(nn.Module):
    """The image head of the larger models: two linear layers with an exact GELU between them."""

    def __init__(self, channels: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(channels, 2 * embed_dim)
        self.fc2 = nn.Linear(2 * embed_dim, embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., embed_dim)."""
        projected: Tensor = self.fc2(self.dropout(F.gelu(self.fc1(x))))
        return projected


class ConvNextTower(ImageTower):
    """Trunk and image head, which is applied at each position: nothing is pooled to segment an image."""

    def __init__(
        self,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        head: Literal["linear", "mlp"],
        embed_dim: int,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.trunk = ConvNextTrunk(dims, depths, drop)
        self.head = nn.ModuleDict(
            {"proj": nn.Linear(dims[-1], embed_dim, bias=False)}
            if head == "linear"
            else {"mlp": HeadMlp(dims[-1], embed_dim, drop)}
        )

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Dense features and what the stages give.

        Args:
            images: Normalised, shape (B, 3, H, W), H and W multiples of 32.

        Returns:
            Features (B, embed_dim, H/32, W/32), not normalised; maps at 1/4, 1/8, 1/16 and 1/32 of the image.
        """
        maps = self.trunk(images.contiguous(memory_format=torch.channels_last))
        return self._project(maps[-1]), maps

    def pooled(self, images: Tensor) -> Tensor:
        """See `ImageTower.pooled`."""
        coarsest = self.trunk(images.contiguous(memory_format=torch.channels_last))[-1]
        return self._project(coarsest.mean(dim=(2, 3), keepdim=True)).flatten(1)

    def cells(self, images: Tensor) -> Tensor:
        """See `ImageTower.cells`."""
        features: Tensor = self(images)[0]
        return features

    def _project(self, x: Tensor) -> Tensor:
        features = self.trunk.head["norm"](x).permute(0, 2, 3, 1)
        for part in self.head.values():
            features = part(features)
        projected: Tensor = features.permute(0, 3, 1, 2)
        return projected
