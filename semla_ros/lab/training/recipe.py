"""The whole recipe of the shipped tiny models, from nothing to a library: resumable, stage by stage."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.scene_encoder_files import ENCODER_FILE
from semla_ros.config import RetrievalConfig, from_mapping
from semla_ros.errors import ConfigError
from semla_ros.file_integrity import file_sha256, write_atomically
from semla_ros.lab.processes import worker_pool
from semla_ros.lab.report.progress import training_progress
from semla_ros.lab.training.adapter_training import AdapterTrainingConfig, embed_source, train_adapter
from semla_ros.lab.training.cards import adapter_card, model_card
from semla_ros.lab.training.clip_training import ClipTrainingConfig, caption_targets, refine_scene_tower, train_clip
from semla_ros.lab.training.loop import LoopConfig, Run
from semla_ros.lab.training.samples import RenderedSamples, RenderRequest
from semla_ros.lab.training.segmenter_training import SegmenterTrainingConfig, train_segmenter
from semla_ros.lab.training.weights_files import save_model, save_scene_encoder
from semla_ros.lab.world.caption import SYNONYMS
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.domains import BENCHMARK, SOURCE, Domain
from semla_ros.library.centroids import write_statistics
from semla_ros.library.domain_statistics import DomainStatistics, parse_statistics, statistics_name
from semla_ros.library.importing import write_manifest
from semla_ros.library.manifest import (
    BASE_STATISTICS_NAME,
    RENDERED,
    AdapterEntry,
    BaseDomain,
    LibraryManifest,
    ModelReference,
)
from semla_ros.segmentation.checkpoint import SEGMENTER_FILE, LoadedModel, load_model
from semla_ros.segmentation.clip import HEAD_DIM, ClipConfig, VisualTower, to_open_clip
from semla_ros.segmentation.model import CatSeg, CatSegConfig
from semla_ros.segmentation.protocol import CLIP_PIXEL_MEAN, CLIP_PIXEL_STD
from semla_ros.segmentation.text_prompts import SINGLE_TEMPLATE, Vocabulary

log = logging.getLogger(__name__)

Samples = Mapping[str, RenderedSamples]  # by domain name

TRAINING_DOMAINS: Mapping[str, Domain] = {**SOURCE, **BENCHMARK}


@dataclass(frozen=True, kw_only=True)
class SceneEncoderTrainingConfig:
    """How the scene encoder goes on after the joint training."""

    loop: LoopConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that fixes a training run; read from `config/training.yaml`.

    Attributes:
        model: Dimensions of the segmenter; its vocabulary is that of the captions, whatever stands there.
        scene_tower: Dimensions of the scene encoder; its text settings are not used.
    """

    model: CatSegConfig
    scene_tower: ClipConfig
    clip: ClipTrainingConfig
    scene_encoder: SceneEncoderTrainingConfig
    segmenter: SegmenterTrainingConfig
    adapter: AdapterTrainingConfig
    seed: int = 0
    image_size: tuple[int, int] = (192, 256)
    clear_images: int = 2400
    domain_images: int = 480
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)

    @classmethod
    def load(cls, path: Path, budget: float = 1.0) -> Recipe:
        """Read a recipe file.

        Args:
            path: YAML file in the form of `config/training.yaml`.
            budget: Factor on every number of steps, > 0.

        Raises:
            ConfigError: The file is unreadable, or a setting unknown or out of range.
        """
        if not budget > 0:
            raise ConfigError(f"'budget' must be positive, got {budget}")
        recipe = from_mapping(cls, read_recipe(path), where=f"recipe {path}")
        stages = {}
        for name in ("clip", "scene_encoder", "segmenter", "adapter"):
            stage = getattr(recipe, name)
            stages[name] = replace(stage, loop=replace(stage.loop.scaled(budget), seed=recipe.seed))
        return replace(recipe, **stages)


