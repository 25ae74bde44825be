"""CAT-Seg: dense CLIP features, a cost volume against class embeddings, and its aggregation.

One code path for every size; module names follow the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, einsum, nn

from semla_ros.errors import ConfigError, known_names
from semla_ros.segmentation import cached_inference
from semla_ros.segmentation.aggregation_layers import AggregatorConfig
from semla_ros.segmentation.clip import Clip, ClipConfig, DenseFeatures
from semla_ros.segmentation.cost_aggregation import CostAggregator

CLIP_PIXEL_MEAN = (122.7709383, 116.7460125, 104.09373615)  # 0..255, RGB
CLIP_PIXEL_STD = (68.5005327, 66.6321579, 70.3231630)


@dataclass(frozen=True, kw_only=True)
class SlidingConfig:
    """Windows of the published sliding inference, in pixels."""

    kernel: tuple[int, int] = (384, 384)  # height and width of a window
    canvas: tuple[int, int] = (640, 640)  # the image is resized to this; the windows cover it exactly
    overlap: float = 0.333  # of two neighbouring windows, relative to the kernel, 0..1

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"'overlap' must be in [0, 1), got {self.overlap}")
        for canvas, kernel, stride in zip(self.canvas, self.kernel, self.stride, strict=True):
            if canvas < kernel or (canvas - kernel) % stride:
                raise ConfigError(f"windows of {kernel} pixels at stride {stride} do not cover a canvas of {canvas}")

    @property
    def stride(self) -> tuple[int, int]:
        """Rows and columns between two windows."""
        height, width = (max(1, int(size * (1 - self.overlap))) for size in self.kernel)
        return height, width

    @classmethod
    def around(cls, kernel: tuple[int, int]) -> SlidingConfig:
        """Two by two windows of a size, with the published overlap."""
        stride = cls(kernel=kernel, canvas=kernel).stride
        return cls(kernel=kernel, canvas=(kernel[0] + stride[0], kernel[1] + stride[1]))


@dataclass(frozen=True, kw_only=True)
class CatSegConfig:
    """Everything that fixes the architecture of one model; the defaults are the published B size."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    guidance_layers: tuple[int, int] = (3, 7)  # visual blocks whose output guides the decoder, 0-based
    pixel_mean: tuple[float, float, float] = CLIP_PIXEL_MEAN  # 0..255, RGB
    pixel_std: tuple[float, float, float] = CLIP_PIXEL_STD
    sliding: SlidingConfig | None = field(default_factory=SlidingConfig)  # None: windows of the working resolution
    probability: Literal["sigmoid", "softmax"] = "sigmoid"  # how the logits were trained: per class, or over classes

    def __post_init__(self) -> None:
        if self.clip.embed_dim != self.aggregator.embed_dim:
            raise ConfigError(
                f"'embed_dim' of the aggregator must be CLIP's {self.clip.embed_dim}, got {self.aggregator.embed_dim}"
            )
        if self.probability not in ("sigmoid", "softmax"):
            raise ConfigError(f"'probability' must be 'sigmoid' or 'softmax', got {self.probability!r}")
        if self.clip.working_grid != self.aggregator.grid:
            raise ConfigError(
                f"'grid' of the aggregator must be CLIP's working grid {self.clip.working_grid}, "
                f"got {self.aggregator.grid}"
            )
        if self.aggregator.detail_dims != self.clip.stem_dims[::-1]:
            raise ConfigError(
                f"'detail_dims' of the aggregator must be the stem's, coarse to fine: {self.clip.stem_dims[::-1]}, "
                f"got {self.aggregator.detail_dims}"
            )
        first, second = self.guidance_layers
        if not 0 <= first < second < self.clip.visual_layers - 1:
            raise ConfigError(
                f"'guidance_layers' must ascend and stand before the last of {self.clip.visual_layers} visual blocks, "
                f"got {self.guidance_layers}"
            )

    @property
    def working_resolution(self) -> tuple[int, int]:
        """Height and width in pixels that images are resized to."""
        return self.clip.working_resolution

    @property
    def sliding_windows(self) -> SlidingConfig:
        """Windows of the sliding inference."""
        return self.sliding or SlidingConfig.around(self.working_resolution)

    @classmethod
    def catseg_b(cls) -> CatSegConfig:
        """The published model on ViT-B/16 at 384 pixels."""
        return cls()

    @classmethod
    def catseg_l(cls) -> CatSegConfig:
        """The published model on ViT-L/14 at 336 pixels."""
        clip = ClipConfig(
            patch=14,
            visual_width=1024,
            visual_layers=24,
            native_grid=(24, 24),
            working_grid=(24, 24),
            embed_dim=768,
            text_width=768,
            text_layers=12,
        )
        return cls(clip=clip, aggregator=AggregatorConfig(embed_dim=768), guidance_layers=(7, 15))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as stored in a model file's header."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CatSegConfig:
        """The inverse of `as_dict`; lists pass for tuples.

        Raises:
            ConfigError: A key is unknown or a value is out of range.
        """
        settings = dict(values)
        parts: dict[str, Any] = {}
        for name, part in (("clip", ClipConfig), ("aggregator", AggregatorConfig)):
            parts[name] = part(**_known_fields(part, settings.pop(name, {})))
        if settings.get("sliding") is not None:
            parts["sliding"] = SlidingConfig(**_known_fields(SlidingConfig, settings.pop("sliding")))
        return cls(**parts, **_known_fields(cls, settings))


