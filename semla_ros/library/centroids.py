"""Make and write what `domain_statistics.py` reads: the centroid of a domain's scene embeddings, spread, examples."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semla_ros.atomic_files import write_atomically
from semla_ros.library.domain_statistics import CENTROID_KEY, NUMBERS, SCENES, DomainStatistics, nearest_gaps

MAX_KNOWN = 128  # of a domain's own scenes that are kept
MAX_COMPARED = 4096  # of them that are compared with each other


def statistics_of(embeddings: NDArray[np.float32], strange: NDArray[np.float32] | None = None) -> DomainStatistics:
    """Mean and spread of a domain's scene embeddings, and examples of them.

    They are the same to the last bit for any order of the rows; sums run in float64.

    Args:
        embeddings: Shape (N, D).
        strange: Embeddings of images that are no scenes of any domain, shape (S, D); None keeps no examples at all.
    """
    embeddings = embeddings[np.lexsort(embeddings.T[::-1])]
    mean = embeddings.astype(np.float64).mean(0)
    distances = np.linalg.norm(embeddings - mean, axis=1)
    found = DomainStatistics(
        mean.astype(np.float32),
        images=len(embeddings),
        spread_mean=float(distances.mean()),
        spread_p95=float(np.percentile(distances, 95)),
    )
    if strange is None:
        return found
    compared = embeddings[np.linspace(0, len(embeddings) - 1, min(len(embeddings), MAX_COMPARED)).round().astype(int)]
    step = float(max(np.abs(compared).max(), np.abs(strange).max())) / 127 or 1.0
    return dataclasses.replace(
        found,
        known=np.round(spread_out(compared, MAX_KNOWN) / step).astype(np.int8),
        strange=np.round(strange / step).astype(np.int8),
        step=step,
        reach=float(np.percentile(nearest_gaps(compared), 95)) if len(compared) > 1 else 0.0,
    )


def spread_out(rows: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """At most so many rows that leave none of the others far from one of them, shape (M, D).

    Each next one is the farthest from those before, beginning with the one nearest to the mean.

    Source: Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    """
    chosen = [int(((rows - rows.mean(0)) ** 2).sum(1).argmin())]
    gaps = ((rows - rows[chosen[0]]) ** 2).sum(1)
    while len(chosen) < min(most, len(rows)):
        chosen.append(int(gaps.argmax()))
        gaps = np.minimum(gaps, ((rows - rows[chosen[-1]]) ** 2).sum(1))
    return rows[chosen]


def write_statistics(file: Path, statistics: DomainStatistics) -> None:
    """Write `<name>_statistics.npz`: the published key, shape (1, D), and what the published code passes over."""
    arrays: dict[str, Any] = {CENTROID_KEY: statistics.centroid[None].astype(np.float32)}
    for key in NUMBERS:
        if value := getattr(statistics, key):
            arrays[key] = np.asarray(value)
    for key in SCENES:
        if (scenes := getattr(statistics, key)) is not None:
            arrays[key] = scenes
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(file, buffer.getvalue())
