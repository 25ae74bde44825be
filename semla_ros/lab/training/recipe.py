"""The whole recipe of the shipped tiny models, from nothing to a library: resumable, stage by stage."""

from __future__ import annotations

import json
import logging
import os
import shutil
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
from semla_ros.atomic_files import write_atomically
from semla_ros.config import RetrievalConfig, from_mapping
from semla_ros.errors import ConfigError, known_names
from semla_ros.file_integrity import file_sha256
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
from semla_ros.resources import find_model
from semla_ros.segmentation.checkpoint import SEGMENTER_FILE, LoadedModel, Unfilled, load_model
from semla_ros.segmentation.clip import HEAD_DIM, ClipConfig, VisualTower, to_open_clip
from semla_ros.segmentation.protocol import CLIP_PIXEL_MEAN, CLIP_PIXEL_STD, SegmentationModel
from semla_ros.segmentation.registry import model_class
from semla_ros.segmentation.text_prompts import Vocabulary, templates

log = logging.getLogger(__name__)

Samples = Mapping[str, RenderedSamples]  # by domain name


@dataclass(frozen=True, kw_only=True)
class SceneEncoderTrainingConfig:
    """How the scene encoder goes on after the joint training."""

    loop: LoopConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that fixes a training run; read from `config/training.yaml` or `config/training_sed.yaml`.

    Attributes:
        name: Of the model and of its library.
        kind: Of the segmenter, see `registry`.
        model: Its settings, see `SegmentationModel.untrained`; its vocabulary is that of the captions.
        scene_tower: Dimensions of the scene encoder; its text settings are not used.
        scene_encoder_of: Model whose scene encoder is taken instead, as it is.
        domains: Those that get an adapter; none named: all of the world's benchmark.
    """

    model: Mapping[str, Any]
    clip: ClipTrainingConfig
    segmenter: SegmenterTrainingConfig
    adapter: AdapterTrainingConfig
    name: str = "semla-tiny"
    kind: str = "catseg"
    scene_tower: ClipConfig | None = None
    scene_encoder: SceneEncoderTrainingConfig | None = None
    scene_encoder_of: str = ""
    domains: tuple[str, ...] = ()
    seed: int = 0
    image_size: tuple[int, int] = (192, 256)
    clear_images: int = 2400
    domain_images: int = 480
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)

    def __post_init__(self) -> None:
        trains_encoder = self.scene_tower is not None and self.scene_encoder is not None
        if trains_encoder == bool(self.scene_encoder_of):
            raise ConfigError("a recipe has either 'scene_tower' and 'scene_encoder', or 'scene_encoder_of'")
        if unknown := sorted(set(self.domains) - set(BENCHMARK)):
            raise ConfigError(f"unknown domain '{unknown[0]}'; {known_names(unknown[0], sorted(BENCHMARK))}")
        with Unfilled():
            self.untrained_model(vocab_rows=1)

    @property
    def training_domains(self) -> Mapping[str, Domain]:
        """The base model's own domain, and those that get an adapter, by name."""
        return {**SOURCE, **{name: BENCHMARK[name] for name in self.domains or BENCHMARK}}

    def untrained_model(self, vocab_rows: int) -> SegmentationModel:
        """The segmenter to begin with; raises ConfigError where its settings are of no model."""
        return model_class(self.kind).untrained(self.model, vocab_rows)

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
            if stage is not None:
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


def render_training_images(recipe: Recipe, cache: Path) -> dict[str, RenderedSamples]:
    """Training images of every domain, by name; rendered by all cores where they are not cached."""
    height, width = recipe.image_size
    samples = {}
    for name, domain in recipe.training_domains.items():
        count = recipe.clear_images if name in SOURCE else recipe.domain_images
        request = RenderRequest(domain=domain, split="train", count=count, width=width, height=height)
        with training_progress(f"render {name}", count) as (advance, _):
            samples[name] = RenderedSamples(request, cache, on_progress=advance)
    return samples