def read_recipe(path: Path) -> Any:
    """The content of a recipe file; raises ConfigError."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"recipe {path}: {error}") from None


def adapter_recipe(path: Path) -> AdapterTrainingConfig:
    """The 'adapter' part of a recipe file, which needs no other beside the seed.

    Raises:
        ConfigError: It is unreadable, has no such part, or a setting is unknown or out of range.
    """
    content = read_recipe(path)
    part = content.get("adapter") if isinstance(content, Mapping) else None
    if part is None:
        raise ConfigError(f"recipe {path}: there is no part 'adapter' in it")
    if "seed" in content and isinstance(part, Mapping) and isinstance(part.get("loop"), Mapping):
        part = {**part, "loop": {"seed": content["seed"], **part["loop"]}}
    return from_mapping(AdapterTrainingConfig, part, where=f"recipe {path}: adapter")


def render_training_images(
    recipe: Recipe, cache: Path, domains: Mapping[str, Domain] = TRAINING_DOMAINS
) -> dict[str, RenderedSamples]:
    """Training images of every domain, by name; rendered by all cores where they are not cached."""
    height, width = recipe.image_size
    samples = {}
    for name, domain in domains.items():
        count = recipe.clear_images if name in SOURCE else recipe.domain_images
        request = RenderRequest(domain=domain, split="train", count=count, width=width, height=height)
        with training_progress(f"render {name}", count) as (advance, _):
            samples[name] = RenderedSamples(request, cache, on_progress=advance)
    return samples


@dataclass(frozen=True, kw_only=True)
class TrainingFolders:
    """Where a training run reads and writes.

    Attributes:
        work: Progress and rendered images; may be removed once all is done.
        model: The model's folder: segmenter, scene encoder, card.
        library: The adapter library.
    """

    work: Path
    model: Path
    library: Path

    @property
    def scenes(self) -> Path:
        """Cache of rendered images."""
        return self.work / "scenes"

    @property
    def segmenter(self) -> Path:
        """The finished segmenter."""
        return self.model / SEGMENTER_FILE

    @property
    def encoder(self) -> Path:
        """The finished scene encoder."""
        return self.model / ENCODER_FILE

    @property
    def clip(self) -> Path:
        """The CLIP that the segmenter starts from: a segmenter file whose aggregation is untrained."""
        return self.work / "clip.safetensors"

    def statistics(self, domain: str) -> Path:
        """Centroid and spread of a domain, be it an adapter's or the base model's own."""
        return self.library / (BASE_STATISTICS_NAME if domain in SOURCE else f"{domain}/{statistics_name(domain)}")

    def encoder_note(self, domain: str) -> Path:
        """Says which scene encoder made a domain's statistics."""
        return self.work / f"centroid-{domain}.json"


@contextmanager
def _run(stage: str, loop: LoopConfig, folders: TrainingFolders, device: torch.device) -> Iterator[Run]:
    """A stage's run, resumed from its state in the work folder, with a bar."""
    with training_progress(f"train {stage.replace('_', ' ')}", loop.steps) as (_, on_step):
        yield Run(device=device, state_file=folders.work / f"{stage}.state", on_step=on_step)


def train_clip_stage(recipe: Recipe, folders: TrainingFolders, samples: Samples, device: torch.device) -> None:
    """Train the tiny CLIP; writes the scene encoder, and the CLIP for the segmenter to start from."""
    captions = [text for source in samples.values() for text in source.captions]
    prompts = [SINGLE_TEMPLATE.format(word) for words in SYNONYMS.values() for word in words]
    prompts += [SINGLE_TEMPLATE.format(name) for name in CLASS_NAMES]
    vocabulary = Vocabulary.from_texts([*captions, *prompts], recipe.model.clip.context_length)
    torch.manual_seed(recipe.seed)
    clip = replace(recipe.model.clip, vocab_rows=len(vocabulary))
    model = CatSeg(replace(recipe.model, clip=clip)).to(device)
    tower = VisualTower(recipe.scene_tower).to(device)
    tokens = token_table(vocabulary, captions)
    with _run("clip", recipe.clip.loop, folders, device) as run:
        train_clip(
            model.clip,
            tower,
            list(samples.values()),
            samples["clear"],
            tokens,
            vocabulary.tokenize(CLASS_NAMES),
            recipe.clip,
            run,
        )
    with _run("scene_encoder", recipe.scene_encoder.loop, folders, device) as run:
        targets = caption_targets(model.clip, tokens, device)
        refine_scene_tower(tower, list(samples.values()), targets, recipe.scene_encoder.loop, run)
    save_model(model, folders.clip, class_names=CLASS_NAMES, vocabulary=vocabulary, model_id="semla-tiny-clip")
    folders.model.mkdir(parents=True, exist_ok=True)
    save_tower(tower, folders.encoder)


