"""From the labelled images of a benchmark file to a model of one's own and its library: resumable, stage by stage.

`<out>/model/` holds segmenter and scene encoder, where the base model is trained; `<out>/library/` the adapters;
`<out>/work/` the progress, and the plan that fixes the number of steps of every stage.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import active_children, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.scene_encoder_files import ENCODER_FILE, encoder_of
from semla_ros.adaptation.scene_tower import SceneTower
from semla_ros.atomic_files import write_atomically
from semla_ros.config import InferenceConfig, RetrievalConfig, SemlaConfig, from_mapping
from semla_ros.errors import ConfigError, DatasetError, SemlaError, TrainingError
from semla_ros.file_integrity import file_sha256
from semla_ros.lab.evaluation.aggregate import Evaluation
from semla_ros.lab.evaluation.datasets.benchmark import DiskBenchmark, DomainImages
from semla_ros.lab.evaluation.miou import MiouMeter
from semla_ros.lab.evaluation.protocol import make_plan
from semla_ros.lab.evaluation.protocol import run as run_plan
from semla_ros.lab.evaluation.subject import PipelineSpec, words_lacking
from semla_ros.lab.evaluation.variants import choose_variants
from semla_ros.lab.processes import end_with_parent
from semla_ros.lab.report.progress import training_progress
from semla_ros.lab.tasks import run_each
from semla_ros.lab.training.adapter_training import AdapterTrainingConfig, embed_source, train_adapter
from semla_ros.lab.training.cards import own_adapter_card, own_model_card
from semla_ros.lab.training.clip_training import refine_scene_tower
from semla_ros.lab.training.loop import Run
from semla_ros.lab.training.recipe import SceneEncoderTrainingConfig, read_recipe, save_tower
from semla_ros.lab.training.samples import ConcatenatedSamples, SampleSource
from semla_ros.lab.training.segmenter_training import SegmenterTrainingConfig, train_segmenter
from semla_ros.lab.training.weights_files import save_model
from semla_ros.library.adapter_files import AdapterReader
from semla_ros.library.centroids import write_statistics
from semla_ros.library.domain_statistics import parse_statistics
from semla_ros.library.importing import completed_entry, write_manifest
from semla_ros.library.manifest import BASE_STATISTICS_NAME, AdapterEntry, BaseDomain, LibraryManifest, ModelReference
from semla_ros.segmentation.checkpoint import SEGMENTER_FILE, LoadedModel, load_model, model_file
from semla_ros.segmentation.one_image import segment_probabilities
from semla_ros.segmentation.protocol import SegmentationModel

STAGES = ("segmenter", "scene_encoder", "adapters", "library")
CAMERA = "camera"  # images of a camera, as a model or a library states it
TIMED_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class LibraryRecipe:
    """How a library of one's own is trained; read from `config/own_camera.yaml`.

    Attributes:
        grid: Rows and columns of patches that the trained base model works at; (0, 0) = as it does.
        window: Edge of its attention windows, a divisor of both; 0 = as it is.
        shares: Stage -> its share of the minutes, together below 1: scoring and embedding take the rest.
        validation_images: How many images of a domain are scored at most while it is trained.
        validations: How often that is, over the second half of the steps; the best weights are the result.
    """

    segmenter: SegmenterTrainingConfig
    scene_encoder: SceneEncoderTrainingConfig
    adapter: AdapterTrainingConfig
    seed: int = 0
    grid: tuple[int, int] = (0, 0)
    window: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    validation_images: int = 40
    validations: int = 4
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)

    @classmethod
    def load(cls, path: Path) -> LibraryRecipe:
        """Read a recipe file.

        Raises:
            ConfigError: The file is unreadable, or a setting unknown or out of range.
        """
        recipe = from_mapping(cls, read_recipe(path), where=f"recipe {path}")
        stages = {
            name: replace(stage, loop=replace(stage.loop, seed=recipe.seed))
            for name in ("segmenter", "scene_encoder", "adapter")
            for stage in [getattr(recipe, name)]
        }
        return replace(recipe, **stages)

    def with_steps(self, steps: Mapping[str, int]) -> LibraryRecipe:
        """The same with other numbers of steps, by stage; warm-ups shrink where they would be most of it."""
        stages = {}
        for name, count in steps.items():
            stage = getattr(self, name)
            warmup = min(stage.loop.warmup_steps, count // 4)
            stages[name] = replace(stage, loop=replace(stage.loop, steps=count, warmup_steps=warmup))
        return replace(self, **stages)


@dataclass(frozen=True, kw_only=True, eq=False)
class LibraryRun:
    """What is trained, from what, and where.

    Attributes:
        recipe: Settings.
        benchmark: The domains; its class lists hold only names that the model has words for.
        model: Folder or file of the base model.
        out: See the module's docstring.
        device: Where to train.
        trains_base: Whether the base model and its scene encoder are trained too.
        jobs: Adapters that are trained at once; 0 = one per core on a CPU, else one.
        ray_address: Train them on this Ray cluster, which shares the folders; empty = on this machine without Ray.
    """

    recipe: LibraryRecipe
    benchmark: DiskBenchmark
    model: Path
    out: Path
    device: torch.device
    trains_base: bool = True
    jobs: int = 0
    ray_address: str = ""

    @property
    def work(self) -> Path:
        """Progress; may be removed once all is done."""
        return self.out / "work"

    @property
    def library(self) -> Path:
        """The adapter library."""
        return self.out / "library"

    @property
    def own_model(self) -> Path:
        """The base model that the adapters are for."""
        return self.out / "model" if self.trains_base else self.model

    @property
    def sources(self) -> tuple[str, ...]:
        """Domains that the base model is trained on, or was."""
        return self.benchmark.source_names

    @property
    def processes(self) -> int:
        """Adapters trained at once."""
        if self.device.type != "cpu":
            return 1
        return min(self.jobs or os.cpu_count() or 1, len(self.benchmark.domain_names))

    def samples(self, domain: str, split: str) -> DomainImages:
        """Images of a domain."""
        return replace(self.benchmark, split=split).open(domain)

    def _trained_on(self, domain: str) -> set[Path]:
        if domain in self.benchmark.unseen_names:
            return set()
        return {paths.image for paths in self.samples(domain, "train").paths}

    def home_samples(self) -> SampleSource:
        """Training images of all source domains."""
        return ConcatenatedSamples([self.samples(name, "train") for name in self.sources])

    def scored(self, domain: str, most: int = 0) -> list[int]:
        """Indices of validation images, evenly spaced; none where the domain has none that it is not trained on."""
        try:
            count = len(self.samples(domain, "val"))
        except DatasetError:
            return []
        if self._trained_on(domain) & {paths.image for paths in self.samples(domain, "val").paths}:
            return []
        wanted = min(count, most or count)
        return [int(index) for index in np.linspace(0, count - 1, wanted).round()]


def library_run(
    recipe: LibraryRecipe,
    benchmark: DiskBenchmark,
    model: Path,
    out: Path,
    *,
    device: torch.device,
    trains_base: bool | None = None,
    jobs: int = 0,
    ray_address: str = "",
) -> LibraryRun:
    """Check what a training is to be made of.

    Args:
        recipe: Settings.
        benchmark: The domains, split "train".
        model: Folder or file of the base model.
        out: Where everything goes.
        device: Where to train.
        trains_base: Whether the base model is trained, too; None = where it is of the shipped kind, with a
            convolutional stem and a scene encoder beside it.
        jobs: See `LibraryRun`.
        ray_address: Likewise.

    Raises:
        ConfigError: The base model is to be trained and the benchmark has no source domain, or several with different
            class lists; or no domain is to have an adapter; or the model has words for less than two classes of one.
        DatasetError: Images are missing.
    """
    base = load_model(model)
    every = [name for names in benchmark.classes.values() for name in names]
    lacking = words_lacking(lambda names: base.tokenizer.tokenize(names, base.template), every)
    known = benchmark.without(lacking)
    if lacking:
        print(f"{base.model_id} has no word for {', '.join(lacking)}: their pixels are neither trained on nor scored")
    if trains_base is None:
        is_shipped_kind = base.model.trains_whole and (base.path.parent / ENCODER_FILE).is_file()
        trains_base = is_shipped_kind and bool(known.source_names)
    for name in known.domains:
        if len(known.class_names(name)) < 2:
            raise ConfigError(
                f"domain '{name}': {base.model_id} has words for {len(known.class_names(name))} of its classes, and "
                "training needs 2; name them by words that it knows"
            )
    if not known.domain_names:
        raise ConfigError(f"benchmark '{known.name}': no domain has the role 'domain', which gets an adapter")
    if trains_base and not known.source_names:
        raise ConfigError(f"benchmark '{known.name}': no domain has the role 'source', which the base model needs")
    if trains_base and len({known.class_names(name) for name in known.source_names}) > 1:
        raise ConfigError(f"benchmark '{known.name}': its sources have different class lists; a base model takes one")
    known.check([*known.domain_names, *known.source_names])
    return LibraryRun(
        recipe=recipe,
        benchmark=replace(known, root=known.root.resolve()),  # another process may work in another folder
        model=model.resolve(),
        out=out.resolve(),
        device=device,
        trains_base=trains_base,
        jobs=jobs,
        ray_address=ray_address,
    )


def train_library(run: LibraryRun, minutes: float = 0.0, stage: str = "") -> None:
    """All stages, or one. What is finished is kept, what was interrupted goes on.

    Args:
        run: What, from what, and where.
        minutes: Time that all stages together may take; 0 = the recipe's numbers of steps.
        stage: One of `STAGES`; empty = all.

    Raises:
        ConfigError: `out` was begun with other settings, or a stage before this one is not done.
        DatasetError: Images cannot be read.
        TrainingError: A loss diverged.
    """
    plan = _plan(run, minutes)
    run = replace(run, recipe=run.recipe.with_steps(plan["steps"]))
    stages = {
        "segmenter": _train_segmenter,
        "scene_encoder": _train_scene_encoder,
        "adapters": _train_adapters,
        "library": _write_library,
    }
    with _threads(plan["threads"]):
        for name in [stage] if stage else STAGES:
            stages[name](run)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def _plan(run: LibraryRun, minutes: float) -> dict[str, Any]:
    """What `out` was begun with, the numbers of steps and of threads among it; they are found when it is begun."""
    path = run.work / "plan.json"
    made_from = _made_from(run)
    if path.is_file():
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in made_from.items() if plan["made_from"].get(name) != value]
        if minutes and minutes != plan["minutes"]:
            changed.append(f"number of minutes ({plan['minutes']:g})")
        if changed:
            raise ConfigError(f"{run.out} was begun with another {changed[0]}; give that again, or another --out")
        print(f"going on with {path}")
        return plan
    steps, threads = _recipe_steps(run.recipe), torch.get_num_threads()
    if minutes:
        print("timing a few steps of each stage")
        steps, threads = _steps_for(run, minutes)
    plan = {"minutes": minutes, "steps": steps, "threads": threads, "made_from": made_from}
    run.work.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(plan, indent=2) + "\n")
    told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in steps.items())
    print(f"steps: {told}; threads: {threads}")
    return plan


def _recipe_steps(recipe: LibraryRecipe) -> dict[str, int]:
    return {name: getattr(recipe, name).loop.steps for name in ("segmenter", "scene_encoder", "adapter")}


def _made_from(run: LibraryRun) -> dict[str, str]:
    """What fixes the result, by name, as digests."""
    files = hashlib.sha256()
    for domain in (*run.benchmark.domain_names, *run.sources):
        samples = [run.samples(domain, "train")] + ([run.samples(domain, "val")] if run.scored(domain) else [])
        for paths in (paths for part in samples for paths in part.paths):
            # Not by time: the same set may come back from a copy or another mount.
            labels = file_sha256(paths.labels)
            files.update(f"{domain} {paths.image.name} {paths.image.stat().st_size} {labels}\n".encode())
    return {
        "recipe": _digest(asdict(run.recipe)),
        "benchmark": _digest([run.benchmark.classes, run.benchmark.encodings, run.benchmark.domains]),
        "set of images": files.hexdigest(),
        "model": file_sha256(model_file(run.model)),
        "choice of training the base model": str(run.trains_base),
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _steps_for(run: LibraryRun, minutes: float) -> tuple[dict[str, int], int]:
    """How many steps of each stage take its share of the minutes on this machine, and on how many threads.

    Where the cores are busy with other work, one thread can be faster than all: they wait for each other.
    """
    recipe = run.recipe.with_steps(dict.fromkeys(_recipe_steps(run.recipe), TIMED_STEPS))
    seconds = {"segmenter": math.inf, "scene_encoder": math.inf}  # not trained: one step
    threads = torch.get_num_threads()
    if run.trains_base:
        segmenter = partial(_fit_segmenter, run, recipe)
        counts = {1, threads} if run.device.type == "cpu" else {threads}
        seconds["segmenter"], threads = min((_seconds_per_step(run, segmenter, count), count) for count in counts)
        seconds["scene_encoder"] = _seconds_per_step(run, partial(_fit_scene_encoder, run, recipe), threads)
    domain = run.benchmark.domain_names[0]
    rounds = math.ceil(len(run.benchmark.domain_names) / run.processes)
    base = load_model(run.model, run.device)
    base = _regridded(base, recipe) if run.trains_base else base
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = replace(run, out=Path(folder))
        fit = partial(_fit_adapter, elsewhere, recipe, domain, base, SceneEncoder.load(encoder_of(run.model)))
        seconds["adapter"] = _seconds_per_step(run, fit, _adapter_threads(run)) * rounds
    shares = run.recipe.shares
    if not run.trains_base:
        shares = {"adapter": sum(shares.values())}
    steps = {name: max(1, int(shares.get(name, 0.0) * minutes * 60 / value)) for name, value in seconds.items()}
    return steps, threads


def _seconds_per_step(run: LibraryRun, train: Callable[[Run], object], threads: int) -> float:
    times: list[float] = []
    with _threads(threads):
        train(Run(device=run.device, on_step=lambda *_: times.append(time.monotonic())))
    return float(np.median(np.diff(times)))


def score(model: SegmentationModel, text: torch.Tensor, source: SampleSource, indices: Sequence[int]) -> float:
    """Mean IoU over some images of a source, 0..1; NaN where there are none.

    Args:
        model: Put into evaluation mode for the time, and back.
        text: Class embeddings, shape (K, ...).
        source: Images with masks.
        indices: Which of them.
    """
    meter = MiouMeter(len(text))
    is_training = model.training
    model.eval()
    for index in indices:
        mask = source.mask(index)
        image = torch.from_numpy(np.array(source.image(index))).to(text.device).permute(2, 0, 1)
        maps = segment_probabilities(model, image, text, (mask.shape[0], mask.shape[1]))
        meter.add(mask, maps.argmax(0).to(torch.uint8).cpu().numpy())
    model.train(is_training)
    return meter.mean


def _score_of(
    run: LibraryRun, model: SegmentationModel, domain: str, tokens: torch.Tensor, indices: Sequence[int]
) -> float:
    with torch.no_grad():
        text = model.encode_text(tokens.to(run.device))
    return score(model, text, run.samples(domain, "val"), indices)


def _say_scores(run: LibraryRun, title: str, base: LoadedModel) -> None:
    """A line with the validation mIoU of a model in every domain."""
    values = {
        domain: _score_of(run, base.model, domain, _tokens(run, domain, base), indices)
        for domain in run.benchmark.domains
        if (indices := run.scored(domain))
    }
    told = ", ".join(f"{domain} {100 * value:.1f}" for domain, value in values.items())
    print(f"validation mIoU in percent, {title}: {told}")


def _tokens(run: LibraryRun, domain: str, base: LoadedModel) -> torch.Tensor:
    return base.tokenizer.tokenize(run.benchmark.class_names(domain), base.template)


def _train_segmenter(run: LibraryRun) -> None:
    """Go on with the base model on the source domains."""
    if not run.trains_base or (run.own_model / SEGMENTER_FILE).is_file():
        return
    start = load_model(run.model, run.device)
    _say_scores(run, f"{start.model_id} as it is", start)
    home = run.sources[0]
    indices = run.scored(home, run.recipe.validation_images)
    with training_progress("train segmenter", run.recipe.segmenter.loop.steps) as (_, on_step):
        how = Run(device=run.device, state_file=run.work / "segmenter.state", on_step=on_step)
        base = _fit_segmenter(run, run.recipe, how, indices)
    run.own_model.mkdir(parents=True, exist_ok=True)
    save_model(
        base.model.eval(),
        run.own_model / SEGMENTER_FILE,
        class_names=run.benchmark.class_names(home),
        vocabulary=base.tokenizer,
        template=base.template,
        model_id=run.out.name,
        extra={
            "domain": CAMERA,
            "trained_on": f"{', '.join(run.sources)} of {run.benchmark.name}",
            "licence": run.benchmark.licence,
            "steps": run.recipe.segmenter.loop.steps,
        },
    )
    _say_scores(run, "base model", base)


def _fit_segmenter(run: LibraryRun, recipe: LibraryRecipe, how: Run, scored: Sequence[int] = ()) -> LoadedModel:
    base = _regridded(load_model(run.model, run.device), recipe)
    home = run.sources[0]
    tokens = _tokens(run, home, base)
    if scored:
        validate = lambda _: _score_of(run, base.model, home, tokens, scored)  # noqa: E731
        how = replace(how, validate=validate, validations=recipe.validations)
    train_segmenter(base.model.train(), run.home_samples(), tokens, recipe.segmenter, how)
    return base


def _regridded(base: LoadedModel, recipe: LibraryRecipe) -> LoadedModel:
    """The same model for images of another size; training goes on with its position table as interpolated."""
    return replace(base, model=base.model.regridded(recipe.grid, recipe.window)) if any(recipe.grid) else base


def _train_scene_encoder(run: LibraryRun) -> None:
    """Go on with the scene encoder until it tells the domains apart, and measure the base model's own one."""
    target = run.own_model / ENCODER_FILE
    if run.trains_base and not target.is_file():
        with training_progress("train scene encoder", run.recipe.scene_encoder.loop.steps) as (_, on_step):
            how = Run(device=run.device, state_file=run.work / "scene_encoder.state", on_step=on_step)
            tower = _fit_scene_encoder(run, run.recipe, how)
        run.own_model.mkdir(parents=True, exist_ok=True)
        save_tower(tower, target, id=f"{run.out.name}-scene")
    statistics = run.library / BASE_STATISTICS_NAME
    if run.sources and not statistics.is_file():
        run.library.mkdir(parents=True, exist_ok=True)
        write_statistics(statistics, embed_source(_encoder(run), run.home_samples()))


