"""A random model for images of 32 x 64 pixels, for tests of what runs around and inside it."""

from __future__ import annotations

import torch

from semla_ros.segmentation.aggregation_layers import AggregatorConfig
from semla_ros.segmentation.clip import ClipConfig
from semla_ros.segmentation.model import CatSeg, CatSegConfig


def small_model(pad_len: int = 0, pooling: tuple[int, int] = (1, 1)) -> CatSeg:
    """The same weights each time, in evaluation mode; its class embeddings have 32 values."""
    torch.manual_seed(0)
    clip = ClipConfig(
        patch=8,
        visual_width=64,
        visual_layers=3,
        native_grid=(4, 8),
        working_grid=(4, 8),
        embed_dim=32,
        text_width=64,
        text_layers=1,
        context_length=8,
        vocab_rows=12,
    )
    aggregator = AggregatorConfig(
        grid=(4, 8),
        hidden_dim=16,
        heads=2,
        window=4,
        pad_len=pad_len,
        pooling=pooling,
        embed_dim=32,
        text_guidance_dim=8,
        appearance_guidance_dim=8,
        decoder_dims=(16, 16),
        decoder_guidance_dims=(8, 8),
        decoder_guidance_proj_dims=(4, 4),
    )
    return CatSeg(CatSegConfig(clip=clip, aggregator=aggregator, guidance_layers=(0, 1), sliding=None)).eval()
