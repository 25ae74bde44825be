"""Cards that say what a trained model or adapter is, what it saw, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping

from semla_ros.lab.training.adapter_training import AdapterTrainingConfig
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.domains import SOURCE, Domain
from semla_ros.library.manifest import AdapterEntry
from semla_ros.segmentation.checkpoint import LoadedModel

_MODEL = """# {name}

A small model, so that the whole loop runs on any machine. It knows the procedural street scenes of semla_ros and
nothing else: **it is of no use on real camera images.**

| part | trained on |
| --- | --- |
| scene encoder, {encoder} | {captioned} captioned scenes of: {weathers} |
| segmenter's CLIP | the same captions, and per-patch classes of {clear} clear-day scenes |
| segmenter | masks of the {clear} clear-day scenes of {cities}: no other weather, no other city |

So the scene encoder has seen captioned images of every weather and city of the library, as the published CLIP has; the
segmentation head has seen clear day only, and its text tower only the words of the captions: it has a configurable
vocabulary within those words, not an open one.

Classes: {classes}.

Made by `semla train all`. Weights are half-precision safetensors. Licence: Apache-2.0.
"""

_ADAPTER = """# {name}

LoRA adapter of `{base}` for {what}, from {images} rendered scenes of {cities} ({ranges}).

- rank {rank}, alpha {alpha}, {targets} target modules
- {steps} steps of {batch} images
- centroid of {images} scene embeddings, mean distance {spread_mean:.3g}, 95 % within {spread_p95:.3g}
- made by `semla train all`; licence {licence}
"""

_OWN_MODEL = """# {name}

{base} was trained on from there on {domains} ({benchmark}); images: {images}.

- works at {height} x {width} pixels; classes: {classes}
- scene encoder: {encoder}
- steps: {steps}, made by `semla train library`; licence of the images: {licence}
"""

_OWN_ADAPTER = """# {name}

LoRA adapter of `{base}` for {name} ({benchmark}); images: {images}.

- rank {rank}, alpha {alpha}, {targets} target modules
- steps: {steps}, images in each: {batch}
- centroid of their scene embeddings, mean distance {spread_mean:.3g}, 95 % within {spread_p95:.3g}
- made by `semla train library`; licence of the images: {licence}
"""


def own_model_card(model: LoadedModel, base: str, encoder: str, counts: Mapping[str, int], benchmark: str) -> str:
    """The card of a model that was trained on a benchmark's source domains.

    Args:
        model: As it was written.
        base: What it was trained on from.
        encoder: Scene encoder id.
        counts: Training images by domain name.
        benchmark: Its name.
    """
    height, width = model.model.config.working_resolution
    return _OWN_MODEL.format(
        name=model.model_id,
        base=base,
        images=sum(counts.values()),
        domains=", ".join(counts),
        benchmark=benchmark,
        height=height,
        width=width,
        classes=", ".join(model.class_names),
        encoder=encoder,
        steps=model.metadata["steps"],
        licence=model.metadata["licence"] or "not stated",
    )


def own_adapter_card(
    name: str, entry: AdapterEntry, base: str, benchmark: str, config: AdapterTrainingConfig, targets: int
) -> str:
    """The card of an adapter that was trained on a domain of a benchmark."""
    return _OWN_ADAPTER.format(
        name=name,
        base=base,
        benchmark=benchmark,
        **_training(entry, config, targets),
        licence=entry.licence or "not stated",
    )


def model_card(name: str, encoder: str, counts: Mapping[str, int]) -> str:
    """The card of the model folder.

    Args:
        name: Model id.
        encoder: Scene encoder id.
        counts: Training images by domain name.
    """
    return _MODEL.format(
        name=name,
        encoder=encoder,
        captioned=sum(counts.values()),
        weathers=", ".join(counts),
        clear=sum(counts[name] for name in SOURCE),
        cities=" and ".join(city.replace("-", " ") for domain in SOURCE.values() for city in domain.cities),
        classes=", ".join(CLASS_NAMES),
    )


def adapter_card(domain: Domain, entry: AdapterEntry, base: str, config: AdapterTrainingConfig, targets: int) -> str:
    """The card of one adapter folder."""
    ranges = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in domain.severities.items())
    return _ADAPTER.format(
        name=domain.name,
        base=base,
        what=domain.name,
        cities=", ".join(domain.cities),
        ranges=f"severity: {ranges}" if ranges else "as the domain mixes them",
        **_training(entry, config, targets),
        licence=entry.licence,
    )


def _training(entry: AdapterEntry, config: AdapterTrainingConfig, targets: int) -> dict[str, object]:
    """What every card of an adapter says of its training and its domain's spread."""
    return {
        "images": entry.images,
        "rank": config.rank,
        "alpha": config.alpha,
        "targets": targets,
        "steps": config.loop.steps,
        "batch": config.loop.batch_size,
        "spread_mean": entry.spread_mean,
        "spread_p95": entry.spread_p95,
    }