def _fit_scene_encoder(run: LibraryRun, recipe: LibraryRecipe, how: Run) -> SceneTower:
    """Each domain's images are drawn to where they differ from all the others in the mean."""
    encoder = SceneEncoder.load(encoder_of(run.model), device=run.device)
    tower = encoder.tower
    if not isinstance(tower, SceneTower):
        raise ConfigError(f"scene encoder '{encoder.id}' is of a kind that is not trained here; leave out --base")
    sources = [run.samples(name, "train") for name in run.benchmark.domain_names] + [run.home_samples()]
    means = torch.from_numpy(np.stack([embed_source(encoder, source).centroid for source in sources]))
    directions = F.normalize(means - means.mean(0), dim=-1)
    targets = directions.repeat_interleave(torch.tensor([len(source) for source in sources]), dim=0)
    refine_scene_tower(tower.requires_grad_(True).train(), sources, targets, recipe.scene_encoder.loop, how)
    return tower.eval()


def _encoder(run: LibraryRun) -> SceneEncoder:
    return SceneEncoder.load(encoder_of(run.own_model))


def _train_adapters(run: LibraryRun) -> None:
    """Train one adapter a domain; finished ones are kept.

    On a CPU as many are trained at once as there are cores, one thread each: threads that share one small step wait
    for each other more than they help.
    """
    _want(run.own_model, run.trains_base)
    names = run.benchmark.domain_names
    todo = [name for name in names if not (run.library / name).is_dir()]
    with training_progress("train adapters", len(names)) as (advance, _):
        advance(len(names) - len(todo))
        for line in _adapters_of(run, todo):
            print(line)
            advance(1)