def train_segmenter_stage(recipe: Recipe, folders: TrainingFolders, samples: Samples, device: torch.device) -> None:
    """Train the segmenter on clear day, from the finished CLIP."""
    start = load_model(folders.clip, device)
    model = start.model.train()
    with _run("segmenter", recipe.segmenter.loop, folders, device) as run:
        train_segmenter(model, samples["clear"], start.tokenizer.tokenize(CLASS_NAMES), recipe.segmenter, run)
    save_model(
        model.eval(),
        folders.segmenter,
        class_names=CLASS_NAMES,
        vocabulary=start.tokenizer,
        model_id="semla-tiny",
        extra={
            "domain": RENDERED,
            "trained_on": "clear-day scenes of the source cities",
            "steps": recipe.segmenter.loop.steps,
        },
    )


def train_adapters_stage(
    recipe: Recipe,
    folders: TrainingFolders,
    samples: Samples,
    domains: Mapping[str, Domain],
    device: torch.device,
) -> None:
    """Train one adapter per domain but the base model's own, and write the library; finished ones are kept.

    On a CPU as many are trained at once as there are cores, one thread each: threads that share one small step wait
    for each other more than they help.
    """
    base = load_model(folders.segmenter)
    encoder = SceneEncoder.load(folders.encoder)
    folders.library.mkdir(parents=True, exist_ok=True)
    for name, source in samples.items():
        if name in SOURCE or (
            folders.statistics(name).is_file() and _noted_statistics(folders, name, encoder) is None
        ):  # no adapter, or one that was trained beside another scene encoder
            with training_progress(f"embed {name}", len(source)) as (advance, _):
                write_statistics(folders.statistics(name), embed_source(encoder, source, on_progress=advance))
            _note_encoder(folders, name, encoder)
    jobs = [
        _AdapterJob(recipe, folders, samples[name].request, recipe.seed + 100 + index, str(device))
        for index, name in enumerate(samples)
        if name not in SOURCE and not folders.statistics(name).is_file()
    ]
    with training_progress("train adapters", len(jobs)) as (advance, _):
        if device.type != "cpu":
            for job in jobs:
                _train_one_adapter(job)
                advance(1)
        else:
            with worker_pool(os.cpu_count() or 1, threads=1) as pool:
                for future in as_completed([pool.submit(_train_one_adapter, job) for job in jobs]):
                    future.result()
                    advance(1)
    _write_library(recipe, folders, base, encoder, samples, domains)


@dataclass(frozen=True)
class _AdapterJob:
    """Everything that a process needs to train one adapter."""

    recipe: Recipe
    folders: TrainingFolders
    request: RenderRequest
    seed: int
    device: str


def _train_one_adapter(job: _AdapterJob) -> None:
    name, folders = job.request.domain.name, job.folders
    base = load_model(folders.segmenter)
    encoder = SceneEncoder.load(folders.encoder)
    train_adapter(
        base.model,
        RenderedSamples(job.request, folders.scenes),
        base.tokenizer.tokenize(CLASS_NAMES),
        replace(job.recipe.adapter, loop=replace(job.recipe.adapter.loop, seed=job.seed)),
        name=name,
        library=folders.library,
        encoder=encoder,
        run=Run(device=torch.device(job.device), state_file=folders.work / f"adapter-{name}.state"),
    )
    _note_encoder(folders, name, encoder)


