"""SED: a ConvNeXt encoder, a cost volume over 80 prompt templates, and a decoder without attention over space.

Source: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", CVPR 2024. Module names
follow the published checkpoints; docs/compat.md says where this differs from the published code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from semla_ros.errors import ConfigError
from semla_ros.segmentation.aggregation_layers import ClassPart, LinearAttention, WindowMlp
from semla_ros.segmentation.clip import HEAD_DIM, Mlp, TextTower, clip_parameter_groups, from_open_clip, to_open_clip
from semla_ros.segmentation.convnext import ConvNextTower
from semla_ros.segmentation.protocol import CLIP_PIXEL_MEAN, CLIP_PIXEL_STD, SegmentationModel, known_fields
from semla_ros.segmentation.sed_decoder import SedDecoder, SedDecoderConfig, SpatialMixing
from semla_ros.segmentation.targets import targets_among

STRIDE = 32  # of the coarsest map: both sides of an image are multiples of it
_CLIP = "sem_seg_head.predictor.clip_model."
_DECODER = "sem_seg_head.predictor.transformer."
_DROP_OF_L = 0.1  # published, for the size whose image head is an MLP


@dataclass(frozen=True, kw_only=True)
class SedConfig:
    """Everything that fixes the architecture of one model; the defaults are the published B size."""

    visual_dims: tuple[int, ...] = (128, 256, 512, 1024)  # channels of the encoder's stages
    visual_depths: tuple[int, ...] = (3, 3, 27, 3)
    head: Literal["linear", "mlp"] = "linear"  # of CLIP's image side
    embed_dim: int = 640  # joint image-text dimension
    text_width: int = 640  # multiple of 64
    text_layers: int = 12
    context_length: int = 77  # longest prompt in tokens
    vocab_rows: int = 49408  # rows of the token table
    decoder: SedDecoderConfig = field(default_factory=SedDecoderConfig)
    working_resolution: tuple[int, int] = (768, 768)  # images are resized to it; any multiples of 32
    pixel_mean: tuple[float, float, float] = CLIP_PIXEL_MEAN  # 0..255, RGB
    pixel_std: tuple[float, float, float] = CLIP_PIXEL_STD
    adapts_text: bool = False  # adapters attach to the text tower, too: each mix then needs class embeddings of its own
    drop: float = 0.0  # while training: of the image head's MLP, and stochastic depth, up to this at the last block
    detaches_guidance: bool = True  # published: the encoder learns through the cost volume alone
    probability: Literal["sigmoid", "softmax"] = "sigmoid"  # how the logits were trained: per class, or over classes
    sliding_windows: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.text_width % HEAD_DIM or self.text_width <= 0:
            raise ConfigError(f"'text_width' must be a positive multiple of {HEAD_DIM}, got {self.text_width}")
        if any(side <= 0 or side % STRIDE for side in self.working_resolution):
            raise ConfigError(f"'working_resolution' must be multiples of {STRIDE}, got {self.working_resolution}")
        if self.probability not in ("sigmoid", "softmax"):
            raise ConfigError(f"'probability' must be 'sigmoid' or 'softmax', got {self.probability!r}")
        if len(self.visual_dims) != 4 or len(self.visual_depths) != 4:
            raise ConfigError(f"an encoder has four stages, got {self.visual_dims} and {self.visual_depths}")
        if self.decoder.encoder_dims != self.visual_dims[2::-1]:
            raise ConfigError(
                f"'encoder_dims' of the decoder must be the encoder's, coarse to fine: {self.visual_dims[2::-1]}, "
                f"got {self.decoder.encoder_dims}"
            )

    @classmethod
    def sed_b(cls) -> SedConfig:
        """The published model on ConvNeXt-B."""
        return cls()

    @classmethod
    def sed_l(cls) -> SedConfig:
        """The published model on ConvNeXt-L."""
        dims = (192, 384, 768, 1536)
        decoder = SedDecoderConfig(encoder_dims=dims[2::-1])
        sizes = {"drop": _DROP_OF_L, "embed_dim": 768, "text_width": 768, "text_layers": 16}
        return cls(visual_dims=dims, head="mlp", decoder=decoder, **sizes)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as stored in a model file's header."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SedConfig:
        """The inverse of `as_dict`; lists pass for tuples.

        Raises:
            ConfigError: A key is unknown or a value is out of range.
        """
        decoder = SedDecoderConfig(**known_fields(SedDecoderConfig, values.get("decoder", {})))
        return cls(**{**known_fields(cls, values), "decoder": decoder})

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> SedConfig:
        """The architecture that the shapes of a checkpoint tell: all but heads, pooling and working resolution.

        Raises:
            ConfigError: A tensor that tells a size is missing.
        """
        shapes = {name: tuple(item.shape) for name, item in tensors.items()}

        def size(name: str, axis: int = 0) -> int:
            if axis >= len(shapes.get(name, ())):
                raise ConfigError(f"'{name}' is missing or has another form; this is not an SED checkpoint")
            return shapes[name][axis]

        def count(pattern: str) -> int:
            found = {match[1] for name in shapes if (match := re.match(pattern.replace(".", r"\."), name))}
            return len(found)

        stage = _CLIP + "visual.trunk.stages.{}.blocks"
        depths = tuple(count(stage.format(index) + r".(\d+).") for index in range(4))
        dims = tuple(size(stage.format(index) + ".0.norm.weight") for index in range(4))
        steps = range(count(_DECODER + r"decoder(\d+)."))
        guidance = _DECODER + "decoder_guidance_projection.{}.0.weight"
        has_mlp = _CLIP + "visual.head.mlp.fc2.weight" in shapes
        return cls(
            visual_dims=dims,
            visual_depths=depths,
            head="mlp" if has_mlp else "linear",
            drop=_DROP_OF_L if has_mlp else 0.0,
            embed_dim=size(_CLIP + "text_projection", 1),
            text_width=size(_CLIP + "text_projection"),
            text_layers=count(_CLIP + r"transformer.resblocks.(\d+)."),
            context_length=size(_CLIP + "positional_embedding"),
            vocab_rows=size(_CLIP + "token_embedding.weight"),
            decoder=SedDecoderConfig(
                templates=size(_DECODER + "conv1.weight", 1),
                hidden_dim=size(_DECODER + "conv1.weight"),
                dims=tuple(size(f"{_DECODER}decoder{index + 1}.conv.double_conv.0.weight") for index in steps),
                encoder_dims=tuple(size(guidance.format(index), 1) for index in steps),
                guidance_dims=tuple(size(guidance.format(index)) for index in steps),
                kernels=tuple(size(f"{_DECODER}decoder{index + 1}.cnext.dwconv.weight", 2) for index in steps),
            ),
        )


PUBLISHED = {"sed-b": SedConfig.sed_b, "sed-l": SedConfig.sed_l}
_TARGETS: dict[type[nn.Module], tuple[str, ...]] = {
    WindowMlp: ("fc1", "fc2"),
    Mlp: ("c_fc", "c_proj"),
    SpatialMixing: ("pwconv1", "pwconv2"),
    LinearAttention: ("q", "k", "v"),
    ClassPart: ("MLP.0", "MLP.2"),
}


class Sed(SegmentationModel):
    """SED, see `SegmentationModel`."""

    kind = "sed"
    template = "imagenet"
    cuts_long_prompts = True
    text_tower = _CLIP + "transformer."
    config: SedConfig

    def __init__(self, config: SedConfig) -> None:
        super().__init__()
        self.config = config
        clip = TextTower(
            ConvNextTower(config.visual_dims, config.visual_depths, config.head, config.embed_dim, config.drop),
            width=config.text_width,
            layers=config.text_layers,
            embed_dim=config.embed_dim,
            context_length=config.context_length,
            vocab_rows=config.vocab_rows,
            activation=nn.GELU,
        )
        predictor = nn.ModuleDict({"clip_model": clip, "transformer": SedDecoder(config.decoder)})
        self.sem_seg_head = nn.ModuleDict({"predictor": predictor})

    @classmethod
    def recognises(cls, tensors: Mapping[str, Tensor]) -> bool:
        """See `SegmentationModel.recognises`."""
        return _CLIP + "visual.trunk.stem.0.weight" in tensors

    @classmethod
    def build(cls, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Sed:
        """See `SegmentationModel.build`."""
        return cls(SedConfig.of_tensors(tensors) if settings is None else SedConfig.from_dict(settings))

    @classmethod
    def untrained(cls, settings: Mapping[str, Any], vocab_rows: int) -> Sed:
        """See `SegmentationModel.untrained`."""
        return cls(SedConfig.from_dict({**settings, "vocab_rows": vocab_rows}))

    @property
    def published_id(self) -> str:
        """See `SegmentationModel`."""
        return next((name for name, make in PUBLISHED.items() if make() == self.config), "")

    @property
    def context_length(self) -> int:
        """See `SegmentationModel`."""
        return self.config.context_length

    @property
    def text_shape(self) -> tuple[int, ...]:
        """See `SegmentationModel`."""
        return (self.config.decoder.templates, self.config.embed_dim)

    def lora_targets(self) -> list[str]:
        """MLPs of the encoder and linear maps of the decoder; those of the text tower where `adapts_text` says so."""
        paths = targets_among(self, _TARGETS)
        return [path for path in paths if self.config.adapts_text or not path.startswith(self.text_tower)]

    def choose(self, working_resolution: tuple[int, int] | None, early_rejection: int) -> None:
        """See `SegmentationModel.choose`; both sides must be multiples of 32."""
        if working_resolution is not None:
            self.config = dataclasses.replace(self.config, working_resolution=working_resolution)
        self.decoder.top_k = early_rejection

    def parameter_groups(self) -> tuple[list[Tensor], list[Tensor]]:
        """See `SegmentationModel.parameter_groups`."""
        return clip_parameter_groups(self, _CLIP)

    def trainable_copy(self, pooling: int) -> Sed:
        """See `SegmentationModel.trainable_copy`."""
        decoder = dataclasses.replace(self.config.decoder, pooling=(pooling, pooling))
        copy = Sed(dataclasses.replace(self.config, decoder=decoder))
        copy.load_state_dict(self.state_dict())
        return copy.requires_grad_(False)

    @staticmethod
    def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fused projections of the text tower become three linear modules."""
        return from_open_clip(tensors)

    @staticmethod
    def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `own_names`."""
        return to_open_clip(tensors)

    @property
    def clip(self) -> TextTower:
        """Image and text tower."""
        module = self.sem_seg_head["predictor"]["clip_model"]  # type: ignore[index]
        assert isinstance(module, TextTower)
        return module

    @property
    def decoder(self) -> SedDecoder:
        """Everything behind the cost volume."""
        module = self.sem_seg_head["predictor"]["transformer"]  # type: ignore[index]
        assert isinstance(module, SedDecoder)
        return module

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Embeddings of each prompt of each class, shape (T, P, embed_dim), unit length.

        Args:
            token_ids: Shape (T, P, S, L), see `TextTower.encode_ensemble`, P as many as the decoder reads.

        Raises:
            ConfigError: There are not so many prompts for each class.
        """
        expected = self.config.decoder.templates
        if token_ids.ndim != 4 or token_ids.shape[1] != expected:
            raise ConfigError(f"SED reads {expected} prompts for each class, got token ids {tuple(token_ids.shape)}")
        return self.clip.encode_ensemble(token_ids)

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        presence: Tensor | None = None,
        *,
        auxiliary: list[Tensor] | None = None,
    ) -> Tensor:
        """Segment images.

        Args:
            images: Normalised with `pixel_mean` and `pixel_std`, shape (B, 3, H, W), H and W multiples of 32.
            text: From `encode_text`, shape (T, P, embed_dim).
            presence: Shape (T,), 0 for rows of `text` that stand in for no class; None = all are classes.
            auxiliary: See `SedDecoder.forward`.

        Returns:
            One logit map per class, shape (B, T, H/4, W/4); sigmoid makes probabilities (softmax where `probability`
            says so).

        Raises:
            ConfigError: The images have another size.
        """
        cost, guidance = self._encode(images, text)
        logits: Tensor = self.decoder(cost, guidance, presence, auxiliary)
        return logits

    def forward_with_cost(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """See `SegmentationModel.forward_with_cost`; the cost is the mean over the prompts."""
        cost, guidance = self._encode(images, text)
        return self.decoder(cost, guidance), cost.mean(dim=2)

    def _encode(self, images: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Cost volume (B, T, P, H/32, W/32), and the encoder's maps that guide the decoder, coarse to fine."""
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ConfigError(f"images must have sides that are multiples of {STRIDE}, got {height}x{width}")
        features, maps = self.clip.visual(images)
        cost = torch.einsum("behw,tpe->btphw", F.normalize(features, dim=1), text.to(features.dtype))
        guidance = maps[2::-1]
        return cost, [item.detach() for item in guidance] if self.config.detaches_guidance else guidance
