"""Train one LoRA adapter with peft and write it in the published folder layout."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.atomic_files import atomic_folder
from semla_ros.errors import AdapterError, ConfigError, TrainingError
from semla_ros.lab.training.batches import AugmentConfig, draw_batch
from semla_ros.lab.training.loop import LoopConfig, Run, run_loop
from semla_ros.lab.training.losses import segmentation_loss, sigmoid_loss
from semla_ros.lab.training.samples import SampleSource
from semla_ros.lab.training.segmenter_training import sample_class_weights
from semla_ros.lab.training.strange_images import TAKEN_APART, strange_images
from semla_ros.library.centroids import statistics_of, write_statistics
from semla_ros.library.domain_statistics import DomainStatistics, statistics_name
from semla_ros.library.importing import read_checked
from semla_ros.results import ImageArray
from semla_ros.segmentation.protocol import SegmentationModel
from semla_ros.segmentation.targets import lora_signature
from semla_ros.torchvision_compat import import_peft


@dataclass(frozen=True, kw_only=True)
class AdapterTrainingConfig:
    """How one adapter is trained. `published_adapter_training()` has the settings of the published ones.

    Attributes:
        targets: How the paths of the modules begin that are trained, of those that the model names; empty = all.
    """

    loop: LoopConfig
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()
    loss: Literal["overlap", "sigmoid"] = "overlap"  # "sigmoid": as the published adapters were trained
    rarity_exponent: float = 0.35
    overlap_weight: float = 0.5
    pooling: int = 1  # class-attention pooling in training; the published adapters used 2
    half_precision_file: bool = True  # store float16 (half the size) instead of float32
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(f"LoRA needs rank >= 1 and alpha > 0, got rank {self.rank} and alpha {self.alpha}")

    def targets_of(self, model: SegmentationModel) -> list[str]:
        """Paths of the modules that get low-rank updates.

        Raises:
            ConfigError: `targets` names none of the model's.
        """
        every = model.lora_targets()
        chosen = [path for path in every if path.startswith(self.targets)] if self.targets else every
        if not chosen:
            raise ConfigError(
                f"targets {', '.join(self.targets)}: no target of the model begins so; one of them is {every[0]}"
            )
        return chosen


def published_adapter_training(steps: int = 2000, batch_size: int = 2, seed: int = 0) -> AdapterTrainingConfig:
    """Settings of the published adapters (ACDC family): AdamW 1e-4, warm-up, cosine, gradient clip 0.01, 384 crops."""
    return AdapterTrainingConfig(
        loop=LoopConfig(
            steps=steps,
            batch_size=batch_size,
            learning_rate=1e-4,
            weight_decay=1e-4,
            warmup_steps=min(1000, steps // 2),
            warmup_factor=0.01,
            gradient_clip=0.01,
            bfloat16=False,
            seed=seed,
        ),
        loss="sigmoid",
        pooling=2,
        half_precision_file=False,
        augment=AugmentConfig(crop_size=384, brightness=0.0),
    )


def train_adapter(
    model: SegmentationModel,
    source: SampleSource,
    class_tokens: Tensor,
    config: AdapterTrainingConfig,
    *,
    name: str,
    library: Path,
    encoder: SceneEncoder,
    run: Run,
) -> DomainStatistics:
    """Train an adapter on a frozen base model and write `<library>/<name>/`.

    The folder appears whole or not at all: adapter_config.json, adapter_model.safetensors, `<name>_statistics.npz`.

    Args:
        model: Base model; not changed.
        source: Images with masks of the domain.
        class_tokens: Token rows of the class prompts, shape (K, ...).
        config: Steps, rank, loss.
        name: The adapter's folder name.
        library: Folder to write into; made where missing.
        encoder: Embeds the images for the centroid.
        run: Where to train, and what keeps and shows the progress.

    Returns:
        The domain's centroid and spread.

    Raises:
        ConfigError: The name is no folder name, or the configuration's targets are none of the model's.
        TrainingError: The loss diverged, the folder exists already, or the run's state is of another run.
        AdapterError: What was trained cannot be used; the folder is gone again.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ConfigError(f"adapter name '{name}' must be a plain folder name")
    target = library / name
    if target.exists():
        raise TrainingError(f"{target} exists already; remove it, or choose another name")
    targets = config.targets_of(model)
    peft = import_peft()
    torch.manual_seed(config.loop.seed)  # peft draws the initial A from the global generator
    base = model.trainable_copy(config.pooling).to(run.device)
    adapted = peft.get_peft_model(
        base,
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=0.0,
            bias="none",
            target_modules=targets,
        ),
    )
    class_tokens = class_tokens.to(run.device)
    weights = sample_class_weights(source, len(class_tokens), config.rarity_exponent).to(run.device)
    text = None
    if not any(path.startswith(model.text_tower) for path in targets):
        with torch.no_grad():
            text = base.encode_text(class_tokens)  # training does not change it
    mean, std = (torch.tensor(values) for values in (model.config.pixel_mean, model.config.pixel_std))

    def step_loss(generator: torch.Generator) -> Tensor:
        images, masks = draw_batch(
            source, config.loop.batch_size, model.config.working_resolution, config.augment, generator, mean, std
        )
        logits = base(images.to(run.device), base.encode_text(class_tokens) if text is None else text)
        if config.loss == "sigmoid":
            return sigmoid_loss(logits, masks.to(run.device))
        return segmentation_loss(logits, masks.to(run.device), weights, overlap=config.overlap_weight)

    groups = [{"params": [p for p in adapted.parameters() if p.requires_grad]}]
    run_loop({"adapter": adapted}, groups, step_loss, config.loop, run)
    statistics = embed_source(encoder, source)
    with atomic_folder(target) as partial:
        adapted.save_pretrained(str(partial), safe_serialization=True)
        if config.half_precision_file:
            file = partial / "adapter_model.safetensors"
            save_file({k: v.half() for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
        _spell_out_targets(partial / "adapter_config.json", targets)
        (partial / "README.md").unlink(missing_ok=True)  # peft's model card template says nothing about this adapter
        write_statistics(partial / statistics_name(name), statistics)
    try:
        read_checked(target, lora_signature(model))
    except AdapterError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return statistics


def embed_source(
    encoder: SceneEncoder,
    source: SampleSource,
    *,
    batch_size: int = 16,
    on_progress: Callable[[int], None] | None = None,
) -> DomainStatistics:
    """Embed every image of a source, in batches, and what they are held against."""
    parts = []
    for first in range(0, len(source), batch_size):
        images = [source.image(i) for i in range(first, min(first + batch_size, len(source)))]
        parts.append(encoder.embed_batch(images))
        if on_progress:
            on_progress(len(images))
    return domain_statistics(encoder, np.concatenate(parts), source.image)


def domain_statistics(
    encoder: SceneEncoder, embeddings: NDArray[np.float32], image: Callable[[int], ImageArray]
) -> DomainStatistics:
    """Centroid, spread and examples of a domain; every command that writes statistics makes them here.

    Args:
        encoder: Made the embeddings.
        embeddings: Of all images of the domain, shape (N, D).
        image: Gives the image of an index 0..N-1, RGB, shape (H, W, 3), uint8.
    """
    count = len(embeddings)
    some = [image(int(index)) for index in np.linspace(0, count - 1, min(count, TAKEN_APART)).round()]
    seed = zlib.crc32(np.sort(embeddings, axis=0).tobytes())
    images = strange_images(some, seed)
    strange = [encoder.embed_batch(images[first : first + 16]) for first in range(0, len(images), 16)]
    return statistics_of(embeddings, np.concatenate(strange))


def _spell_out_targets(path: Path, targets: list[str]) -> None:
    """List every target by its full path, as the published adapters do: peft shortens long lists to name endings."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["target_modules"] = targets
    settings["auto_mapping"] = None  # would name a class of this package, which no other reader needs
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