def _write_library(
    recipe: Recipe,
    folders: TrainingFolders,
    base: LoadedModel,
    encoder: SceneEncoder,
    samples: Samples,
    domains: Mapping[str, Domain],
) -> None:
    entries = {}
    for name in samples:
        if name in SOURCE:
            continue
        statistics = _noted_statistics(folders, name, encoder)
        assert statistics is not None  # written when the adapter was finished
        folder = folders.library / name
        entries[name] = AdapterEntry(
            sha256={path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.suffix != ".md"},
            images=statistics.images,
            spread_mean=statistics.spread_mean,
            spread_p95=statistics.spread_p95,
            family=domains[name].family,
            licence="Apache-2.0",
        )
        card = adapter_card(
            domains[name], entries[name], base.model_id, recipe.adapter, len(recipe.adapter.targets_of(base.model))
        )
        (folder / "CARD.md").write_text(card, encoding="utf-8")
    counts = {name: len(source) for name, source in samples.items()}
    (folders.model / "README.md").write_text(model_card(base.model_id, encoder.id, counts), encoding="utf-8")
    home = next(iter(SOURCE))
    home_statistics = _noted_statistics(folders, home, encoder)
    assert home_statistics is not None  # written before the adapters were trained
    manifest = LibraryManifest(
        base_domain=BaseDomain(
            sha256=file_sha256(folders.library / BASE_STATISTICS_NAME),
            family=domains[home].family,
            images=home_statistics.images,
            spread_p95=home_statistics.spread_p95,
        ),
        base=ModelReference(id="semla-tiny", sha256=base.sha256),
        encoder=ModelReference(id=encoder.id, sha256=encoder.sha256),
        retrieval=recipe.retrieval,
        adapters=entries,
        domain=RENDERED,
        note="Adapters of the procedural world of semla_ros; they mean nothing for real cameras.",
    )
    write_manifest(folders.library, manifest)


def _note_encoder(folders: TrainingFolders, name: str, encoder: SceneEncoder) -> None:
    write_atomically(folders.encoder_note(name), json.dumps({"encoder": encoder.sha256}))


def _noted_statistics(folders: TrainingFolders, name: str, encoder: SceneEncoder) -> DomainStatistics | None:
    """Statistics of a finished domain, if they were made with this scene encoder and hold examples."""
    path = folders.encoder_note(name)
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["encoder"] != encoder.sha256:
        return None
    statistics = parse_statistics(folders.statistics(name).read_bytes(), name)
    return statistics if statistics.known is not None else None


def train_all(
    recipe: Recipe, folders: TrainingFolders, device: torch.device, domains: Mapping[str, Domain] = TRAINING_DOMAINS
) -> None:
    """From nothing to a model folder and a library. What is finished is kept, what was interrupted goes on."""
    folders.work.mkdir(parents=True, exist_ok=True)
    samples = render_training_images(recipe, folders.scenes, domains)
    if not folders.clip.is_file() or not folders.encoder.is_file():
        train_clip_stage(recipe, folders, samples, device)
    if not folders.segmenter.is_file():
        train_segmenter_stage(recipe, folders, samples, device)
    train_adapters_stage(recipe, folders, samples, domains, device)


def token_table(vocabulary: Vocabulary, texts: Sequence[str]) -> Tensor:
    """Token rows of sentences, padded with 0 to the longest, shape (N, L), int64."""
    rows = [vocabulary.encode_sentence(text) for text in texts]
    table = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    return table


def save_tower(tower: VisualTower, path: Path, id: str = "semla-tiny-scene") -> None:
    """Write an image tower as a scene encoder that open_clip builds and runs."""
    config = tower.config
    vision = {
        "image_size": list(config.working_resolution),
        "patch_size": config.patch,
        "width": config.visual_width,
        "layers": config.visual_layers,
        "head_width": HEAD_DIM,
        "pool_type": config.pool,
    }
    settings = {
        "id": id,
        "embed_dim": config.embed_dim,
        "open_clip_vision_cfg": vision,
        "image_mean": [value / 255 for value in CLIP_PIXEL_MEAN],
        "image_std": [value / 255 for value in CLIP_PIXEL_STD],
        "quick_gelu": True,
        "resize": "stretch",
    }
    save_scene_encoder(to_open_clip(tower.state_dict()), settings, path)
