"""Scene encoders as others publish them: open_clip checkpoints, and CLIP vision models in the Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from semla_ros.adaptation.scene_image import CLIP_MEAN, CLIP_STD, ScenePreprocessing
from semla_ros.adaptation.scene_tower import EncoderSource, build_tower, pair, read_tensors, triple
from semla_ros.errors import CheckpointError, ConfigError
from semla_ros.file_integrity import file_sha256
from semla_ros.hub.published import PUBLISHED
from semla_ros.resources import model_folders
from semla_ros.torchvision_compat import import_open_clip

_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HF_START = "vision_model."  # of the names in the Hugging Face layout
# Hugging Face name -> open_clip name, within one block.
_HF_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def read_published(name: str, tag: str, model_dir: str | Path) -> EncoderSource:
    """An open_clip model whose published weights are on this machine."""
    open_clip = import_open_clip()
    settings = open_clip.get_pretrained_cfg(name, tag) or {}
    if not settings:
        raise ConfigError(
            f"scene encoder '{name}/{tag}': open_clip knows no such model with these weights; "
            f"weights of {name}: {', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'none'}"
        )
    hub, _, own_file = str(settings.get("hf_hub", "")).rpartition("/")
    folders = model_folders(str(model_dir))
    names = [own_file] if own_file else list(_OPEN_CLIP_FILES)
    for folder in folders:
        for base in (folder / f"{name}-{tag}", folder / hub.rpartition("/")[2]):
            for file in (base / item for item in names):
                if file.is_file():
                    return read_open_clip(name, tag, file)
    from huggingface_hub import try_to_load_from_cache

    for item in names:
        cached = try_to_load_from_cache(hub, item) if hub else None
        if isinstance(cached, str):
            return read_open_clip(name, tag, Path(cached))
    item = f"{name}-{tag}"
    how = f"'semla fetch {item}'" if item in PUBLISHED else f"get them from {hub}, and give '{name}/{tag}:<file>'"
    raise ConfigError(
        f"scene encoder '{name}/{tag}': its weights are not on this machine; looked for {item}/{names[0]} in "
        f"{', '.join(map(str, folders))} and in the Hugging Face cache; to download them: {how}"
    )


def read_open_clip(name: str, tag: str, file: Path) -> EncoderSource:
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
    tensors = read_tensors(file, "visual.")
    tower_tensors = {key.removeprefix("visual."): item for key, item in tensors.items() if key.startswith("visual.")}
    tower = build_tower(config["embed_dim"], config["vision_cfg"], quick_gelu, tower_tensors or tensors, str(file))
    height, width = pair(config["vision_cfg"]["image_size"])
    preprocessing = ScenePreprocessing(
        height=height,
        width=width,
        mean=triple(published.get("mean", CLIP_MEAN)),
        std=triple(published.get("std", CLIP_STD)),
    )
    return EncoderSource(f"{name}/{tag}", config["embed_dim"], file_sha256(file), tower, preprocessing)


def read_hugging_face(file: Path) -> EncoderSource:
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
    tensors = from_hugging_face(read_tensors(file), str(file))
    tower = build_tower(dim, vision, activation == "quick_gelu", tensors, str(file))
    name = str(config.get("_name_or_path") or "") or file.resolve().parent.name
    return EncoderSource(name, dim, file_sha256(file), tower, ScenePreprocessing(height=size, width=size))


def from_hugging_face(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Rename a CLIP vision model from the Hugging Face layout to open_clip's.

    Raises:
        CheckpointError: A tensor that this needs is missing.
    """
    tensors = {name: item for name, item in tensors.items() if name.startswith((HF_START, "visual_projection."))}
    try:
        renamed = {
            "class_embedding": tensors.pop(f"{HF_START}embeddings.class_embedding"),
            "positional_embedding": tensors.pop(f"{HF_START}embeddings.position_embedding.weight"),
            "conv1.weight": tensors.pop(f"{HF_START}embeddings.patch_embedding.weight"),
            "proj": tensors.pop("visual_projection.weight").T.contiguous(),
        }
        tensors.pop(f"{HF_START}embeddings.position_ids", None)  # a buffer of old releases, 0..N-1
        for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
            for part in ("weight", "bias"):
                renamed[f"{ours}.{part}"] = tensors.pop(f"{HF_START}{theirs}.{part}")
        start = f"{HF_START}encoder.layers."
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