def _adapters_of(run: LibraryRun, names: Sequence[str]) -> Iterator[str]:
    """Train adapters, and tell of each as it is done; an interrupt is passed on to those in progress."""
    if run.processes == 1 and not run.ray_address:
        yield from (_train_one_adapter(run, name) for name in names)
        return
    work = partial(_train_one_adapter, run)
    with closing(run_each(work, names, jobs=run.processes, ray_address=run.ray_address)) as runs:
        try:
            for done in runs:
                if isinstance(done.error, (SemlaError, KeyboardInterrupt)):
                    raise done.error
                if done.result is None:
                    raise TrainingError(f"adapter '{done.task}': its process ended: {done.error}") from done.error
                yield done.result
        except BaseException:
            for child in active_children():  # they keep what they have
                child.terminate()
            raise


def _adapter_threads(run: LibraryRun) -> int:
    """One where several adapters are to be trained, at once or not, so that the result is the same."""
    is_alone = run.device.type != "cpu" or len(run.benchmark.domain_names) == 1
    return torch.get_num_threads() if is_alone else 1


def _train_one_adapter(run: LibraryRun, domain: str) -> str:
    """Train one adapter, maybe in a process of its own; returns a line about it."""
    if parent_process() is not None:
        end_with_parent()
    base = load_model(run.own_model, run.device)
    indices = run.scored(domain, run.recipe.validation_images)
    how = Run(device=run.device, state_file=run.work / f"adapter-{domain}.state")
    with _threads(_adapter_threads(run)):
        value = _fit_adapter(run, run.recipe, domain, base, _encoder(run), how, indices)
    return f"adapter '{domain}' is trained" + (f", validation mIoU {100 * value:.1f} %" if indices else "")


