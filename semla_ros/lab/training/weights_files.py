"""Write models and scene encoders as files of this package's own: half precision, and what they are in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from semla_ros.adaptation.scene_tower import build_own
from semla_ros.atomic_files import atomic_file
from semla_ros.errors import CheckpointError
from semla_ros.file_integrity import file_sha256
from semla_ros.segmentation.checkpoint import HEADER_KEY
from semla_ros.segmentation.protocol import SegmentationModel
from semla_ros.segmentation.text_prompts import Vocabulary

FORMAT_VERSION = 1


def save_model(
    model: SegmentationModel,
    path: str | Path,
    *,
    class_names: Sequence[str],
    vocabulary: Vocabulary,
    template: str = "single",
    model_id: str,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write a model as half-precision safetensors, under the published tensor names.

    The file appears whole or not at all.

    Args:
        model: The model.
        path: The file to write.
        class_names: The classes it was trained for.
        vocabulary: Whose rows its token table has.
        template: Prompt template it was trained with.
        model_id: Its name.
        extra: Plain values to keep with it, such as how it was trained.

    Returns:
        SHA-256 of the file.

    Raises:
        CheckpointError: A weight is not finite in half precision.
    """
    derived = {name for name, _ in model.named_buffers()}
    tensors = {}
    for name, tensor in model.published_names(model.state_dict()).items():
        if name in derived:
            continue
        half = tensor.detach().to("cpu", torch.float16).contiguous()
        if not half.isfinite().all():
            raise CheckpointError(f"'{name}' has values that are not finite in half precision; nothing was written")
        tensors[name] = half
    header = {
        "version": FORMAT_VERSION,
        "kind": model.kind,
        "config": model.config.as_dict(),
        "class_names": list(class_names),
        "token_rows": None if vocabulary.bpe_ids is None else list(vocabulary.bpe_ids),
        "template": template,
        "model_id": model_id,
        "extra": dict(extra or {}),
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as partial:
        save_file(tensors, partial, metadata={HEADER_KEY: json.dumps(header)})
    return file_sha256(target)


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
    build_own(metadata, tensors, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
        _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: it is written in another one each time, and digests differ."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
