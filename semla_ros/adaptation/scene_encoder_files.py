"""Find and read the weights of a scene encoder, in this package's own form or as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from semla_ros.adaptation.scene_image import OWN_KEY
from semla_ros.errors import CheckpointError, ConfigError
from semla_ros.library.safetensors_header import HeaderError, read_header
from semla_ros.resources import PUBLISHED_ENCODER

if TYPE_CHECKING:  # each kind is read by a module of its own, which is imported when there is one of its kind
    from semla_ros.adaptation.scene_tower import EncoderSource

ENCODER_FILE = "scene_encoder.safetensors"  # in a model folder
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
    if OWN_KEY in header.metadata:
        from semla_ros.adaptation.scene_tower import read_own

        return read_own(path, header.metadata)
    from semla_ros.adaptation.published_encoders import HF_START, read_hugging_face

    if any(name.startswith(HF_START) for name in header.tensors):
        return read_hugging_face(path)
    raise CheckpointError(
        f"scene encoder {path}: neither a file made by this package nor a CLIP vision model in the Hugging Face "
        "layout; an open_clip checkpoint needs its model's name in front: 'ViT-L-14:<path>'"
    )
