"""The leave-one-out protocol: which images, through which fused models, counted into which confusion matrix.

An image asks for as many models as there are variants, but most of them coincide: the base model and the uniform mix
are the same for every image of a domain, and late fusion needs the single adapters that the oracle needs too. A job
holds some images of one domain and runs each distinct model once over those that need it.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import ConfigError, DatasetError
from semla_ros.lab.evaluation.datasets.benchmark import DiskBenchmark, DomainImages
from semla_ros.lab.evaluation.datasets.sizes import stretch_to
from semla_ros.lab.evaluation.miou import Counts, confusion_matrix, mean_iou
from semla_ros.lab.evaluation.sources import EvaluationImage, RenderedDomain, WorldBenchmark
from semla_ros.lab.evaluation.variants import Share, Variant, retrieval_settings, shares
from semla_ros.lab.tasks import run_each
from semla_ros.results import AdapterMix

if TYPE_CHECKING:
    from semla_ros.lab.evaluation.kept import KeptResults
    from semla_ros.lab.evaluation.subject import PipelineSpec, PipelineSubject  # load torch, for workers to wait for

logger = logging.getLogger(__name__)

Benchmark = WorldBenchmark | DiskBenchmark
MixKey = tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to evaluate.

    Attributes:
        benchmark: Where the images come from.
        variants: The ways of adapting.
        domains: Domains with leave-one-out.
        unseen: Domains that nothing was trained on; variants that need an own adapter are left out there.
        sources: Domains that the base model was trained on; likewise.
        seeds: Evaluation seeds.
        images: Images per domain and seed; 0 = all that there are.
    """

    benchmark: Benchmark
    variants: tuple[Variant, ...]
    domains: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    images: int = 100

    @property
    def all_domains(self) -> tuple[str, ...]:
        """Domains with leave-one-out, then unseen ones, then sources."""
        return (*self.domains, *self.unseen, *self.sources)

    def variants_for(self, domain: str) -> tuple[Variant, ...]:
        """Variants that make sense for a domain."""
        if domain in self.domains:
            return self.variants
        return tuple(variant for variant in self.variants if not variant.without_own and variant.kind != "oracle")

    def jobs(self) -> Iterator[Job]:
        """All jobs, interleaved over the domains so that a progress bar tells the truth early."""
        size = self.benchmark.chunk_size
        blocks: list[list[Job]] = []
        for name in self.all_domains:
            source = self.benchmark.open(name)
            jobs = []
            for seed in self.seeds:
                indices = source.indices(seed, self.images)
                starts = range(0, len(indices), size)
                jobs += [Job(domain=name, seed=seed, indices=tuple(indices[at : at + size])) for at in starts]
            blocks.append(jobs)
        for turn in range(max(map(len, blocks), default=0)):
            yield from (jobs[turn] for jobs in blocks if turn < len(jobs))