def _known_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    known = {item.name for item in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"unknown model setting '{unknown[0]}'; {known_names(str(unknown[0]), sorted(known))}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


class CatSeg(nn.Module):
    """The segmentation model.

    Weights may be overwritten in place, or swapped through `parameter.data`, between two calls: nothing derived from
    them is kept.
    """

    def __init__(self, config: CatSegConfig) -> None:
        super().__init__()
        self.config = config
        width = config.clip.visual_width
        predictor = nn.ModuleDict({"clip_model": Clip(config.clip), "transformer": CostAggregator(config.aggregator)})
        self.sem_seg_head = nn.ModuleDict({"predictor": predictor})
        first, second = config.aggregator.decoder_guidance_dims
        self.upsample1 = nn.ConvTranspose2d(width, first, 2, stride=2)
        self.upsample2 = nn.ConvTranspose2d(width, second, 4, stride=4)

    @property
    def clip(self) -> Clip:
        """Both CLIP towers."""
        module = self.sem_seg_head["predictor"]["clip_model"]  # type: ignore[index]
        assert isinstance(module, Clip)
        return module

    @property
    def aggregator(self) -> CostAggregator:
        """Cost aggregation and decoder."""
        module = self.sem_seg_head["predictor"]["transformer"]  # type: ignore[index]
        assert isinstance(module, CostAggregator)
        return module

    @property
    def exact_rewrites(self) -> bool:
        """Whether work that is the same for all classes or pixels is done once; False computes as published."""
        return self.aggregator.exact_rewrites

    @exact_rewrites.setter
    def exact_rewrites(self, enabled: bool) -> None:
        self.aggregator.exact_rewrites = enabled

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Class embeddings, shape (T, embed_dim), unit length.

        Args:
            token_ids: One prompt per class, shape (T, L), see `Clip.encode_text`; or an ensemble of shape (T, P, S, L),
                see `Clip.encode_ensemble`, whose templates are averaged and normalised again.
        """
        if token_ids.ndim == 4:
            embeddings: Tensor = F.normalize(self.clip.encode_ensemble(token_ids).mean(dim=1), dim=-1)
            return embeddings
        return self.clip.encode_text(token_ids)

    def encode_dense(self, images: Tensor) -> DenseFeatures:
        """Dense features of normalised images (B, 3, h, w) at the working resolution.

        Raises:
            ConfigError: The images have another size.
        """
        expected = self.config.working_resolution
        if tuple(images.shape[-2:]) != expected:
            raise ConfigError(f"images must be {expected[0]}x{expected[1]} pixels, got {tuple(images.shape[-2:])}")
        layers = self.config.guidance_layers
        visual = self.clip.visual
        if self.exact_rewrites and cached_inference.is_possible(visual, images) and len(images) > 1:
            return DenseFeatures.of_views([visual.dense(image[None], layers) for image in images])
        return visual.dense(images, layers)

    def cost_volume(self, features: Tensor, text: Tensor) -> Tensor:
        """Cosine similarity of dense features (B, C, h, w) with class embeddings (T, C), shape (B, T, h, w)."""
        return einsum("bchw,tc->bthw", F.normalize(features, dim=1), F.normalize(text, dim=-1).to(features.dtype))

    def forward_with_cost(self, images: Tensor, text: Tensor, presence: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Like `forward`, and the cost volume (B, T, h, w) too: training also supervises that."""
        dense = self.encode_dense(images)
        features = dense.feature_map()
        guidance = self.upsample1(dense.guidance_map(0)), self.upsample2(dense.guidance_map(1))
        cost = self.cost_volume(features, text)
        logits: Tensor = self.aggregator(cost, features, guidance, text, dense.details, presence)
        return logits, cost

    def forward(self, images: Tensor, text: Tensor, presence: Tensor | None = None) -> Tensor:
        """Segment images.

        Args:
            images: Normalised with `pixel_mean` and `pixel_std`, shape (B, 3, h, w), the working resolution.
            text: Class embeddings, shape (T, embed_dim), unit length.
            presence: Shape (T,), 0 for rows of `text` that stand in for no class, see `class_buckets`; None = all are
                classes.

        Returns:
            One logit map per class, shape (B, T, s*rows, s*columns) of the working grid with s = 2 ** decoder steps
            (published: 4); sigmoid makes probabilities (softmax where `probability` says so).
        """
        return self.forward_with_cost(images, text, presence)[0]
