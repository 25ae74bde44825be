"""The ways of adapting that the evaluation compares, and the mixes that each of them asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from semla_ros.config import RetrievalConfig
from semla_ros.errors import ConfigError, known_names
from semla_ros.results import AdapterMix, FloatArray

WITHOUT_OWN = "_without_own"
LEAST_SHARE = 0.01  # late fusion leaves out what weighs less: a forward pass each, and no visible effect

Kind = Literal["zero_shot", "uniform", "oracle", "retrieved", "late_fusion"]


class RetrieverLike(Protocol):
    """What the variants need of a retriever."""

    def retrieve(self, embedding: FloatArray, exclude: Sequence[str] = ()) -> AdapterMix:
        """The mix for a scene embedding, shape (D,), as if the adapters of `exclude` were not in the library."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of adapting.

    Attributes:
        name: Key in the results.
        kind: "zero_shot": the base model; "uniform": every adapter, equal weights; "oracle": the target's own adapter
            alone; "retrieved": SemLA, adapters fused by distance; "late_fusion": the same adapters and weights, but one
            forward pass each and their class probabilities averaged.
        without_own: Leave-one-out: as if the target's own adapter were not in the library.
        overrides: Fields of `RetrievalConfig` that differ from the library's recommendation.
        as_published: Retrieve with the published code's defects, see `PublishedRetriever`.
    """

    name: str
    kind: Kind
    without_own: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    as_published: bool = False

    def leave_one_out(self) -> Variant:
        """The same without the target's own adapter."""
        return replace(self, name=self.name + WITHOUT_OWN, without_own=True)


def _both(variant: Variant) -> tuple[Variant, Variant]:
    return variant, variant.leave_one_out()


PAPER_VARIANTS: tuple[Variant, ...] = (
    Variant(name="zero_shot", kind="zero_shot"),
    *_both(Variant(name="uniform", kind="uniform")),
    *_both(Variant(name="semla", kind="retrieved")),
    *_both(Variant(name="late_fusion", kind="late_fusion")),
    Variant(name="oracle", kind="oracle"),
)

# What goes past the paper: each is one switch away from `semla`, which follows the library's recommendation.
EXTRA_VARIANTS: tuple[Variant, ...] = (
    *_both(Variant(name="semla_fade", kind="retrieved", overrides={"fade_out_of_library": True})),
    *_both(Variant(name="semla_no_fade", kind="retrieved", overrides={"fade_out_of_library": False})),
    *_both(Variant(name="semla_no_base", kind="retrieved", overrides={"base_is_candidate": False})),
    *_both(Variant(name="semla_sparse", kind="retrieved", overrides={"min_weight": 0.1})),
    *_both(Variant(name="semla_nearest", kind="retrieved", overrides={"top_k": 1})),
    *_both(Variant(name="semla_cosine", kind="retrieved", overrides={"distance": "cosine"})),
)

# Only by name: a scene close to a centroid overflows the published softmax, which ends a run.
PUBLISHED_VARIANTS = _both(Variant(name="semla_published", kind="retrieved", as_published=True))

VARIANTS: dict[str, Variant] = {
    variant.name: variant for variant in (*PAPER_VARIANTS, *EXTRA_VARIANTS, *PUBLISHED_VARIANTS)
}


def choose_variants(names: Sequence[str]) -> tuple[Variant, ...]:
    """Variants by name, in the order given; "paper", "extra" and "all" stand for groups.

    Raises:
        ConfigError: A name is unknown.
    """
    groups = {"paper": PAPER_VARIANTS, "extra": EXTRA_VARIANTS, "all": (*PAPER_VARIANTS, *EXTRA_VARIANTS)}
    chosen: dict[str, Variant] = {}
    for name in names:
        if name not in groups and name not in VARIANTS:
            raise ConfigError(f"unknown variant '{name}'; {known_names(name, (*groups, *VARIANTS))}")
        for variant in groups.get(name) or (VARIANTS[name],):
            chosen[variant.name] = variant
    return tuple(chosen.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Share:
    """One model that takes part in an answer: its mix, and the weight of its class probabilities."""

    mix: AdapterMix
    weight: float = 1.0


def shares(
    variant: Variant,
    *,
    own: str | None,
    adapter_names: Sequence[str],
    retriever: RetrieverLike | None,
    embedding: FloatArray,
) -> tuple[Share, ...]:
    """The models that a variant asks for on one image.

    Args:
        variant: The way of adapting.
        own: The target domain's own adapter; None where the library has none.
        adapter_names: All adapters of the library.
        retriever: For the kinds that retrieve.
        embedding: Scene embedding of the image, shape (D,).

    Returns:
        Shares whose weights sum to 1: one for every kind but late fusion, which leaves out those below `LEAST_SHARE`.
    """
    exclude = (own,) if variant.without_own and own is not None else ()
    if variant.kind == "zero_shot" or (variant.kind == "oracle" and own is None):
        return (Share(mix=AdapterMix()),)
    if variant.kind == "oracle":
        assert own is not None
        return (Share(mix=equal_mix([own])),)
    if variant.kind == "uniform":
        return (Share(mix=equal_mix([name for name in adapter_names if name not in exclude])),)
    if not set(adapter_names) - set(exclude):
        return (Share(mix=AdapterMix()),)
    assert retriever is not None
    mix = retriever.retrieve(embedding, exclude)
    if variant.kind == "retrieved":
        return (Share(mix=mix),)
    parts = [(equal_mix([name]), weight) for name, weight in mix.as_dict().items()]
    parts.append((AdapterMix(), mix.base_weight))
    parts = [(single, weight) for single, weight in parts if weight >= LEAST_SHARE]
    total = sum(weight for _, weight in parts)
    return tuple(Share(mix=single, weight=weight / total) for single, weight in parts)


def equal_mix(names: Sequence[str]) -> AdapterMix:
    """Every adapter named, with equal weights; the base model where none is."""
    count = len(names)
    if count == 0:
        return AdapterMix()
    return AdapterMix(
        names=tuple(names), weights=np.full(count, 1.0 / count), distances=np.full(count, np.nan), base_weight=0.0
    )


def retrieval_settings(variant: Variant, recommended: RetrievalConfig) -> RetrievalConfig:
    """The settings that a variant retrieves with."""
    return replace(recommended, **variant.overrides)
