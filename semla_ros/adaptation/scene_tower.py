"""The image tower of a scene encoder: built from its settings, and filled with weights that must fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semla_ros.adaptation.scene_image import OWN_KEY, ResizeMode, ScenePreprocessing
from semla_ros.errors import CheckpointError, ConfigError
from semla_ros.file_integrity import file_sha256
from semla_ros.segmentation.checkpoint import Unfilled, is_finite, read_weights
from semla_ros.segmentation.clip import HEAD_DIM, ClipConfig, VisualTower

_CLIP_SETTINGS = ("image_size", "layers", "patch_size", "pool_type", "width")  # those in which OpenAI's models differ
_AS_OPENAI = {"head_width": HEAD_DIM, "mlp_ratio": 4.0, "norm_kwargs": {"eps": 1e-5}}


@dataclass(frozen=True, eq=False)
class EncoderSource:
    """A scene encoder, read and checked; see `SceneEncoder` for the fields."""

    id: str
    dim: int
    sha256: str
    tower: nn.Module
    preprocessing: ScenePreprocessing


class _PackedAttention(nn.MultiheadAttention):
    """Self-attention with query, key and value in one product."""

    def forward(self, x: Tensor, *, is_causal: bool = False) -> Tensor:  # type: ignore[override]
        """Mix tokens of shape (B, N, width)."""
        assert not is_causal
        mixed: Tensor = super().forward(x, x, x, need_weights=False)[0]
        return mixed


class SceneTower(VisualTower):
    """CLIP's image tower with open_clip's names and, bit for bit, its results.

    What fuses adapters needs query, key and value apart; this one is never adapted. That it rounds as the tower does
    which the centroids of published libraries were made with, keeps recorded drives reproducible.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        width = config.visual_width
        for block in self.transformer.resblocks:
            block.attn = _PackedAttention(width, width // HEAD_DIM, batch_first=True)


def build_tower(
    dim: int, vision: Mapping[str, Any], quick_gelu: bool, tensors: Mapping[str, Tensor], where: str
) -> nn.Module:
    """An image tower with weights.

    Args:
        dim: Length of an embedding.
        vision: Fields of open_clip's CLIPVisionCfg.
        quick_gelu: Its activation is QuickGELU, as in OpenAI's models.
        tensors: Weights under open_clip's names.
        where: Names the source in errors.

    Raises:
        ConfigError: open_clip refuses the settings.
        CheckpointError: A tensor is missing, not expected, of another shape or not finite.
    """
    config = _clip_config(dim, vision) if quick_gelu else None
    tower: nn.Module
    if config is not None:
        with Unfilled():
            tower = SceneTower(config)
    else:
        from semla_ros.torchvision_compat import import_open_clip

        try:
            tower = import_open_clip().model._build_vision_tower(dim, dict(vision), quick_gelu)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"scene encoder {where}: open_clip refuses the vision settings: {error}") from None
    expected = {name: tensor.shape for name, tensor in tower.state_dict().items()}
    if missing := sorted(set(expected) - set(tensors)):
        raise CheckpointError(f"scene encoder {where}: missing tensors: {len(missing)}, the first '{missing[0]}'")
    if extra := sorted(set(tensors) - set(expected)):
        raise CheckpointError(f"scene encoder {where}: unexpected tensors: {len(extra)}, the first '{extra[0]}'")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"scene encoder {where}: '{name}' has shape {tuple(tensors[name].shape)}, expected {tuple(shape)}"
            )
        if not is_finite(tensors[name]):
            raise CheckpointError(f"scene encoder {where}: '{name}' has values that are not finite; fetch it again")
    # Copied, so that nothing refers to the file any more.
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    tower.load_state_dict(weights, assign=True)
    return tower


def _clip_config(dim: int, vision: Mapping[str, Any]) -> ClipConfig | None:
    """OpenAI's architecture in open_clip's vision settings; None where they describe another one."""
    others = {key: value for key, value in vision.items() if key not in _CLIP_SETTINGS}
    if any(_AS_OPENAI.get(key) != value for key, value in others.items()):
        return None
    try:
        (height, width), patch = pair(vision["image_size"]), int(vision.get("patch_size", ClipConfig.patch))
        grid = (height // patch, width // patch)
        config = ClipConfig(
            patch=patch,
            visual_width=vision.get("width", ClipConfig.visual_width),
            visual_layers=vision.get("layers", ClipConfig.visual_layers),
            native_grid=grid,
            working_grid=grid,
            embed_dim=dim,
            pool=vision.get("pool_type", ClipConfig.pool),
        )
    except (ConfigError, KeyError, TypeError, ValueError):  # such as the four numbers of layers of a ResNet
        return None
    return config if config.working_resolution == (height, width) else None


def read_own(path: Path, metadata: Mapping[str, str]) -> EncoderSource:
    """An encoder in this package's form; `metadata` is that of its file."""
    tower, dim, preprocessing = build_own(metadata, read_tensors(path), str(path))
    return EncoderSource(metadata.get("id") or path.parent.name, dim, file_sha256(path), tower, preprocessing)


def build_own(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], where: str
) -> tuple[nn.Module, int, ScenePreprocessing]:
    """Tower, length of an embedding and preprocessing of an encoder in this package's form.

    Args:
        metadata: Its settings.
        tensors: Its weights.
        where: Names it in errors.

    Raises:
        ConfigError: A setting is missing or of the wrong form.
        CheckpointError: The tensors do not fit the configuration.
    """
    try:
        vision = dict(json.loads(metadata[OWN_KEY]))
        dim = int(json.loads(metadata["embed_dim"]))
        height, width = pair(vision["image_size"])
        mean, std = (triple(json.loads(metadata[key])) for key in ("image_mean", "image_std"))
        quick_gelu = json.loads(metadata.get("quick_gelu", "false").lower()) is True
        resize = metadata.get("resize", "stretch").strip('"')
        if resize not in ("stretch", "shortest_crop") or not all(0 < value <= 1 for value in std):
            raise ValueError(f"resize={resize}, std={std}")
        mode: ResizeMode = "stretch" if resize == "stretch" else "shortest_crop"
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"scene encoder {where}: settings need 'id', 'embed_dim', '{OWN_KEY}' with 'image_size', 'image_mean' "
            f"and 'image_std' of three values on the 0..1 scale, 'resize' stretch or shortest_crop; {error!r} is wrong"
        ) from None
    vision["image_size"] = (height, width)
    tower = build_tower(dim, vision, quick_gelu, tensors, where)
    return tower, dim, ScenePreprocessing(height=height, width=width, resize=mode, mean=mean, std=std)


def read_tensors(file: Path, start: str = "") -> dict[str, Tensor]:
    """Tensors of a checkpoint; those whose name starts so, if any do. Raises CheckpointError; see `read_weights`."""
    try:
        return read_weights(file, start)[0]
    except CheckpointError as error:
        raise CheckpointError(f"scene encoder {error}") from None


def pair(size: Any) -> tuple[int, int]:
    """Height and width, from both or from the edge of a square."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def triple(values: Any) -> tuple[float, float, float]:
    """One number for each channel; ValueError or TypeError where they are not three."""
    first, second, third = values
    return float(first), float(second), float(third)
