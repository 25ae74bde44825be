"""CAT-Seg: dense CLIP features, a cost volume against class embeddings, and its aggregation.

One code path for every size; module names follow the published checkpoints.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, einsum, nn

from semla_ros.errors import CheckpointError, ConfigError
from semla_ros.segmentation import cached_inference
from semla_ros.segmentation.aggregation_layers import AggregatorConfig, LinearAttention, WindowAttention, WindowMlp
from semla_ros.segmentation.clip import (
    Clip,
    ClipConfig,
    ConvStem,
    DenseFeatures,
    Mlp,
    SelfAttention,
    clip_parameter_groups,
    from_open_clip,
)
from semla_ros.segmentation.cost_aggregation import CostAggregator, GroupedClassPart
from semla_ros.segmentation.protocol import (
    CLIP_PIXEL_MEAN,
    CLIP_PIXEL_STD,
    SegmentationModel,
    SlidingConfig,
    known_fields,
)
from semla_ros.segmentation.targets import targets_among

if TYPE_CHECKING:
    from semla_ros.segmentation.fixed_component import FixedComponent

_CLIP = "sem_seg_head.predictor.clip_model."
_CONV1 = _CLIP + "visual.conv1.weight"
_ALIAS = re.compile(r"\.attn\.([qkv])_proj_weight$")


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
            parts[name] = part(**known_fields(part, settings.pop(name, {})))
        if settings.get("sliding") is not None:
            parts["sliding"] = SlidingConfig(**known_fields(SlidingConfig, settings.pop("sliding")))
        return cls(**parts, **known_fields(cls, settings))


PUBLISHED = {"catseg-b": CatSegConfig.catseg_b, "catseg-l": CatSegConfig.catseg_l}

# Children of each kind of module that an adapter targets. Not targeted: CLIP's output projection, norms,
# convolutions, the decoder, embeddings. The stem exists in models of our own only: a linear map that carries its
# features into the transformer, as `detail_projection` does into the decoder.
_TARGETS: dict[type[nn.Module], tuple[str, ...]] = {
    SelfAttention: ("q_proj", "k_proj", "v_proj"),
    Mlp: ("c_fc", "c_proj"),
    WindowAttention: ("q", "k", "v", "proj"),
    WindowMlp: ("fc1", "fc2"),
    LinearAttention: ("q", "k", "v"),
    GroupedClassPart: ("MLP.0", "MLP.2"),
    ConvStem: ("to_tokens",),
}


def _alias(name: str) -> str:
    return re.sub(r"\.attn\.([qkv])_proj\.weight$", r".attn.\1_proj_weight", name) if _CLIP in name else name


class CatSeg(SegmentationModel):
    """CAT-Seg, see `SegmentationModel`."""

    kind = "catseg"
    text_tower = _CLIP + "transformer."
    config: CatSegConfig

    def __init__(self, config: CatSegConfig) -> None:
        super().__init__()
        self.config = config
        width = config.clip.visual_width
        predictor = nn.ModuleDict({"clip_model": Clip(config.clip), "transformer": CostAggregator(config.aggregator)})
        self.sem_seg_head = nn.ModuleDict({"predictor": predictor})
        first, second = config.aggregator.decoder_guidance_dims
        self.upsample1 = nn.ConvTranspose2d(width, first, 2, stride=2)
        self.upsample2 = nn.ConvTranspose2d(width, second, 4, stride=4)

    @classmethod
    def recognises(cls, tensors: Mapping[str, Tensor]) -> bool:
        """See `SegmentationModel.recognises`."""
        return _CONV1 in tensors

    @classmethod
    def build(cls, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> CatSeg:
        """See `SegmentationModel.build`; of a published checkpoint the visual width tells the size."""
        if settings is not None:
            return cls(CatSegConfig.from_dict(settings))
        width = tensors[_CONV1].shape[0] if tensors[_CONV1].ndim else 0
        for make in PUBLISHED.values():
            if make().clip.visual_width == width:
                return cls(make())
        raise ConfigError(
            f"visual width {width} is of no published model and the file's header holds no config; say what it is"
        )

    @classmethod
    def untrained(cls, settings: Mapping[str, Any], vocab_rows: int) -> CatSeg:
        """See `SegmentationModel.untrained`."""
        return cls(CatSegConfig.from_dict({**settings, "clip": {**settings.get("clip", {}), "vocab_rows": vocab_rows}}))

    @property
    def published_id(self) -> str:
        """See `SegmentationModel`."""
        return next((name for name, make in PUBLISHED.items() if make() == self.config), "")

    @property
    def context_length(self) -> int:
        """See `SegmentationModel`."""
        return self.config.clip.context_length

    @property
    def text_shape(self) -> tuple[int, ...]:
        """See `SegmentationModel`."""
        return (self.config.clip.embed_dim,)

    @property
    def class_limit(self) -> int:
        """See `SegmentationModel`."""
        return self.config.aggregator.pad_len

    def lora_targets(self) -> list[str]:
        """Module paths of the published target list that exist in it, and those of its stem, in module order."""
        details = tuple(f"detail_projection.{index}" for index in range(len(self.aggregator.detail_projection)))
        return targets_among(self, {**_TARGETS, CostAggregator: details})

    @property
    def trains_whole(self) -> bool:
        """Small models of our own, which alone have a stem."""
        return bool(self.config.clip.stem_dims)

    def parameter_groups(self) -> tuple[list[Tensor], list[Tensor]]:
        """See `SegmentationModel.parameter_groups`."""
        return clip_parameter_groups(self, _CLIP)

    def trainable_copy(self, pooling: int) -> CatSeg:
        """See `SegmentationModel.trainable_copy`."""
        aggregator = dataclasses.replace(self.config.aggregator, pooling=(pooling, pooling))
        copy = CatSeg(dataclasses.replace(self.config, aggregator=aggregator))
        copy.load_state_dict(self.state_dict())
        return copy.requires_grad_(False)

    def regridded(self, grid: tuple[int, int], window: int) -> CatSeg:
        """See `SegmentationModel.regridded`; training goes on with the position table as interpolated."""
        config = self.config
        if grid == config.clip.working_grid:
            return self
        clip = dataclasses.replace(config.clip, native_grid=grid, working_grid=grid)
        aggregator = dataclasses.replace(config.aggregator, grid=grid, window=window or config.aggregator.window)
        model = CatSeg(dataclasses.replace(config, clip=clip, aggregator=aggregator)).to(self.upsample1.weight.device)
        derived = {name for name, _ in model.named_buffers()}
        weights = {name: value for name, value in self.state_dict().items() if name not in derived}
        with torch.no_grad():
            weights[_CLIP + "visual.positional_embedding"] = self.clip.visual.positions(grid)
        model.load_state_dict(weights, strict=False)
        return model

    def fixed_components(self) -> list[FixedComponent]:
        """The decoder."""
        from semla_ros.segmentation.catseg_decoder import decoder_component

        return [decoder_component(self)]

    @staticmethod
    def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Alias names and fused projections become three linear modules.

        Raises:
            CheckpointError: A tensor and its alias differ.
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in from_open_clip(tensors).items():
            known = _ALIAS.sub(r".attn.\1_proj.weight", name)
            if known in renamed and not (tensor.is_meta or torch.equal(renamed[known], tensor)):
                raise CheckpointError(f"'{known}' and its alias '{_alias(known)}' hold different values")
            renamed[known] = tensor
        return renamed

    @staticmethod
    def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Projections of CLIP under their alias names."""
        return {_alias(name): tensor for name, tensor in tensors.items()}

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
