"""Retrieval exactly as the published code computes it, defects included; for comparison only."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from semla_ros.adaptation.retrieval import Retriever
from semla_ros.config import RetrievalConfig
from semla_ros.errors import AdapterError
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.results import AdapterMix, FloatArray

SMALLEST_TEMPERATURE = 1e-6  # what the published code puts in place of zero


class PublishedRetriever:
    """Chooses the adapters of a mix as the published code does; `Retriever` has what is used otherwise.

    Under the cosine distance the farthest adapters win, a scene near a centroid overflows the softmax, and the base
    model takes no part: neither as a candidate nor by fading.

    Args:
        library: Where the adapters are.
        config: `top_k`, `temperature` and `distance` count.
    """

    def __init__(self, library: AdapterLibrary, config: RetrievalConfig) -> None:
        self._library, self._config = library, config
        self._distances = Retriever(library, config).distances

    def retrieve(self, embedding: FloatArray, exclude: Collection[str] = ()) -> AdapterMix:
        """The mix for one scene, see `Retriever.retrieve`.

        Raises:
            LibraryError: The embedding does not have the centroids' length.
            ImageError: The embedding is not finite, or zero under the cosine distance.
            AdapterError: The published softmax gives no number for this scene.
        """
        left_out = {*exclude, *self._library.problems}
        kept = [index for index, name in enumerate(self._library.names) if name not in left_out]
        distances = self._distances(embedding)[kept]
        try:
            similarities = published_similarities(distances, is_cosine=self._config.distance == "cosine")
        except ZeroDivisionError:
            raise AdapterError("the published softmax divides by zero: the scene equals a centroid") from None
        chosen, weights = published_weights(
            similarities, temperature=self._config.temperature, top_k=self._config.top_k
        )
        if not np.isfinite(weights).all():
            raise AdapterError("the published softmax overflows for this scene: its weights are not numbers")
        names = tuple(self._library.names[kept[index]] for index in chosen)
        return AdapterMix(names=names, weights=weights, distances=distances[chosen], base_weight=0.0)


def published_similarities(distances: FloatArray, *, is_cosine: bool) -> NDArray[np.float64]:
    """Similarity of a scene to each adapter.

    Args:
        distances: Shape (N,), Euclidean or 1 - cos.
        is_cosine: The cosine distance itself is taken for a similarity, so the farthest adapter is preferred.

    Raises:
        ZeroDivisionError: A Euclidean distance is zero.
    """
    if is_cosine:
        return np.asarray(distances, np.float64)
    return np.array([1 / float(distance) for distance in distances])


def published_weights(
    similarities: NDArray[np.float64], *, temperature: float, top_k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Softmax over the most similar adapters without subtracting the maximum.

    Args:
        similarities: Shape (N,).
        temperature: Zero becomes 1e-6.
        top_k: More than there are adapters takes all.

    Returns:
        Indices, most similar first, ties in library order, shape (K,); weights, shape (K,). Where the exponential
        overflows its weight is NaN and the others are 0.

    Raises:
        ValueError: `top_k` is zero.
    """
    if top_k < 1:
        raise ValueError("top_k of 0 leaves no adapter to fuse")
    chosen = np.argsort(-similarities, kind="stable")[:top_k].astype(np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        exponentials = np.exp(similarities[chosen] / (temperature or SMALLEST_TEMPERATURE))
        weights = exponentials / exponentials.sum()
    return chosen, weights
