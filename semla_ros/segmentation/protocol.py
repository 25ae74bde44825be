"""What engine, pipeline, training and checkpoints ask of a segmentation model; they know no model's class.

`registry` finds the classes; docs/models.md says how to bring another one.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from semla_ros.errors import ConfigError, known_names

if TYPE_CHECKING:
    from semla_ros.segmentation.clip import TextTower
    from semla_ros.segmentation.fixed_component import FixedComponent

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


class ModelConfig(Protocol):
    """What a model sees of an image, what its logits mean, and whatever else fixes its architecture."""

    @property
    def working_resolution(self) -> tuple[int, int]:
        """Height and width in pixels that images are resized to."""

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Of each channel, 0..255, RGB."""

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """Of each channel, 0..255, RGB."""

    @property
    def probability(self) -> Literal["sigmoid", "softmax"]:
        """How logits become probabilities: per class, or over classes."""

    @property
    def sliding_windows(self) -> SlidingConfig | None:
        """Windows of the sliding inference; None: the model has one view of an image only."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as stored in a model file's header, for `SegmentationModel.build`."""


class SegmentationModel(nn.Module, ABC):
    """A model that segments images by class names.

    Weights may be overwritten in place, or swapped through `parameter.data`, between two calls: nothing derived from
    them may be kept.

    Attributes:
        kind: Name of its entry point.
        template: Set of prompt templates, see `text_prompts.TEMPLATE_SETS`, unless a file says another.
        cuts_long_prompts: Whether prompts that are too long are cut; else they are refused.
        text_tower: What the paths of modules start with that class embeddings alone read.
        config: See `ModelConfig`.
    """

    kind: ClassVar[str]
    template: ClassVar[str] = "single"
    cuts_long_prompts: ClassVar[bool] = False
    text_tower: ClassVar[str]
    config: ModelConfig

    @classmethod
    @abstractmethod
    def recognises(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Whether tensors by name are a checkpoint of this kind."""

    @classmethod
    @abstractmethod
    def build(cls, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> SegmentationModel:
        """A model without weights.

        Args:
            settings: What `config.as_dict` gave when the file was written; None: a published checkpoint.
            tensors: Of the checkpoint, under this package's names; read for their shapes.

        Raises:
            ConfigError: Neither says what it is.
        """

    @classmethod
    def untrained(cls, settings: Mapping[str, Any], vocab_rows: int) -> SegmentationModel:
        """A model with random weights, to be trained from nothing.

        Args:
            settings: As of `build`, but for the token table.
            vocab_rows: Of the token table.

        Raises:
            ConfigError: The settings are of no model, or this kind starts from published weights alone.
        """
        del settings, vocab_rows
        raise ConfigError(f"models of the kind '{cls.kind}' are not trained from nothing: give a checkpoint")

    @property
    def clip(self) -> TextTower:
        """What of it learns from captions before it is trained to segment.

        Raises:
            ConfigError: It is not built on a CLIP.
        """
        raise ConfigError(f"models of the kind '{self.kind}' do not learn from captions")

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Longest prompt in tokens."""

    @property
    @abstractmethod
    def text_shape(self) -> tuple[int, ...]:
        """Of one class's embedding."""

    @property
    def class_limit(self) -> int:
        """Of more classes the best are selected inside; 0: all are processed, however many."""
        return 0

    @property
    def published_id(self) -> str:
        """Name of its published size; empty where it is none."""
        return ""

    @abstractmethod
    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Class embeddings, shape (T, *text_shape), of what `Vocabulary.tokenize` gives for `template`."""

    @abstractmethod
    def forward(self, images: Tensor, text: Tensor, presence: Tensor | None = None) -> Tensor:
        """Segment images.

        Args:
            images: Normalised, shape (B, 3, h, w), the working resolution.
            text: Class embeddings, shape (T, *text_shape).
            presence: Shape (T,), 0 for rows of `text` that stand in for no class, see `class_buckets`; None = all are
                classes.

        Returns:
            One logit map per class, shape (B, T, ., .), finite.
        """

    @abstractmethod
    def lora_targets(self) -> list[str]:
        """Paths of the linear modules that adapters attach to, in module order."""

    def choose(self, working_resolution: tuple[int, int] | None, early_rejection: int) -> None:
        """Take over what some models leave open.

        Args:
            working_resolution: Height and width that images are resized to; None = its own.
            early_rejection: Classes that go on at each pixel of the decoder; 0 = all.

        Raises:
            ConfigError: The model cannot.
        """
        if working_resolution not in (None, self.config.working_resolution):
            height, width = self.config.working_resolution
            raise ConfigError(
                f"'working_resolution' of a model of the kind '{self.kind}' is {height}x{width}: leave it out, got "
                f"{working_resolution[0]}x{working_resolution[1]}"
            )
        if early_rejection:
            raise ConfigError(f"models of kind '{self.kind}' have no 'early_rejection': got {early_rejection}, not 0")

    @property
    def trains_whole(self) -> bool:
        """Whether `semla train library` goes on with the model itself, unless told otherwise, and not only adapters."""
        return False

    def parameter_groups(self) -> tuple[list[Tensor], list[Tensor]]:
        """What training the model changes: the image tower, which learns at a rate of its own, and the rest.

        Those of the text side are frozen. Unless a model says otherwise, there is no image tower.
        """
        rest = [item for name, item in self.named_parameters() if not name.startswith(self.text_tower)]
        return [], [item.requires_grad_(True) for item in rest]

    def forward_with_cost(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """Like `forward`, and a cost volume (B, T, h, w), -1..1, that training is to supervise, too, or None."""
        logits: Tensor = self(images, text)
        return logits, None

    def trainable_copy(self, pooling: int) -> SegmentationModel:
        """A frozen copy to attach an adapter to; `pooling`: edge of average pooling before attention over classes."""
        if pooling != 1:
            raise ConfigError(f"models of the kind '{self.kind}' have no class attention to pool before, got {pooling}")
        return copy.deepcopy(self).requires_grad_(False)

    def regridded(self, grid: tuple[int, int], window: int) -> SegmentationModel:
        """The same model for images of another size, to go on training.

        Args:
            grid: Rows and columns of the coarsest feature map.
            window: Edge of an attention window in cells; 0 = as it is.

        Raises:
            ConfigError: Its size is fixed.
        """
        raise ConfigError(
            f"models of the kind '{self.kind}' cannot be given the grid {grid} (window {window}): leave both out"
        )

    def fixed_components(self) -> list[FixedComponent]:
        """Parts that no adapter changes and another runtime may take over; none unless a model says otherwise."""
        return []

    @staticmethod
    def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors under this package's names; as they are, unless a model says otherwise."""
        return dict(tensors)

    @staticmethod
    def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `own_names`."""
        return dict(tensors)


def known_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a dataclass among values; lists pass for tuples. Raises ConfigError on an unknown one."""
    known = {item.name for item in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"unknown model setting '{unknown[0]}'; {known_names(str(unknown[0]), sorted(known))}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
