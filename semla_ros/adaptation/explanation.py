"""Why a scene gets the adapters that it gets, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semla_ros.adaptation.retrieval import Retriever
from semla_ros.adaptation.strangeness import strangeness_of
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.results import AdapterMix, FloatArray


@dataclass(frozen=True, kw_only=True)
class Reason:
    """What speaks for one adapter, and against it.

    Attributes:
        name: The adapter.
        family: Weather or light; empty where the library does not say.
        distance: Scene to centroid, in the configured metric.
        spread: Distance within which 95 % of the domain's own images lie, Euclidean; NaN where nothing is known.
        is_spread_measured: Else it is an estimate.
        weight_by_distance: Share of the mix before the fade, 0..1; 0 where it is not among the `top_k` nearest.
        strangeness: 1 where the domain's own images end; NaN where it was not considered.
        weight: Share of the mix, 0..1.
    """

    name: str
    family: str
    distance: float
    spread: float
    is_spread_measured: bool
    weight_by_distance: float = 0.0
    strangeness: float = math.nan
    weight: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Why one scene gets its mix.

    Attributes:
        name: Of the image.
        embedding: Of the scene, shape (D,).
        mix: What it gets.
        reasons: One per adapter of the library, nearest first.
        home_weight: Share of the base model by distance, as the scene is near its own domain.
        nearest_known: Distance to the nearest known scene; infinite where the library has no examples.
        nearest_strange: Likewise to the nearest strange image.
        novelty: See `Strangeness.novelty`.
        fade: Strangeness where the fade begins, and where the base model has all.
    """

    name: str
    embedding: FloatArray
    mix: AdapterMix
    reasons: Sequence[Reason]
    home_weight: float
    nearest_known: float
    nearest_strange: float
    novelty: float
    fade: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """As plain values; what is not known is None."""
        return {
            "image": self.name,
            "out_of_library": self.mix.is_out_of_library,
            "base_weight": _six(self.mix.base_weight),
            "base_weight_by_distance": _six(self.home_weight),
            "nearest_known_scene": _six(self.nearest_known),
            "nearest_strange_image": _six(self.nearest_strange),
            "novelty": _six(self.novelty),
            "fade_start": self.fade[0],
            "fade_end": self.fade[1],
            "adapters": [
                {key: _six(value) if isinstance(value, float) else value for key, value in vars(reason).items()}
                for reason in self.reasons
            ],
        }

    def __str__(self) -> str:
        """In a few sentences."""
        return "\n".join([f"{self.name} {self.verdict}; mix: {self.mix}", *self.sentences])

    @property
    def verdict(self) -> str:
        """Whether the library covers the scene, to follow its name."""
        return "lies outside the library" if self.mix.is_out_of_library else "lies within the library"

    @property
    def sentences(self) -> list[str]:
        """What the outcome comes of, one thing after the other."""
        first = self.reasons[0]
        spread = f"95 % of its own images lie within {first.spread:.3g}"
        if math.isnan(first.spread):
            spread = "how far its own images reach is not known"
        elif not first.is_spread_measured:
            spread += " by estimate"
        lines = [f"The nearest adapter is {first.name}: distance {first.distance:.3g}; {spread}."]
        taken = [reason for reason in self.reasons if reason.weight_by_distance >= 0.005]
        shares = [f"{reason.name} {reason.weight_by_distance:.1%}" for reason in taken]
        if self.home_weight >= 0.005:
            shares.append(f"the base model {self.home_weight:.1%}, whose own domain is near")
        lines.append(f"By distance alone the weights are {', '.join(shares)}.")
        lines.append(self._fade_in_words(taken))
        if math.isfinite(self.nearest_known) and math.isfinite(self.nearest_strange):
            lines.append(
                f"The nearest known scene is {self.nearest_known:.3g} away, the nearest strange image "
                f"{self.nearest_strange:.3g}; the scene is {self.novelty:.2f} new, where 95 % of the known scenes are "
                "at most 1 new to each other."
            )
        return lines

    def _fade_in_words(self, taken: Sequence[Reason]) -> str:
        start, end = self.fade
        strangest = max((reason.strangeness for reason in taken), default=math.nan)
        scale = f"1 is where a domain's own images end, the fade goes from {start:g} to {end:g}"
        faded = self.mix.base_weight - self.home_weight
        if faded < 0.005:
            return f"Nothing fades: the scene is {strangest:.2f} strange to them at most ({scale})."
        return f"{faded:.1%} fades to the base model: the scene is up to {strangest:.2f} strange to them ({scale})."


def explain(name: str, embedding: FloatArray, library: AdapterLibrary) -> Explanation:
    """Why a scene gets its mix, by the library's own settings.

    Args:
        name: What to call it.
        embedding: Of the scene, shape (D,).
        library: Where the adapters are.

    Raises:
        SemlaError: See `Retriever.consider`.
    """
    retriever = Retriever(library)
    found = retriever.consider(embedding)
    distances = retriever.distances(embedding)
    considered = {adapter: index for index, adapter in enumerate(found.names)}
    weights = found.mix.as_dict()
    reasons = []
    for index in distances.argsort(kind="stable"):
        adapter = library.names[index]
        at = considered.get(adapter)
        reasons.append(
            Reason(
                name=adapter,
                family=library.entry(adapter).family,
                distance=float(distances[index]),
                spread=float(library.spread[index]),
                is_spread_measured=bool(library.is_spread_measured[index]),
                weight_by_distance=0.0 if at is None else float(found.weights[at]),
                strangeness=math.nan if at is None else float(found.strangeness[at]),
                weight=weights.get(adapter, 0.0),
            )
        )
    judge, scene = strangeness_of(library), np.asarray(embedding, np.float32)
    known, strange = judge.company(scene)
    return Explanation(
        name=name,
        embedding=embedding,
        mix=found.mix,
        reasons=reasons,
        home_weight=found.home_weight,
        nearest_known=known,
        nearest_strange=strange,
        novelty=judge.novelty(scene),
        fade=(retriever.config.fade_start, retriever.config.fade_end),
    )


def _six(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
