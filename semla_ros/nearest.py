"""The rows of a matrix nearest to a vector, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 256  # differences of one block stay in the processor's cache


class NearestRows:
    """Euclidean distances to the rows of a matrix that stays the same.

    Args:
        rows: Shape (N, D), float32; not copied.
    """

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._rows = rows

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
        distances = self.distances(vector)
        distances[list(excluded)] = np.inf
        if count < len(distances) // 4:
            border = np.partition(distances, count - 1)[count - 1]
            candidates = np.flatnonzero(distances <= border)  # more than `count` where some are equally far
            chosen = candidates[np.argsort(distances[candidates], kind="stable")][:count]
        else:
            chosen = np.argsort(distances, kind="stable")[:count]
        return chosen.astype(np.int64), distances[chosen]
