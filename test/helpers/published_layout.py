"""Small random weights in the layout of the published ones: base model, archive of adapters, scene encoder."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import Hub
from safetensors.torch import save
from tiny_parts import EMBEDDING_DIM

from semla_ros.hub.published import PUBLISHED
from semla_ros.segmentation.checkpoint import SEGMENTER_FILE
from semla_ros.torchvision_compat import import_open_clip

VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}


def publish_all(hub: Hub, model: Path, library: Path) -> None:
    """Put them where the table of published items says that they are.

    Args:
        hub: Gets them.
        model: Folder of a tiny model: its segmenter stands for the published checkpoint.
        library: Its adapters, which become an archive without library.yaml.
    """
    contents = {
        "catseg-l": (model / SEGMENTER_FILE).read_bytes(),
        "semla-adapters": _archive(library),
        "ViT-L-14-openai": _encoder(),
    }
    for name, content in contents.items():
        item = PUBLISHED[name]
        hub.put(item.repository, item.files[0], content, item.kind)


def make_the_encoder_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let open_clip's "ViT-L-14" be as small as the random one."""
    open_clip = import_open_clip()
    original = open_clip.get_model_config

    def config(name: str) -> Any:
        return {"embed_dim": EMBEDDING_DIM, "vision_cfg": VISION} if name == "ViT-L-14" else original(name)

    monkeypatch.setattr(open_clip, "get_model_config", config)


def _archive(library: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(library.glob("*/*")):
            archive.write(path, f"loradb/{path.relative_to(library)}")
    return buffer.getvalue()


def _encoder() -> bytes:
    import open_clip

    torch.manual_seed(0)
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
    model = open_clip.CLIP(EMBEDDING_DIM, vision_cfg=VISION, text_cfg=text, quick_gelu=True)
    return save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
