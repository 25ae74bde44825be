"""Which adapters a scene gets, and how much of each: a softmax over the inverse distance to their centroids.

What an adapter is not vouched for goes to the base model; `strangeness.py` judges that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semla_ros.adaptation.strangeness import strangeness_of
from semla_ros.config import RetrievalConfig
from semla_ros.errors import ImageError, LibraryError
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.results import AdapterMix, FloatArray

BLOCK_ROWS = 512  # differences of one block stay in the processor's cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieval:
    """How the mix for one scene came about. Arrays have an entry per adapter that was considered, nearest first.

    Attributes:
        mix: The outcome.
        names: At most `top_k`, shape (K,).
        distances: In the configured metric, shape (K,).
        weights: By distance alone, shape (K,); sums to 1 with `home_weight`.
        home_weight: That of the base model, as the scene is near its own domain; 0 where it is no candidate.
        strangeness: See `strangeness.py`, shape (K,).
        vouched: Share of its weight that each adapter keeps, shape (K,); the rest fades to the base model.
    """

    mix: AdapterMix
    names: tuple[str, ...]
    distances: NDArray[np.float64]
    weights: NDArray[np.float64]
    home_weight: float
    strangeness: NDArray[np.float64]
    vouched: NDArray[np.float64]


class Retriever:
    """Chooses the adapters of a mix by the distance of a scene embedding to their centroids.

    Args:
        library: Where the adapters are; those that turn out to be damaged later are passed over.
        config: How many, and how sharply the nearest wins.
    """

    def __init__(self, library: AdapterLibrary, config: RetrievalConfig | None = None) -> None:
        self.config = config or library.manifest.retrieval or RetrievalConfig()
        self._library = library
        self._is_cosine = self.config.distance == "cosine"
        self._points = _unit(library.centroids) if self._is_cosine else library.centroids
        self._index = {name: index for index, name in enumerate(library.names)}

    def retrieve(self, embedding: FloatArray, exclude: Collection[str] = ()) -> AdapterMix:
        """The mix for one scene; see `consider`."""
        return self.consider(embedding, exclude).mix

    def consider(self, embedding: FloatArray, exclude: Collection[str] = ()) -> Retrieval:
        """The mix for one scene, and how it came about.

        Args:
            embedding: Scene embedding, shape (D,).
            exclude: Adapters to ignore, as if they were not in the library.

        Returns:
            Its mix has at most `top_k` adapters, heaviest first, with distances in the configured metric. Its
            `base_weight` is what the adapters are not vouched for, and the base model's own share where the scene is
            near its own domain.

        Raises:
            LibraryError: The embedding does not have the centroids' length, or no adapter is left.
            ImageError: The embedding is not finite, or zero under the cosine distance.
        """
        embedding = self._checked(embedding)
        excluded = sorted({self._index[name] for name in (*exclude, *self._library.problems) if name in self._index})
        available = len(self._library.names) - len(excluded)
        if available < 1:
            raise LibraryError(f"adapter library {self._library.folder}: no adapter is left to retrieve")
        chosen, distances = self._nearest(embedding, excluded, min(self.config.top_k, available))
        base_distance = self._base_distance(embedding)
        candidates = distances if base_distance is None else np.append(distances, base_distance)
        weights = _drop_small(fusion_weights(candidates, self.config.temperature), self.config.min_weight)
        strangeness = strangeness_of(self._library).of(embedding, chosen, excluded)
        start, end = self.config.fade_start, self.config.fade_end
        vouched = np.clip((end - strangeness) / (end - start), 0.0, 1.0)
        is_out = float(weights @ vouched[: len(weights)]) < 0.5
        weights, home_weight = weights[: len(chosen)], float(weights[len(chosen) :].sum())
        vouched = vouched[: len(chosen)] if self.config.fade_out_of_library else np.ones(len(chosen))
        names = tuple(self._library.names[index] for index in chosen)
        kept = weights * vouched
        order = np.argsort(-kept, kind="stable")
        order = order[kept[order] > 0]
        mix = AdapterMix(
            names=tuple(names[index] for index in order),
            weights=kept[order],
            distances=distances[order],
            base_weight=home_weight + float(weights @ (1.0 - vouched)),
            is_out_of_library=is_out,
        )
        return Retrieval(
            mix=mix,
            names=names,
            distances=distances,
            weights=weights,
            home_weight=home_weight,
            strangeness=strangeness[: len(chosen)],
            vouched=vouched,
        )

    def _base_distance(self, embedding: NDArray[np.float32]) -> float | None:
        """Distance to the centroid of the base model's own domain, in the metric of the adapters' ones."""
        home = self._library.base_statistics
        if home is None or not self.config.base_is_candidate:
            return None
        if self._is_cosine:
            return float(np.linalg.norm(_unit(embedding) - _unit(home.centroid)) ** 2 / 2)
        return float(np.linalg.norm(embedding - home.centroid))

    def distances(self, embedding: FloatArray) -> NDArray[np.float64]:
        """Distance of a scene to each adapter in the configured metric, shape (N,), in library order."""
        return self._distances(self._checked(embedding))

    def _checked(self, embedding: FloatArray) -> NDArray[np.float32]:
        embedding = np.asarray(embedding, np.float32).reshape(-1)
        if embedding.size != self._points.shape[1]:
            raise LibraryError(
                f"scene embedding has {embedding.size} values, the centroids of {self._library.folder} have "
                f"{self._points.shape[1]}; use the scene encoder that the library was made with"
            )
        if not np.isfinite(embedding).all():
            raise ImageError("scene embedding has values that are not finite; check the image and the scene encoder")
        if self._is_cosine and not embedding.any():
            raise ImageError("scene embedding is zero, which has no direction; check the image and the scene encoder")
        return embedding

    def _nearest(
        self, embedding: NDArray[np.float32], excluded: Sequence[int], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The nearest adapters, nearest first, ties in library order."""
        distances = self._distances(embedding)
        distances[list(excluded)] = np.inf
        farthest = np.partition(distances, count - 1)[count - 1]
        candidates = np.flatnonzero(distances <= farthest)  # a few of thousands, which sorting all would take long for
        chosen = candidates[np.argsort(distances[candidates], kind="stable")[:count]]
        return chosen, distances[chosen]

    def _distances(self, embedding: NDArray[np.float32]) -> NDArray[np.float64]:
        """Differences are taken in float32, so that near centroids keep their precision."""
        query = _unit(embedding) if self._is_cosine else embedding
        squares = np.empty(len(self._points), np.float64)
        for first in range(0, len(self._points), BLOCK_ROWS):
            block = self._points[first : first + BLOCK_ROWS] - query
            squares[first : first + BLOCK_ROWS] = np.multiply(block, block, out=block).sum(1)
        return squares / 2 if self._is_cosine else np.sqrt(squares)  # half the square of unit vectors' is 1 - cos