def _fit_adapter(
    run: LibraryRun,
    recipe: LibraryRecipe,
    domain: str,
    base: LoadedModel,
    encoder: SceneEncoder,
    how: Run,
    scored: Sequence[int] = (),
) -> float:
    """Train an adapter into the run's library; returns its score on the validation images, NaN without any."""
    tokens = _tokens(run, domain, base)
    loop = replace(recipe.adapter.loop, seed=recipe.seed + zlib.crc32(domain.encode()) % 1000)
    scores: list[float] = []

    def validate(modules: Mapping[str, Any]) -> float:
        scores.append(_score_of(run, modules["adapter"].get_base_model(), domain, tokens, scored))
        return scores[-1]

    train_adapter(
        base.model,
        run.samples(domain, "train"),
        tokens,
        replace(recipe.adapter, loop=loop),
        name=domain,
        library=run.library,
        encoder=encoder,
        run=replace(how, validate=validate if scored else None, validations=recipe.validations),
    )
    return max(scores, default=math.nan)


def _want(path: Path, is_made_here: bool) -> None:
    if is_made_here and not all((path / name).is_file() for name in (SEGMENTER_FILE, ENCODER_FILE)):
        raise ConfigError(f"{path} is not finished: run the stages 'segmenter' and 'scene_encoder' first")


