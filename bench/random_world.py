"""Models, adapters and libraries with random weights: the cost of a computation does not depend on its values."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.scene_image import ScenePreprocessing
from semla_ros.adaptation.scene_tower import SceneTower
from semla_ros.config import DriftConfig, InferenceConfig
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.pipeline_parts import PipelineParts
from semla_ros.segmentation.aggregation_layers import AggregatorConfig
from semla_ros.segmentation.clip import ClipConfig
from semla_ros.segmentation.model import CatSeg, CatSegConfig
from semla_ros.segmentation.targets import lora_signature

Size = Literal["toy", "tiny", "b", "l"]
RANK, ALPHA = 8, 16  # of the published adapters
ADAPTERS = tuple(f"domain-{index}" for index in range(5))


def config_of(size: Size) -> CatSegConfig:
    """Dimensions of a size: the published B and L, the embedded default's, and one for tests of the benchmarks."""
    if size == "b":
        return CatSegConfig.catseg_b()
    if size == "l":
        return CatSegConfig.catseg_l()
    is_toy = size == "toy"
    embed_dim = 32 if is_toy else 128
    clip = ClipConfig(
        patch=16,
        visual_width=64 if is_toy else 192,
        visual_layers=4 if is_toy else 6,
        native_grid=(6, 8),
        working_grid=(6, 8),
        embed_dim=embed_dim,
        text_width=64 if is_toy else 128,
        text_layers=2 if is_toy else 3,
        context_length=32,
        vocab_rows=512,
    )
    aggregator = AggregatorConfig(
        grid=(6, 8),
        hidden_dim=32,
        layers=1 if is_toy else 2,
        window=2,
        pad_len=32 if is_toy else 256,
        embed_dim=embed_dim,
        text_guidance_dim=32,
        appearance_guidance_dim=32,
        decoder_dims=(32, 16),
        decoder_guidance_dims=(64, 32),
        decoder_guidance_proj_dims=(16, 8),
    )
    return CatSegConfig(clip=clip, aggregator=aggregator, guidance_layers=(0, 2) if is_toy else (1, 3))


def random_model(size: Size, seed: int = 0, device: str = "cpu") -> CatSeg:
    """A model with seeded random weights, ready for inference; two of one seed and device are equal."""
    torch.manual_seed(seed)
    with torch.device(device):
        return CatSeg(config_of(size)).eval().requires_grad_(False)


def random_tokens(model: CatSeg, classes: int, words: int = 9, seed: int = 0) -> torch.Tensor:
    """Token ids of `classes` prompts with `words` tokens each, shape (classes, context length)."""
    clip = model.config.clip
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(classes, clip.context_length, dtype=torch.int64)
    tokens[:, 0] = clip.vocab_rows - 2
    tokens[:, 1 : 1 + words] = torch.randint(1, clip.vocab_rows - 2, (classes, words), generator=generator)
    tokens[:, 1 + words] = clip.vocab_rows - 1
    return tokens


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """RGB noise, shape (height, width, 3), uint8."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def random_encoder(size: Size, device: str = "cpu", seed: int = 0) -> SceneEncoder:
    """The published scene encoder's architecture for B and L, one like the embedded default's otherwise."""
    torch.manual_seed(seed)
    if size in ("b", "l"):
        preprocessing = ScenePreprocessing(height=224, width=224)
        patch, width, layers, dim = 14, 1024, 24, 768
    else:
        preprocessing = ScenePreprocessing(height=96, width=128, resize="stretch")
        patch, width, layers, dim = (16, 64, 2, 32) if size == "toy" else (16, 192, 6, 128)
    grid = (preprocessing.height // patch, preprocessing.width // patch)
    config = ClipConfig(
        patch=patch, visual_width=width, visual_layers=layers, native_grid=grid, working_grid=grid, embed_dim=dim
    )
    with torch.device(device):
        tower = SceneTower(config)
    return SceneEncoder(tower, preprocessing, id=size, dim=dim, device=device)


def class_list(count: int) -> tuple[str, ...]:
    """Names of `count` classes."""
    return tuple(f"class {index}" for index in range(count))


def random_parts(
    size: Size,
    folder: Path,
    *,
    inference: InferenceConfig,
    adapters: Sequence[str] = ADAPTERS,
    classes: int = 19,
    drift: DriftConfig | None = None,
) -> PipelineParts:
    """A pipeline's parts with random weights.

    Args:
        size: Of the model.
        folder: Empty; the library is written into it.
        inference: Settings of the engine; its device is "cpu" or "cuda".
        adapters: Names of the library.
        classes: Length of the vocabulary.
        drift: Settings of the gate.
    """
    model, encoder = random_model(size, device=inference.device), random_encoder(size, inference.device)
    write_random_library(folder, model, adapters, encoder.dim)
    return PipelineParts(
        model=model,
        engine=TorchEngine(model, inference, probe_images=[random_image(192, 256, seed=seed) for seed in range(2)]),
        encoder=encoder,
        library=AdapterLibrary.load(folder, targets=lora_signature(model)),
        tokens_of=lambda names: random_tokens(model, len(names)),
        class_names=class_list(classes),
        drift=drift or DriftConfig(),
        memory=inference.memory,
    )


def write_random_library(folder: Path, model: CatSeg, names: Sequence[str], dim: int, *, distinct: int = 8) -> Path:
    """Write a library in the published layout.

    Args:
        folder: Made where missing.
        model: What the adapters fit.
        names: One adapter each.
        dim: Length of the scene embeddings.
        distinct: So many weight files are written; further adapters are hard links to them, each with its own centroid.
    """
    rng = np.random.default_rng(0)
    settings = json.dumps(_peft_settings(list(lora_signature(model))))
    for index, name in enumerate(names):
        target = folder / name
        target.mkdir(parents=True)
        centroid = rng.normal(size=(1, dim)).astype(np.float32)
        np.savez(target / f"{name}_statistics.npz", train_average_embedding=centroid)
        if index < distinct:
            (target / "adapter_config.json").write_text(settings, encoding="utf-8")
            save_file(_random_adapter(model, seed=index), target / "adapter_model.safetensors")
        else:
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                os.link(folder / names[index % distinct] / file, target / file)
    return folder


def _random_adapter(model: CatSeg, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    tensors = {}
    for path, (out_features, in_features) in lora_signature(model).items():
        # Of the size that training leaves: the fused weights stay near the base weights.
        a = torch.randn(RANK, in_features, generator=generator) * in_features**-0.5
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(out_features, RANK, generator=generator) * 0.01
    return tensors


def _peft_settings(targets: list[str]) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
        "target_modules": targets,
    }