@dataclass(frozen=True, kw_only=True)
class TrainingFolders:
    """Where a training run reads and writes.

    Attributes:
        work: Progress; may be removed once all is done.
        scenes: Cache of rendered images, which recipes may share; likewise.
        model: The model's folder: segmenter, scene encoder, card.
        library: The adapter library.
    """

    work: Path
    scenes: Path
    model: Path
    library: Path

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
    """Train the tiny CLIP; writes it for the segmenter to start from, and the scene encoder where one is trained."""
    captions = [text for source in samples.values() for text in source.captions]
    template = model_class(recipe.kind).template
    words = [*(word for words in SYNONYMS.values() for word in words), *CLASS_NAMES]
    prompts = [prompt.format(word) for word in words for prompt in templates(template)]
    rows = Vocabulary.from_texts([*captions, *prompts]).bpe_ids
    assert rows is not None
    torch.manual_seed(recipe.seed)
    model = recipe.untrained_model(len(rows)).to(device)
    vocabulary = Vocabulary(rows, model.context_length, cuts_long_prompts=model.cuts_long_prompts)
    tower = None if recipe.scene_tower is None else VisualTower(recipe.scene_tower).to(device)
    tokens = token_table(vocabulary, captions)
    with _run("clip", recipe.clip.loop, folders, device) as run:
        train_clip(
            model,
            tower,
            list(samples.values()),
            samples["clear"],
            tokens,
            vocabulary.tokenize(CLASS_NAMES, template),
            recipe.clip,
            run,
        )
    if tower is not None and recipe.scene_encoder is not None:
        with _run("scene_encoder", recipe.scene_encoder.loop, folders, device) as run:
            targets = caption_targets(model.clip, tokens, device)
            refine_scene_tower(tower, list(samples.values()), targets, recipe.scene_encoder.loop, run)
    save_model(
        model,
        folders.clip,
        class_names=CLASS_NAMES,
        vocabulary=vocabulary,
        template=template,
        model_id=f"{recipe.name}-clip",
    )
    if tower is not None:
        folders.model.mkdir(parents=True, exist_ok=True)
        save_tower(tower, folders.encoder)


def train_segmenter_stage(recipe: Recipe, folders: TrainingFolders, samples: Samples, device: torch.device) -> None:
    """Train the segmenter on clear day, from the finished CLIP."""
    start = load_model(folders.clip, device)
    model = start.model.train()
    with _run("segmenter", recipe.segmenter.loop, folders, device) as run:
        tokens = start.tokenizer.tokenize(CLASS_NAMES, start.template)
        train_segmenter(model, samples["clear"], tokens, recipe.segmenter, run)
    save_model(
        model.eval(),
        folders.segmenter,
        class_names=CLASS_NAMES,
        vocabulary=start.tokenizer,
        template=start.template,
        model_id=recipe.name,
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
    device: torch.device,
) -> None:
    """Train one adapter per domain but the base model's own, and write the library; finished ones are kept.

    On a CPU as many are trained at once as there are cores to run on, one thread each: threads that share one small
    step wait for each other more than they help.
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
            with worker_pool(len(os.sched_getaffinity(0)), threads=1) as pool:
                for future in as_completed([pool.submit(_train_one_adapter, job) for job in jobs]):
                    future.result()
                    advance(1)
    _write_library(recipe, folders, base, encoder, samples)


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
        base.tokenizer.tokenize(CLASS_NAMES, base.template),
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
            family=BENCHMARK[name].family,
            licence="Apache-2.0",
        )
        card = adapter_card(
            BENCHMARK[name], entries[name], base.model_id, recipe.adapter, len(recipe.adapter.targets_of(base.model))
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
            family=SOURCE[home].family,
            images=home_statistics.images,
            spread_p95=home_statistics.spread_p95,
        ),
        base=ModelReference(id=recipe.name, sha256=base.sha256),
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


def train_all(recipe: Recipe, folders: TrainingFolders, device: torch.device) -> None:
    """From nothing to a model folder and a library. What is finished is kept, what was interrupted goes on."""
    folders.work.mkdir(parents=True, exist_ok=True)
    samples = render_training_images(recipe, folders.scenes)
    if recipe.scene_encoder_of:
        folders.model.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(find_model(recipe.scene_encoder_of) / ENCODER_FILE, folders.encoder)
    if not folders.clip.is_file() or not folders.encoder.is_file():
        train_clip_stage(recipe, folders, samples, device)
    if not folders.segmenter.is_file():
        train_segmenter_stage(recipe, folders, samples, device)
    train_adapters_stage(recipe, folders, samples, device)


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