def _write_library(run: LibraryRun) -> None:
    """`library.yaml` with digests, and the cards."""
    _want(run.own_model, run.trains_base)
    benchmark, recipe = run.benchmark, run.recipe
    if missing := [name for name in benchmark.domain_names if not (run.library / name).is_dir()]:
        raise ConfigError(f"adapter '{missing[0]}' is not trained: run the stage 'adapters' first")
    base = load_model(run.own_model)
    encoder = _encoder(run)
    reader = AdapterReader()
    entries = {
        name: completed_entry(
            AdapterEntry(family=benchmark.family(name), licence=benchmark.licence), reader.read(run.library, name)
        )
        for name in benchmark.domain_names
    }
    for name, entry in entries.items():
        card = own_adapter_card(
            name, entry, base.model_id, benchmark.name, recipe.adapter, len(recipe.adapter.targets_of(base.model))
        )
        (run.library / name / "CARD.md").write_text(card, encoding="utf-8")
    write_manifest(
        run.library,
        LibraryManifest(
            base_domain=_base_domain(run),
            base=ModelReference(id=base.model_id, sha256=base.sha256),
            encoder=ModelReference(id=encoder.id, sha256=encoder.sha256),
            retrieval=recipe.retrieval,
            adapters=entries,
            domain=CAMERA,
            note=f"trained on {benchmark.title or benchmark.name}",
        ),
    )
    if run.trains_base:
        counts = {name: len(run.samples(name, "train")) for name in run.sources}
        card = own_model_card(base, load_model(run.model).model_id, encoder.id, counts, benchmark.name)
        (run.own_model / "README.md").write_text(card, encoding="utf-8")
    _say_result(run)


