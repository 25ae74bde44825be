"""Tileable random textures, the same in every process."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

SIZE = 256


@lru_cache(maxsize=1)
def rough() -> FloatArray:
    """Grain of surfaces: (256, 256), mean 0, about -1..1, mostly fine."""
    return _octaves(1, ((1, 0.75), (2, 0.5), (5, 0.6), (13, 0.6)))


@lru_cache(maxsize=1)
def smooth() -> FloatArray:
    """Clouds and drifts: (256, 256), mean 0, about -1..1, coarse."""
    return _octaves(2, ((7, 0.3), (17, 0.6), (39, 1.0)))


def look_up(table: FloatArray, p: FloatArray, q: FloatArray) -> FloatArray:
    """Nearest sample of a tiled texture at cell coordinates `p`, `q` (any equal shape)."""
    row = q.astype(np.int32) & (SIZE - 1)
    column = p.astype(np.int32) & (SIZE - 1)
    return np.take(table.ravel(), (row << 8) + column)


def _octaves(seed: int, parts: tuple[tuple[int, float], ...]) -> FloatArray:
    rng = np.random.default_rng([seed, 977])
    total = np.zeros((SIZE, SIZE), np.float32)
    for size, weight in parts:
        layer = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
        if size > 1:
            tiled = cv2.blur(cv2.blur(np.tile(layer, (3, 3)), (size, size)), (size, size))
            layer = np.ascontiguousarray(tiled[SIZE : 2 * SIZE, SIZE : 2 * SIZE])
        total += np.float32(weight) * layer / layer.std()
    total -= total.mean()
    total /= 2.0 * total.std()
    return np.clip(total, -1.5, 1.5)
