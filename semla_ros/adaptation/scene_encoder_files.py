"""Find and read the weights of a scene encoder, in this package's own form or as they are published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from semla_ros.adaptation.scene_image import ResizeMode, ScenePreprocessing
from semla_ros.adaptation.scene_tower import EncoderSource, build_tower, pair, read_tensors, triple
from semla_ros.errors import CheckpointError, ConfigError
from semla_ros.file_integrity import file_sha256
from semla_ros.library.safetensors_header import HeaderError, read_header
from semla_ros.resources import PUBLISHED_ENCODER

ENCODER_FILE = "scene_encoder.safetensors"  # in a model folder
_CONFIG_KEY = "open_clip_vision_cfg"  # marks our own files
_HF_FILES = ("model.safetensors", "clip_vision.safetensors")


def encoder_of(model: Path, named: str = "") -> str:
    """What `find_encoder` takes for a model: the encoder beside its file, else one named, else the published one.

    Args:
        model: The model's folder or file.
        named: By its library; empty where that names none.
    """
    beside = (model if model.is_dir() else model.parent) / ENCODER_FILE
    return str(beside) if beside.is_file() else named or PUBLISHED_ENCODER


def find_encoder(source: str | Path, model_dir: str | Path = "") -> EncoderSource:
    """Find and read an encoder; see `SceneEncoder.load`."""
    text = str(source)
    path = Path(text).expanduser()
    if path.exists():
        return _read_path(path)
    from semla_ros.adaptation.published_encoders import read_open_clip, read_published

    if ":" in text:
        model, _, checkpoint = text.partition(":")
        file = Path(checkpoint).expanduser()
        if not file.is_file():
            raise ConfigError(f"scene encoder '{text}': there is no file {file}")
        name, _, tag = model.partition("/")
        return read_open_clip(name, tag, file)
    if "/" in text and path.suffix == "":
        name, _, tag = text.partition("/")
        return read_published(name, tag, model_dir)
    raise ConfigError(
        f"scene encoder '{text}': no such file or folder; give one, or an open_clip model as 'ViT-L-14/openai' or "
        "'ViT-L-14:/path/to/weights'"
    )


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
        tensors = read_tensors(path)
        tower, dim, preprocessing = build_own(header.metadata, tensors, str(path))
        return EncoderSource(
            header.metadata.get("id") or path.parent.name, dim, file_sha256(path), tower, preprocessing
        )
    from semla_ros.adaptation.published_encoders import HF_START, read_hugging_face

    if any(name.startswith(HF_START) for name in header.tensors):
        return read_hugging_face(path)
    raise CheckpointError(
        f"scene encoder {path}: neither a file made by this package nor a CLIP vision model in the Hugging Face "
        "layout; an open_clip checkpoint needs its model's name in front: 'ViT-L-14:<path>'"
    )


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
        vision = dict(json.loads(metadata[_CONFIG_KEY]))
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
            f"scene encoder {where}: settings need 'id', 'embed_dim', '{_CONFIG_KEY}' with 'image_size', 'image_mean' "
            f"and 'image_std' of three values on the 0..1 scale, 'resize' stretch or shortest_crop; {error!r} is wrong"
        ) from None
    vision["image_size"] = (height, width)
    tower = build_tower(dim, vision, quick_gelu, tensors, where)
    return tower, dim, ScenePreprocessing(height=height, width=width, resize=mode, mean=mean, std=std)