def make_plan(
    benchmark: Benchmark,
    adapter_names: Sequence[str],
    variants: tuple[Variant, ...],
    *,
    domains: Sequence[str] | None,
    seeds: Sequence[int],
    images: int,
) -> Plan:
    """Sort the domains into those with an own adapter, unseen ones, and those the base model was trained on.

    Raises:
        ConfigError: No domain that was asked for is left, or the library has no adapter of the benchmark.
    """
    known = (*benchmark.domain_names, *benchmark.unseen_names, *benchmark.source_names)
    wanted = list(dict.fromkeys(domains)) if domains else list(known)
    benchmark.check(wanted)
    sources = tuple(name for name in wanted if name in benchmark.source_names)
    not_own = (*benchmark.unseen_names, *sources)
    own = tuple(name for name in wanted if name in adapter_names and name not in not_own)
    unseen = tuple(name for name in wanted if name not in own and name not in sources)
    without = [name for name in unseen if name in benchmark.domain_names]
    if not domains and not own:
        raise ConfigError(
            f"the library has no adapter of the benchmark '{benchmark.name}': it has {', '.join(adapter_names[:8])}; "
            f"expected some of {', '.join(benchmark.domain_names[:8])}; those named with --domains are scored without"
        )
    if without:
        logger.warning("no own adapter for %s: reported as unseen, without leave-one-out", ", ".join(without))
    return Plan(
        benchmark=benchmark,
        variants=variants,
        domains=own,
        unseen=unseen,
        sources=sources,
        seeds=tuple(seeds),
        images=images,
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """Some images of one domain and seed."""

    domain: str
    seed: int
    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTrace:
    """What was fused for one image.

    Attributes:
        image: Name of the image.
        seed: Evaluation seed.
        weights: Variant -> adapter -> weight, heaviest first, then what is left to the base model under its own name;
            only weights above 0, and only for variants that retrieve.
    """

    image: str
    seed: int
    weights: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class JobResult:
    """Counts and traces of one job.

    Attributes:
        job: What was done.
        class_names: Vocabulary of the domain.
        counts: Variant -> confusion matrix, shape (K, K + 1).
        traces: One per image.
        embeddings: Scene embeddings, shape (N, D), float32.
        forward_passes: Number of images that went through a model.
        fusions: Number of times that a model was fused.
        left_out: What is wrong with each image that cannot be used; no variant is scored on it.
    """

    job: Job
    class_names: tuple[str, ...]
    counts: Mapping[str, Counts]
    traces: Sequence[ImageTrace]
    embeddings: NDArray[np.float32]
    forward_passes: int
    fusions: int
    left_out: tuple[str, ...] = ()


@dataclass(eq=False)
class _Need:
    """A model that some images ask for, and for whom."""

    mix: AdapterMix
    images: dict[int, list[tuple[str, float]]] = field(default_factory=lambda: defaultdict(list))


def mix_key(mix: AdapterMix) -> MixKey:
    """Equal for mixes that give the same model within rounding."""
    return tuple(sorted((name, round(weight, 6)) for name, weight in mix.as_dict().items() if weight > 1e-6))


def run_job(subject: PipelineSubject, benchmark: Benchmark, job: Job, variants: Sequence[Variant]) -> JobResult:
    """Evaluate the images of one job with every variant."""
    source = benchmark.open(job.domain)
    subject.set_classes(source.class_names)
    left_out: list[str] = []
    images = list(_usable(source, job.seed, job.indices, left_out))
    embeddings = np.zeros((len(images), subject.centroids.shape[1]), np.float32)
    for row, image in zip(embeddings, images, strict=True):
        row[:] = subject.embed(image.scene)
    own = job.domain if job.domain in subject.adapter_names else None
    wanted = _wanted_shares(subject, variants, own, embeddings)
    counts = {variant.name: _no_counts(len(source.class_names)) for variant in variants}
    forward_passes, fusions = _answer(subject, images, wanted, counts)
    return JobResult(
        job=job,
        class_names=source.class_names,
        counts=counts,
        traces=[_trace(image, job.seed, position, wanted, variants) for position, image in enumerate(images)],
        embeddings=embeddings,
        forward_passes=forward_passes,
        fusions=fusions,
        left_out=tuple(left_out),
    )


def _usable(
    source: DomainImages | RenderedDomain, seed: int, indices: Iterable[int], left_out: list[str]
) -> Iterator[EvaluationImage]:
    """The images that can be read and have labels that fit; `left_out` is told what is wrong with the others."""
    for index in indices:
        try:
            yield source.read(seed, index)
        except DatasetError as error:
            left_out.append(str(error))


def _wanted_shares(
    subject: PipelineSubject, variants: Sequence[Variant], own: str | None, embeddings: NDArray[np.float32]
) -> dict[tuple[str, int], tuple[Share, ...]]:
    """(variant, image) -> models that it asks for."""
    wanted = {}
    for variant in variants:
        retriever = None
        if variant.kind in ("retrieved", "late_fusion"):
            settings = retrieval_settings(variant, subject.recommended)
            retriever = subject.retriever(settings, as_published=variant.as_published)
        for position, embedding in enumerate(embeddings):
            wanted[variant.name, position] = shares(
                variant, own=own, adapter_names=subject.adapter_names, retriever=retriever, embedding=embedding
            )
    return wanted


def _answer(
    subject: PipelineSubject,
    images: Sequence[EvaluationImage],
    wanted: Mapping[tuple[str, int], Sequence[Share]],
    counts: Mapping[str, Counts],
) -> tuple[int, int]:
    """Run each distinct model once over the images that need it and add up; returns forward passes and fusions."""
    needs: dict[MixKey, _Need] = {}
    open_shares: Counter[tuple[str, int]] = Counter()
    for (variant, position), parts in wanted.items():
        open_shares[variant, position] = len(parts)
        for part in parts:
            need = needs.setdefault(mix_key(part.mix), _Need(part.mix))
            need.images[position].append((variant, part.weight))
    sums: dict[tuple[str, int], NDArray[np.float32]] = {}
    forward_passes = 0
    for need in needs.values():
        subject.use(need.mix)
        for position, askers in need.images.items():
            image = images[position]
            probabilities = subject.probabilities(image.image, image.answer_size)
            forward_passes += 1
            alone: Counts | None = None
            for variant, weight in askers:
                key = (variant, position)
                if open_shares[key] == 1 and key not in sums:
                    if alone is None:
                        alone = _score(probabilities, image, len(counts[variant]))
                    counts[variant][:] += alone
                    continue
                sums[key] = sums[key] + weight * probabilities if key in sums else weight * probabilities
                open_shares[key] -= 1
                if open_shares[key] == 0:
                    counts[variant][:] += _score(sums.pop(key), image, len(counts[variant]))
    return forward_passes, len(needs)


def domain_miou(subject: PipelineSubject, source: DomainImages, mix: AdapterMix, left_out: list[str]) -> float:
    """Mean IoU of one mix over a domain, 0..1, as a run counts it for a variant that fuses it; NaN without an image.

    Args:
        subject: The model.
        source: The images.
        mix: What is fused.
        left_out: Is told what is wrong with each image that cannot be used.
    """
    subject.set_classes(source.class_names)
    subject.use(mix)
    counts = _no_counts(len(source.class_names))
    for image in _usable(source, 0, range(len(source)), left_out):
        counts += _score(subject.probabilities(image.image, image.answer_size), image, len(counts))
    return mean_iou(counts)


def _score(probabilities: NDArray[np.float32], image: EvaluationImage, class_count: int) -> Counts:
    mask = stretch_to(probabilities.argmax(axis=0).astype(np.uint8), *image.labels.shape)
    return confusion_matrix(image.labels, mask, class_count)


def _no_counts(class_count: int) -> Counts:
    return np.zeros((class_count, class_count + 1), np.int64)


def _trace(
    image: EvaluationImage,
    seed: int,
    position: int,
    wanted: Mapping[tuple[str, int], Sequence[Share]],
    variants: Sequence[Variant],
) -> ImageTrace:
    mixes = {variant.name: wanted[variant.name, position][0].mix for variant in variants if variant.kind == "retrieved"}
    weights = {
        name: {adapter: weight for adapter, weight in mix.shares().items() if weight > 0} for name, mix in mixes.items()
    }
    return ImageTrace(image=image.name, seed=seed, weights=weights)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Does jobs in whatever process it comes to; each process loads the model once."""

    plan: Plan
    spec: PipelineSpec
    id: str

    def __call__(self, job: Job) -> JobResult:
        from semla_ros.lab.evaluation.subject import loaded_once

        subject = loaded_once(self.spec, self.id)
        return run_job(subject, self.plan.benchmark, job, self.plan.variants_for(job.domain))


def run(
    plan: Plan,
    spec: PipelineSpec,
    *,
    jobs: int = 1,
    ray_address: str = "",
    subject: PipelineSubject | None = None,
    kept: KeptResults | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[JobResult]:
    """Run a plan.

    Args:
        plan: What to evaluate.
        spec: How to load the model under test.
        jobs: Processes, each with a model and one thread, or tasks at a time on Ray; 1 without Ray: this process.
        ray_address: Run on this Ray cluster; empty = on this machine without Ray.
        subject: Already loaded, for a run in this process.
        kept: What an interrupted run has left, which is not done again; it is told what is done whole.
        on_progress: Called with the number of images just finished.

    Returns:
        One result per job, in the order of the plan whatever the number of jobs.
    """
    report = on_progress or (lambda _: None)
    todo, results = [], {}
    for job in plan.jobs():
        found = kept.read(job) if kept else None
        results[job] = found
        if found is None:
            todo.append(job)
        else:
            report(len(job.indices))
    for job, result in _run_jobs(todo, plan, spec, jobs, ray_address, subject):
        results[job] = result
        if kept and not result.left_out:
            kept.write(result)
        report(len(job.indices))
    return [result for result in results.values() if result is not None]


def _run_jobs(
    todo: Sequence[Job], plan: Plan, spec: PipelineSpec, jobs: int, ray_address: str, subject: PipelineSubject | None
) -> Iterator[tuple[Job, JobResult]]:
    if jobs == 1 and not ray_address:
        subject = subject or (spec.load(1) if todo else None)
        for job in todo:
            assert subject is not None
            yield job, run_job(subject, plan.benchmark, job, plan.variants_for(job.domain))
        return
    work = _Work(plan=plan, spec=spec, id=uuid.uuid4().hex)
    with closing(run_each(work, todo, jobs=jobs, ray_address=ray_address)) as runs:
        for done in runs:
            if done.error is not None:
                raise done.error
            assert done.result is not None
            yield done.task, done.result
