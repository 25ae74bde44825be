"""A small random model with adapters for it: what most tests of the core run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from semla_ros.adaptation.scene_encoder_files import ENCODER_FILE
from semla_ros.config import DriftConfig, RetrievalConfig
from semla_ros.lab.training.weights_files import save_model, save_scene_encoder
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.segmentation.aggregation_layers import AggregatorConfig
from semla_ros.segmentation.checkpoint import SEGMENTER_FILE
from semla_ros.segmentation.clip import ClipConfig
from semla_ros.segmentation.model import CatSeg, CatSegConfig
from semla_ros.segmentation.targets import lora_signature
from semla_ros.segmentation.text_prompts import SINGLE_TEMPLATE, Vocabulary
from semla_ros.torchvision_compat import import_open_clip

CLASSES = ("road", "building", "sky", "car")
MORE_WORDS = ("vegetation", "sidewalk", "person", "bus", "pole", "terrain", "traffic sign")  # the model knows these too
CONTEXT = 16  # tokens of a prompt
ADAPTERS = ("day", "fog", "night", "snow")
EMBEDDING_DIM = 24  # of the tiny scene encoder
RANKS = {"day": 2, "fog": 4, "night": 2, "snow": 3}
ALPHA = 4


def tiny_config(vocab_rows: int = 40) -> CatSegConfig:
    """96 x 128 pixels, 0.4 M weights, every kind of module of the published sizes."""
    clip = ClipConfig(
        patch=16,
        visual_width=64,
        visual_layers=4,
        native_grid=(6, 8),
        working_grid=(6, 8),
        embed_dim=EMBEDDING_DIM,
        text_width=64,
        text_layers=2,
        context_length=CONTEXT,
        vocab_rows=vocab_rows,
    )
    aggregator = AggregatorConfig(
        grid=(6, 8),
        hidden_dim=16,
        layers=1,
        heads=2,
        window=2,
        pad_len=8,
        embed_dim=EMBEDDING_DIM,
        text_guidance_dim=8,
        appearance_guidance_dim=8,
        decoder_dims=(16, 16),
        decoder_guidance_dims=(16, 16),
        decoder_guidance_proj_dims=(8, 8),
    )
    return CatSegConfig(clip=clip, aggregator=aggregator, guidance_layers=(0, 2))


def tiny_model(seed: int = 0, vocab_rows: int = 40) -> CatSeg:
    """A model with seeded random weights, ready for inference."""
    torch.manual_seed(seed)
    return CatSeg(tiny_config(vocab_rows)).eval().requires_grad_(False)


def tiny_adapter(model: CatSeg, rank: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Module path -> A (rank, in), B (out, rank), large enough that masks change."""
    generator = torch.Generator().manual_seed(seed)
    return {
        path: (
            torch.randn(rank, in_features, generator=generator) * in_features**-0.5,
            torch.randn(out_features, rank, generator=generator) * 0.3,
        )
        for path, (out_features, in_features) in lora_signature(model).items()
    }


def write_adapter(
    folder: Path, layers: dict[str, tuple[Tensor, Tensor]], centroid: np.ndarray, *, alpha: float = ALPHA
) -> None:
    """Write one adapter in the published layout; the folder's name is its name."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, (a, b) in layers.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": next(iter(layers.values()))[0].shape[0],
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": list(layers),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    centroid = np.asarray(centroid, np.float32).reshape(1, -1)
    np.savez(folder / f"{folder.name}_statistics.npz", train_average_embedding=centroid)


def tiny_centroid(index: int) -> np.ndarray:
    """Centroids far apart from each other: one axis each."""
    centroid = np.zeros(EMBEDDING_DIM, np.float32)
    centroid[index] = 1.0
    return centroid


def write_library(folder: Path, model: CatSeg) -> Path:
    """Write `ADAPTERS`, with ranks of their own, as a library for `model`."""
    for index, name in enumerate(ADAPTERS):
        write_adapter(folder / name, tiny_adapter(model, RANKS[name], seed=100 + index), tiny_centroid(index))
    return folder


class FakeEncoder:
    """A scene encoder whose embedding is written in the image: pixel (0, 0) holds the index of a centroid."""

    id = "fake/scene"
    dim = EMBEDDING_DIM
    sha256 = ""

    def embed(self, image: np.ndarray) -> np.ndarray:
        """The centroid named by the red value of the first pixel, a little off."""
        return tiny_centroid(int(image[0, 0, 0]) % EMBEDDING_DIM) + np.float32(0.01)

    def embed_batch(self, images: list[np.ndarray]) -> np.ndarray:
        """Shape (N, D)."""
        return np.stack([self.embed(image) for image in images])


class PipelineFactory(Protocol):
    """Makes pipelines on the tiny model, with a fake encoder; settings replace those of the parts."""

    def __call__(
        self,
        *,
        library_folder: Path | None = None,
        retrieval: RetrievalConfig | None = None,
        drift: DriftConfig | None = None,
        memory: str = "double",
    ) -> PerceptionPipeline: ...


def write_model(folder: Path) -> Path:
    """Write the tiny model and a random scene encoder as a model folder."""
    vocabulary = Vocabulary.from_texts([SINGLE_TEMPLATE.format(name) for name in (*CLASSES, *MORE_WORDS)], CONTEXT)
    model = tiny_model(vocab_rows=len(vocabulary))
    save_model(model, folder / SEGMENTER_FILE, class_names=CLASSES, vocabulary=vocabulary, model_id="semla-tiny-random")
    write_encoder(folder / ENCODER_FILE)
    return folder


def write_encoder(path: Path) -> None:
    """Write a random scene encoder of an open_clip architecture."""
    vision = {"image_size": [48, 64], "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    torch.manual_seed(1)
    tower = import_open_clip().model._build_vision_tower(EMBEDDING_DIM, dict(vision, image_size=(48, 64)), False)
    settings = {
        "id": "semla-tiny-random/scene",
        "embed_dim": EMBEDDING_DIM,
        "open_clip_vision_cfg": vision,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "quick_gelu": False,
        "resize": "stretch",
    }
    save_scene_encoder(tower.state_dict(), settings, path)
