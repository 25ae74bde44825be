"""Retrieval exactly as the published code computes it, defects included; for comparison only.

`CompatConfig` switches it on. `retrieval.py` has what is used otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semla_ros.results import FloatArray

SMALLEST_TEMPERATURE = 1e-6  # what the published code puts in place of zero


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
