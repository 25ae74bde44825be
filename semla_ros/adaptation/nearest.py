"""The rows of a large matrix nearest to a vector: exactly, while reading a quarter of the matrix.

Thousands of centroids of 768 numbers are tens of megabytes, and reading them costs milliseconds. Rounded to 8 bits they
fit the processor's cache. The rounding of each row is known, so by the triangle inequality the rounded distance bounds
the true one, and only rows whose lower bound is small enough are looked at in full.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

BLOCK_ROWS = 256  # differences of one block stay in the processor's cache
SMALL_MATRIX = 100_000  # numbers, below which reading all of them is as fast
LEVELS = 127  # rounded values lie in -127 .. 127


class NearestRows:
    """Euclidean distances to the rows of a matrix that stays the same.

    Args:
        rows: Shape (N, D), float32; not copied.
    """

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._rows = rows
        self._rounded = _RoundedRows.of(rows) if rows.size > SMALL_MATRIX else None

    @property
    def dim(self) -> int:
        """Length of a row."""
        return int(self._rows.shape[1])

    def distances(self, vector: NDArray[np.float32]) -> NDArray[np.float64]:
        """Distance to each row, shape (N,); differences are taken in float32, so close rows keep their precision."""
        squares = np.empty(len(self._rows), np.float64)
        for first in range(0, len(self._rows), BLOCK_ROWS):
            difference = self._rows[first : first + BLOCK_ROWS] - vector
            squares[first : first + BLOCK_ROWS] = (difference * difference).sum(1)
        return np.sqrt(squares)

    def nearest(
        self, vector: NDArray[np.float32], count: int, excluded: Sequence[int] = ()
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The nearest rows.

        Args:
            vector: Shape (D,).
            count: How many, at most the rows that are left.
            excluded: Rows to ignore.

        Returns:
            Indices, nearest first, ties by index, shape (count,); their distances.
        """
        if self._rounded is None or count + len(excluded) > len(self._rows) // 8:
            distances = self.distances(vector)
            distances[list(excluded)] = np.inf
            chosen = np.argsort(distances, kind="stable")[:count]
            return chosen.astype(np.int64), distances[chosen]
        candidates = self._candidates(vector, count, excluded)
        distances = _exact(self._rows[candidates], vector)
        order = np.argsort(distances, kind="stable")[:count]  # candidates ascend, so ties stay in order
        return candidates[order], distances[order]

    def _candidates(self, vector: NDArray[np.float32], count: int, excluded: Sequence[int]) -> NDArray[np.int64]:
        """Rows that may be among the nearest, ascending: a superset, usually a small one."""
        assert self._rounded is not None
        lower = self._rounded.lower_bounds(vector)
        lower[list(excluded)] = np.inf
        first = np.argpartition(lower, count - 1)[:count]
        # The true distances of any `count` rows bound how far the nearest `count` can be.
        farthest = _exact(self._rows[first], vector).max()
        return np.flatnonzero(lower <= farthest).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _RoundedRows:
    """Rows of a matrix, less their mean, rounded to 8 bits.

    Attributes:
        mean: Shape (D,), float32.
        values: Shape (N, D), int8.
        scales: What a step of 1 in each row of `values` is worth, shape (N,), float64.
        squares: Squared length of each rounded row, shape (N,), float64.
        errors: Distance between each row and its rounded one, and a margin for float arithmetic, shape (N,), float64.
    """

    mean: NDArray[np.float32]
    values: torch.Tensor
    scales: NDArray[np.float64]
    squares: NDArray[np.float64]
    errors: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.float32]) -> _RoundedRows | None:
        """Round a matrix; None where this machine has no product of 8-bit integers that counts right."""
        mean = rows.mean(0, dtype=np.float64).astype(np.float32)
        count, dim = rows.shape
        values = np.empty((count, dim), np.int8)
        scales, squares, errors = np.empty(count), np.empty(count), np.empty(count)
        for first in range(0, count, BLOCK_ROWS):
            part = slice(first, first + BLOCK_ROWS)
            values[part], scales[part], errors[part] = _rounded(rows[part], mean)
            squares[part] = (values[part].astype(np.float64) ** 2).sum(1) * scales[part] ** 2
        result = cls(mean, torch.from_numpy(values), scales, squares, errors)
        return result if result._counts_right() else None

    def lower_bounds(self, vector: NDArray[np.float32]) -> NDArray[np.float64]:
        """A bound for each row that its true distance to a vector is not below, shape (N,)."""
        values, scale, error = _rounded(vector[None], self.mean)
        products = self._products(values[0])
        square = float((values.astype(np.float64) ** 2).sum()) * scale[0] ** 2
        rounded = self.squares - 2.0 * scale[0] * self.scales * products + square
        bounds: NDArray[np.float64] = np.sqrt(np.maximum(rounded, 0.0)) - self.errors - error[0]
        return bounds

    def _products(self, values: NDArray[np.int8]) -> NDArray[np.int32]:
        column = torch.from_numpy(values)[:, None].contiguous()
        result: NDArray[np.int32] = torch._int_mm(self.values, column)[:, 0].numpy()
        return result

    def _counts_right(self) -> bool:
        """Whether the product of 8-bit integers exists here and is exact: it has kernels of its own per processor."""
        probe = np.random.default_rng(0).integers(-LEVELS, LEVELS + 1, self.values.shape[1]).astype(np.int8)
        try:
            found = self._products(probe)[:BLOCK_ROWS]
        except (RuntimeError, AttributeError) as error:
            logger.info("no product of 8-bit integers here (%s): centroids are read in full", error)
            return False
        expected = self.values[:BLOCK_ROWS].numpy().astype(np.int64) @ probe.astype(np.int64)
        return bool(np.array_equal(found, expected))


def _rounded(
    rows: NDArray[np.float32], mean: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
    """Rows less a mean, rounded; the value of a step in each; how far each is off."""
    centred = rows.astype(np.float64) - mean
    scales = np.abs(centred).max(1) / LEVELS
    scales[scales == 0] = 1.0
    values = np.rint(centred / scales[:, None]).astype(np.int8)
    errors = np.linalg.norm(centred - values * scales[:, None], axis=1)
    # Exact distances are taken in float32: allow for their rounding, so that no row is lost by it.
    margin = 1e-6 * (np.linalg.norm(centred, axis=1) + np.abs(rows).max(1) + np.abs(mean).max())
    return values, scales, errors + margin


def _exact(rows: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float64]:
    difference = rows - vector
    distances: NDArray[np.float64] = np.sqrt((difference * difference).sum(1).astype(np.float64))
    return distances