def _say_result(run: LibraryRun) -> None:
    """What the library is worth on the validation images, a line a domain."""
    names = [name for name in run.benchmark.domains if run.scored(name)]
    config = SemlaConfig(
        model=str(run.own_model), library=str(run.library), inference=InferenceConfig(device=str(run.device))
    )
    variants = choose_variants(["zero_shot", "semla", "oracle"])
    benchmark = replace(run.benchmark, split="val")
    plan = make_plan(benchmark, run.benchmark.domain_names, variants, domains=names, seeds=[0], images=0)
    evaluation = Evaluation.collect(plan, run_plan(plan, PipelineSpec(config=config)))
    for name in names:
        values = ", ".join(
            f"{variant.replace('_', '-')} {100 * evaluation.mean_miou(name, variant):.1f}"
            for variant in evaluation.variants(name)
        )
        print(f"validation mIoU in percent, {name}: {values}")


def _base_domain(run: LibraryRun) -> BaseDomain | None:
    path = run.library / BASE_STATISTICS_NAME
    if not path.is_file():
        return None
    statistics = parse_statistics(path.read_bytes(), run.sources[0])
    return BaseDomain(
        sha256=file_sha256(path),
        family=run.benchmark.family(run.sources[0]),
        images=statistics.images,
        spread_p95=statistics.spread_p95,
    )
