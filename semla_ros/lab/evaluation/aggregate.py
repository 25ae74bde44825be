"""Turn the counts and traces of a run into the figures that are reported: mIoU, spreads, means, retrieval shares."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import DatasetError
from semla_ros.lab.evaluation.miou import Counts, iou_per_class, mean_iou
from semla_ros.lab.evaluation.protocol import ImageTrace, JobResult, Plan

WEIGHT_DIGITS = 4
SCORE_DIGITS = 5


def harmonic_mean(values: Iterable[float]) -> float:
    """Harmonic mean of values >= 0; 0 where one of them is 0, NaN where there is none."""
    items = list(values)
    if not items:
        return float("nan")
    if min(items) <= 0:
        return 0.0
    return len(items) / sum(1.0 / item for item in items)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything that a run found out.

    Attributes:
        plan: What was evaluated.
        class_names: Domain -> vocabulary.
        counts: (domain, variant, seed) -> confusion matrix.
        traces: Domain -> one trace per image.
        embeddings: Domain -> scene embeddings, shape (N, D).
        forward_passes: Images through a model, over all variants.
        fusions: Models fused.
        left_out: Domain -> what is wrong with each image that could not be used; domains with such images alone.
    """

    plan: Plan
    class_names: Mapping[str, tuple[str, ...]]
    counts: Mapping[tuple[str, str, int], Counts]
    traces: Mapping[str, Sequence[ImageTrace]]
    embeddings: Mapping[str, NDArray[np.float32]]
    forward_passes: int
    fusions: int
    left_out: Mapping[str, Sequence[str]]

    @classmethod
    def collect(cls, plan: Plan, results: Sequence[JobResult]) -> Evaluation:
        """Add up the results of all jobs.

        Raises:
            DatasetError: None of the images could be used.
        """
        counts: dict[tuple[str, str, int], Counts] = {}
        traces: dict[str, list[ImageTrace]] = defaultdict(list)
        embeddings: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
        left_out: dict[str, dict[str, None]] = defaultdict(dict)  # an image that several seeds drew, once
        for result in results:
            for variant, added in result.counts.items():
                key = (result.job.domain, variant, result.job.seed)
                counts[key] = counts[key] + added if key in counts else added
            traces[result.job.domain].extend(result.traces)
            embeddings[result.job.domain].append(result.embeddings)
            if result.left_out:
                left_out[result.job.domain].update(dict.fromkeys(result.left_out))
        if left_out and not any(traces.values()):
            wrong = [line for lines in left_out.values() for line in lines]
            raise DatasetError(f"no image of {len(wrong)} can be used; the first: {wrong[0]}")
        return cls(
            plan=plan,
            class_names={result.job.domain: result.class_names for result in results},
            counts=counts,
            traces=traces,
            embeddings={name: np.concatenate(parts) for name, parts in embeddings.items()},
            forward_passes=sum(result.forward_passes for result in results),
            fusions=sum(result.fusions for result in results),
            left_out={name: list(lines) for name, lines in left_out.items()},
        )

    def variants(self, domain: str) -> tuple[str, ...]:
        """Names of the variants that a domain was evaluated with."""
        return tuple(variant.name for variant in self.plan.variants_for(domain))

    def miou(self, domain: str, variant: str, seed: int) -> float:
        """Mean IoU of one domain, variant and seed, 0..1."""
        return mean_iou(self.counts[domain, variant, seed])

    def mean_miou(self, domain: str, variant: str) -> float:
        """Mean over the seeds."""
        return float(np.mean([self.miou(domain, variant, seed) for seed in self.plan.seeds]))

    def class_iou(self, domain: str, variant: str) -> dict[str, float]:
        """IoU per class over all seeds; NaN where the truth lacks it."""
        total = np.sum([self.counts[domain, variant, seed] for seed in self.plan.seeds], axis=0)
        return dict(zip(self.class_names[domain], map(float, iou_per_class(total)), strict=True))

    def h_mean(self, variant: str, seed: int | None = None) -> float:
        """Harmonic mean over the domains, of the mean over the seeds or of one seed."""
        return harmonic_mean(
            self.mean_miou(name, variant) if seed is None else self.miou(name, variant, seed)
            for name in self.plan.domains
        )

    def family_share(self, variant: str, domains: Sequence[str]) -> float:
        """Share of images whose heaviest adapter is a relative of the domain; NaN where there are none.

        The base model counts as a member of the family of its own training scenes.
        """
        are_relatives = self.plan.benchmark.are_relatives
        images = sum(len(self.traces[name]) for name in domains)
        hits = sum(are_relatives(item, name) for name in domains for item in self.heaviest(name, variant))
        return hits / images if images else float("nan")

    def heaviest(self, domain: str, variant: str) -> list[str]:
        """Heaviest adapter of each image; `BASE_MODEL` where no adapter has any weight."""
        weights = (trace.weights[variant] for trace in self.traces[domain])
        return [next(iter(parts)) for parts in weights]

    def mean_weights(self, domain: str, variant: str) -> dict[str, float]:
        """Mean weight of each adapter and of the base model over the domain's images, heaviest first."""
        totals: Counter[str] = Counter()
        for trace in self.traces[domain]:
            totals.update(trace.weights.get(variant, {}))
        count = max(1, len(self.traces[domain]))
        return {name: total / count for name, total in totals.most_common()}


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The figures of a run in the documented form; see docs/evaluation.md. All mIoU in 0..1, no NaN."""
    plan = evaluation.plan
    groups = {"domains": plan.domains, "unseen": plan.unseen, "source": plan.sources}
    return {
        "benchmark": plan.benchmark.name,
        "seeds": list(plan.seeds),
        "images": plan.images,
        "domains": _scores(evaluation, plan.domains, evaluation.mean_miou),
        "h_mean": _of_variants(evaluation, plan.domains, lambda name: evaluation.h_mean(name)),
        "unseen": _scores(evaluation, plan.unseen, evaluation.mean_miou),
        "source": _scores(evaluation, plan.sources, evaluation.mean_miou),
        "spread": {
            "h_mean": _of_variants(evaluation, plan.domains, lambda v: _deviation(_h_by_seed(evaluation, v))),
            **{key: _scores(evaluation, names, partial(_spread, evaluation)) for key, names in groups.items()},
        },
        "per_seed": {
            "h_mean": {v.name: _list(_h_by_seed(evaluation, v.name)) for v in plan.variants if plan.domains},
            **{
                key: {d: {v: _list(_by_seed(evaluation, d, v)) for v in evaluation.variants(d)} for d in names}
                for key, names in groups.items()
            },
        },
        "per_class": {
            name: {
                variant: {key: number(iou) for key, iou in evaluation.class_iou(name, variant).items()}
                for variant in evaluation.variants(name)
            }
            for name in plan.all_domains
        },
        "retrieval": _retrieval(evaluation),
        "weights": _weights(evaluation),
        "forward_passes": evaluation.forward_passes,
        "fusions": evaluation.fusions,
        "left_out": {name: list(lines) for name, lines in evaluation.left_out.items()},
    }


def number(value: float, digits: int = SCORE_DIGITS) -> float | None:
    """Rounded for a file; None in place of NaN, which JSON does not have."""
    return round(value, digits) if math.isfinite(value) else None


def _scores(
    evaluation: Evaluation, domains: Sequence[str], score: Callable[[str, str], float]
) -> dict[str, dict[str, float | None]]:
    return {name: {variant: number(score(name, variant)) for variant in evaluation.variants(name)} for name in domains}


def _of_variants(
    evaluation: Evaluation, domains: Sequence[str], score: Callable[[str], float]
) -> dict[str, float | None]:
    return {variant.name: number(score(variant.name)) for variant in evaluation.plan.variants} if domains else {}


def _by_seed(evaluation: Evaluation, domain: str, variant: str) -> list[float]:
    return [evaluation.miou(domain, variant, seed) for seed in evaluation.plan.seeds]


def _h_by_seed(evaluation: Evaluation, variant: str) -> list[float]:
    return [evaluation.h_mean(variant, seed) for seed in evaluation.plan.seeds]


def _spread(evaluation: Evaluation, domain: str, variant: str) -> float:
    return _deviation(_by_seed(evaluation, domain, variant))


def _list(values: Sequence[float]) -> list[float | None]:
    return [number(value) for value in values]


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation over the seeds (n - 1); NaN for a single seed, which says nothing about spread."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _retrieving(evaluation: Evaluation, domain: str) -> list[str]:
    return [variant.name for variant in evaluation.plan.variants_for(domain) if variant.kind == "retrieved"]


def _retrieval(evaluation: Evaluation) -> dict[str, Any]:
    """Per domain and variant: share of images per heaviest adapter, mean weights, share of the right family."""
    report: dict[str, Any] = {}
    for name in evaluation.plan.all_domains:
        report[name] = {}
        for variant in _retrieving(evaluation, name):
            heaviest = evaluation.heaviest(name, variant)
            report[name][variant] = {
                "heaviest": {key: number(count / len(heaviest)) for key, count in Counter(heaviest).most_common()},
                "mean_weights": {
                    key: number(value, WEIGHT_DIGITS) for key, value in evaluation.mean_weights(name, variant).items()
                },
                "right_family": number(evaluation.family_share(variant, [name])),
            }
    return report


def _weights(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """Per domain, one entry per image: what each variant that retrieves fused for it."""
    return {
        name: [
            {
                "image": trace.image,
                "seed": trace.seed,
                **{
                    variant: {key: number(value, WEIGHT_DIGITS) for key, value in weights.items() if value >= 5e-5}
                    for variant, weights in trace.weights.items()
                },
            }
            for trace in evaluation.traces[name]
        ]
        for name in evaluation.plan.all_domains
    }