def fusion_weights(distances: FloatArray, temperature: float) -> NDArray[np.float64]:
    """Weigh adapters so that the nearest centroid counts most.

    Args:
        distances: Scene embedding to each centroid, shape (K,), >= 0.
        temperature: Softmax temperature over inverse distance, > 0; lower favours the nearest adapter.

    Returns:
        Weights, shape (K,), non-negative, summing to 1. Adapters at distance zero share all of it.

    Source: softmax over inverse distance, SemLA (Qorbani et al., CVPR 2025).
    """
    distances = np.asarray(distances, np.float64)
    is_zero = distances <= 0
    if is_zero.any():
        return _shared(is_zero)
    with np.errstate(over="ignore"):
        scores = 1.0 / distances / temperature
    if not np.isfinite(scores).all():  # distances and temperatures near the smallest number there is
        return _shared(distances == distances.min())
    return softmax(scores)


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax of finite scores, shape (K,); never overflows."""
    exponentials = np.exp(scores - scores.max())
    weights: NDArray[np.float64] = exponentials / exponentials.sum()
    return weights


def _shared(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = chosen.astype(np.float64) / chosen.sum()
    return weights


def _drop_small(weights: NDArray[np.float64], min_weight: float) -> NDArray[np.float64]:
    """Set weights below a minimum to zero and share theirs among the others; the heaviest always stays."""
    kept = np.where(weights >= min(min_weight, weights.max()), weights, 0.0)
    result: NDArray[np.float64] = kept / kept.sum()
    return result


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale to length 1 along the last axis; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
