"""Find and read the weights of a scene encoder, in this package's own form or as they are published."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from semla_ros.adaptation.scene_image import CLIP_MEAN, CLIP_STD, ResizeMode, ScenePreprocessing
from semla_ros.errors import CheckpointError, ConfigError
from semla_ros.library.fetching import PUBLISHED
from semla_ros.library.safetensors_header import HeaderError, read_header
from semla_ros.resources import share_folder
from semla_ros.segmentation.checkpoint import Unfilled, file_sha256, is_finite
from semla_ros.segmentation.clip import HEAD_DIM, ClipConfig, VisualTower
from semla_ros.torchvision_compat import import_open_clip

ENCODER_FILE = "scene_encoder.safetensors"  # in a model folder
_CONFIG_KEY = "open_clip_vision_cfg"  # marks our own files
_CLIP_SETTINGS = ("image_size", "layers", "patch_size", "pool_type", "width")  # those in which OpenAI's models differ
_AS_OPENAI = {"head_width": HEAD_DIM, "mlp_ratio": 4.0, "norm_kwargs": {"eps": 1e-5}}
_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_HF_FILES = ("model.safetensors", "clip_vision.safetensors")
_HF_START = "vision_model."
# Hugging Face name -> open_clip name, within one block.
_HF_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


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


def find_encoder(source: str | Path, model_dir: str | Path = "") -> EncoderSource:
    """Find and read an encoder; see `SceneEncoder.load`."""
    text = str(source)
    path = Path(text).expanduser()
    if path.exists():
        return _read_path(path)
    if ":" in text:
        model, _, checkpoint = text.partition(":")
        file = Path(checkpoint).expanduser()
        if not file.is_file():
            raise ConfigError(f"scene encoder '{text}': there is no file {file}")
        name, _, tag = model.partition("/")
        return _read_open_clip(name, tag, file)
    if "/" in text and path.suffix == "":
        name, _, tag = text.partition("/")
        return _read_published(name, tag, model_dir)
    raise ConfigError(
        f"scene encoder '{text}': no such file or folder; give one, or an open_clip model as 'ViT-L-14/openai' or "
        "'ViT-L-14:/path/to/weights'"
    )


def save_scene_encoder(state_dict: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> None:
    """Write a scene encoder in this package's form: fp16 weights, everything else in the header.

    Args:
        state_dict: An open_clip image tower; names may start with "visual.".
        config: `id`; `embed_dim`; `open_clip_vision_cfg` (fields of open_clip's CLIPVisionCfg); `image_mean` and
            `image_std` per channel on the 0..1 scale; `quick_gelu`; `resize`: "stretch" or "shortest_crop".
        path: The file.

    Raises:
        ConfigError: A setting is missing or of the wrong form.
        CheckpointError: The tensors do not fit the configuration.
    """
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
    tensors = {name.removeprefix("visual."): tensor.detach().cpu() for name, tensor in state_dict.items()}
    _build_own(metadata, tensors, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
    partial.replace(path)


def _read_path(path: Path) -> EncoderSource:
    if path.is_dir():
        found = [path / name for name in (ENCODER_FILE, *_HF_FILES) if (path / name).is_file()]
        if not found:
            raise ConfigError(f"scene encoder: {path} holds neither {ENCODER_FILE} nor {' nor '.join(_HF_FILES)}")
        path = found[0]
    try:
        header = read_header(path)
    except (HeaderError, OSError) as error:
        raise CheckpointError(f"scene encoder {path}: {error}; copy or fetch the file again") from None
    if _CONFIG_KEY in header.metadata:
        tensors = _read_tensors(path)
        tower, dim, preprocessing = _build_own(header.metadata, tensors, str(path))
        return EncoderSource(
            header.metadata.get("id") or path.parent.name, dim, file_sha256(path), tower, preprocessing
        )
    if any(name.startswith(_HF_START) for name in header.tensors):
        return _read_hugging_face(path, "")
    raise CheckpointError(
        f"scene encoder {path}: neither a file made by this package nor a CLIP vision model in the Hugging Face "
        "layout; an open_clip checkpoint needs its model's name in front: 'ViT-L-14:<path>'"
    )


def _build_own(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], where: str
) -> tuple[nn.Module, int, ScenePreprocessing]:
    try:
        vision = dict(json.loads(metadata[_CONFIG_KEY]))
        dim = int(json.loads(metadata["embed_dim"]))
        height, width = _pair(vision["image_size"])
        mean, std = (_triple(json.loads(metadata[key])) for key in ("image_mean", "image_std"))
        quick_gelu = json.loads(metadata.get("quick_gelu", "false").lower()) is True
        resize = metadata.get("resize", "stretch").strip('"')
        if resize not in ("stretch", "shortest_crop") or not all(0 < value <= 1 for value in std):
            raise ValueError(f"resize={resize}, std={std}")
        mode: ResizeMode = "stretch" if resize == "stretch" else "shortest_crop"
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"scene encoder {where}: settings need 'id', 'embed_dim', '{_CONFIG_KEY}' with 'image_size', 'image_mean' "
            f"and 'image_std' of three values on the 0..1 scale, 'resize' stretch or shortest_crop; {error!r} is wrong"
        ) from None
    vision["image_size"] = (height, width)
    tower = _build_tower(dim, vision, quick_gelu, tensors, where)
    return tower, dim, ScenePreprocessing(height=height, width=width, resize=mode, mean=mean, std=std)


def _build_tower(
    dim: int, vision: Mapping[str, Any], quick_gelu: bool, tensors: Mapping[str, Tensor], where: str
) -> nn.Module:
    """An image tower with weights; every tensor must fit."""
    config = _clip_config(dim, vision) if quick_gelu else None
    tower: nn.Module
    if config is not None:
        with Unfilled():
            tower = SceneTower(config)
    else:
        try:
            tower = import_open_clip().model._build_vision_tower(dim, dict(vision), quick_gelu)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"scene encoder {where}: open_clip refuses the vision settings: {error}") from None
    expected = {name: tensor.shape for name, tensor in tower.state_dict().items()}
    if missing := sorted(set(expected) - set(tensors)):
        raise CheckpointError(f"scene encoder {where}: '{missing[0]}' and {len(missing) - 1} more tensors are missing")
    if extra := sorted(set(tensors) - set(expected)):
        raise CheckpointError(f"scene encoder {where}: '{extra[0]}' and {len(extra) - 1} more tensors are not expected")
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
        (height, width), patch = _pair(vision["image_size"]), int(vision.get("patch_size", ClipConfig.patch))
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
    except (ConfigError, TypeError, ValueError):  # such as the four numbers of layers of a ResNet
        return None
    return config if config.working_resolution == (height, width) else None


def _read_published(name: str, tag: str, model_dir: str | Path) -> EncoderSource:
    """An open_clip model whose published weights are on this machine."""
    open_clip = import_open_clip()
    settings = open_clip.get_pretrained_cfg(name, tag) or {}
    if not settings:
        raise ConfigError(
            f"scene encoder '{name}/{tag}': open_clip knows no such model with these weights; "
            f"weights of {name}: {', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'none'}"
        )
    hub, _, own_file = str(settings.get("hf_hub", "")).rpartition("/")
    folders = [Path(item).expanduser() for item in (str(model_dir), os.environ.get("SEMLA_MODEL_DIR", "")) if item]
    folders.append(share_folder() / "models")
    names = [own_file] if own_file else list(_OPEN_CLIP_FILES)
    for folder in folders:
        for base in (folder / f"{name}-{tag}", folder / hub.rpartition("/")[2]):
            for file in (base / item for item in names):
                if file.is_file():
                    return _read_open_clip(name, tag, file)
    from huggingface_hub import try_to_load_from_cache

    for item in names:
        cached = try_to_load_from_cache(hub, item) if hub else None
        if isinstance(cached, str):
            return _read_open_clip(name, tag, Path(cached))
    item = f"{name}-{tag}"
    how = f"'semla fetch {item}'" if item in PUBLISHED else f"get them from {hub}, and give '{name}/{tag}:<file>'"
    raise ConfigError(
        f"scene encoder '{name}/{tag}': its weights are not on this machine; looked for {item}/{names[0]} in "
        f"{', '.join(map(str, folders))} and in the Hugging Face cache; to download them: {how}"
    )


def _read_open_clip(name: str, tag: str, file: Path) -> EncoderSource:
    """The image tower of an open_clip checkpoint; its text tower is left unread.

    Without a tag the weights count as OpenAI's where there are such weights of this model: activation (QuickGELU) and
    normalisation differ from others, and the file does not tell.
    """
    open_clip = import_open_clip()
    config = open_clip.get_model_config(name)
    if config is None:
        raise ConfigError(f"scene encoder '{name}': open_clip has no such model; see open_clip.list_models()")
    published = open_clip.get_pretrained_cfg(name, tag or "openai") or {}
    tag = tag or ("openai" if published else file.stem)
    quick_gelu = bool(published.get("quick_gelu", False) or config.get("quick_gelu", False))
    tensors = {key.removeprefix("module."): value for key, value in _read_tensors(file, "visual.").items()}
    tower_tensors = {key.removeprefix("visual."): item for key, item in tensors.items() if key.startswith("visual.")}
    tower = _build_tower(config["embed_dim"], config["vision_cfg"], quick_gelu, tower_tensors or tensors, str(file))
    height, width = _pair(config["vision_cfg"]["image_size"])
    preprocessing = ScenePreprocessing(
        height=height,
        width=width,
        mean=_triple(published.get("mean", CLIP_MEAN)),
        std=_triple(published.get("std", CLIP_STD)),
    )
    return EncoderSource(f"{name}/{tag}", config["embed_dim"], file_sha256(file), tower, preprocessing)


def _read_hugging_face(file: Path, id: str) -> EncoderSource:
    """A CLIP vision model with projection in the Hugging Face layout, `config.json` beside it."""
    config_file = file.with_name("config.json")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        dim = int(config.get("projection_dim", 512))
        config = {**config, **config.get("vision_config", {})}
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        size = int(config["image_size"])
        activation = str(config["hidden_act"])
        vision = {
            "image_size": size,
            "layers": int(config["num_hidden_layers"]),
            "width": width,
            "head_width": width // heads,
            "patch_size": int(config["patch_size"]),
            "mlp_ratio": int(config["intermediate_size"]) / width,
            "norm_kwargs": {"eps": float(config.get("layer_norm_eps", 1e-5))},
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"scene encoder {file}: its config.json must lie beside it and describe a CLIP vision model ({error!r})"
        ) from None
    if activation not in ("quick_gelu", "gelu"):
        raise CheckpointError(f"scene encoder {file}: activation '{activation}' is not one of quick_gelu, gelu")
    tensors = from_hugging_face(_read_tensors(file), str(file))
    tower = _build_tower(dim, vision, activation == "quick_gelu", tensors, str(file))
    name = id or str(config.get("_name_or_path") or "") or file.resolve().parent.name
    return EncoderSource(name, dim, file_sha256(file), tower, ScenePreprocessing(height=size, width=size))


def from_hugging_face(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Rename a CLIP vision model from the Hugging Face layout to open_clip's.

    Raises:
        CheckpointError: A tensor that this needs is missing.
    """
    tensors = {name: item for name, item in tensors.items() if name.startswith((_HF_START, "visual_projection."))}
    try:
        renamed = {
            "class_embedding": tensors.pop(f"{_HF_START}embeddings.class_embedding"),
            "positional_embedding": tensors.pop(f"{_HF_START}embeddings.position_embedding.weight"),
            "conv1.weight": tensors.pop(f"{_HF_START}embeddings.patch_embedding.weight"),
            "proj": tensors.pop("visual_projection.weight").T.contiguous(),
        }
        tensors.pop(f"{_HF_START}embeddings.position_ids", None)  # a buffer of old releases, 0..N-1
        for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
            for part in ("weight", "bias"):
                renamed[f"{ours}.{part}"] = tensors.pop(f"{_HF_START}{theirs}.{part}")
        start = f"{_HF_START}encoder.layers."
        for index in sorted({int(name[len(start) :].split(".")[0]) for name in tensors if name.startswith(start)}):
            for part in ("weight", "bias"):
                block = f"transformer.resblocks.{index}."
                qkv = [tensors.pop(f"{start}{index}.self_attn.{item}_proj.{part}") for item in "qkv"]
                renamed[f"{block}attn.in_proj_{part}"] = torch.cat(qkv)  # rows in the order q, k, v
                for theirs, ours in _HF_BLOCK.items():
                    renamed[f"{block}{ours}.{part}"] = tensors.pop(f"{start}{index}.{theirs}.{part}")
    except KeyError as error:
        raise CheckpointError(f"scene encoder {where}: tensor {error} is missing") from None
    if tensors:
        raise CheckpointError(f"scene encoder {where}: tensor '{next(iter(tensors))}' is not expected")
    return renamed


def _read_tensors(file: Path, start: str = "") -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a pickle that holds nothing else; those whose name starts so, if any do."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as content:
                names = list(content.keys())
                kept = [name for name in names if name.startswith(start)] or names
                return {name: content.get_tensor(name) for name in kept}
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        loaded = loaded.get("state_dict", loaded)
        return {name: item for name, item in loaded.items() if isinstance(item, Tensor)}
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError, AttributeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"scene encoder {file}: cannot be read ({reason}); fetch the file again") from None


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)
