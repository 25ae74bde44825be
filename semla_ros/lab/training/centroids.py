"""Mean and spread of a domain's scene embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.lab.training.samples import SampleSource
from semla_ros.library.domain_statistics import DomainStatistics, statistics_bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Centroid:
    """What retrieval needs to know of a domain.

    Attributes:
        mean: Mean embedding, shape (D,), float32.
        spread_mean: Mean distance of the domain's images to it.
        spread_p95: 95th percentile of that distance.
        count: Number of images.
    """

    mean: NDArray[np.float32]
    spread_mean: float
    spread_p95: float
    count: int

    def as_dict(self) -> dict[str, float | int]:
        """All but the centroids, as plain values."""
        return {"spread_mean": self.spread_mean, "spread_p95": self.spread_p95, "count": self.count}


def statistics_file(library: Path, name: str) -> Path:
    """Where the published layout keeps an adapter's centroid."""
    return library / name / f"{name}_statistics.npz"


def write_statistics(file: Path, centroid: Centroid) -> None:
    """Write an adapter's centroid in the published form, float32, shape (1, D)."""
    file.write_bytes(statistics_bytes(DomainStatistics(centroid.mean)))


def centroid_of(embeddings: NDArray[np.float32]) -> Centroid:
    """Mean and spread of embeddings of shape (N, D); sums run in float64."""
    mean = embeddings.astype(np.float64).mean(0)
    distances = np.linalg.norm(embeddings - mean, axis=1)
    return Centroid(
        mean=mean.astype(np.float32),
        spread_mean=float(distances.mean()),
        spread_p95=float(np.percentile(distances, 95)),
        count=len(embeddings),
    )


def embed_source(
    encoder: SceneEncoder,
    source: SampleSource,
    *,
    batch_size: int = 16,
    on_progress: Callable[[int], None] | None = None,
) -> Centroid:
    """Embed every image of a source, in batches."""
    parts = []
    for first in range(0, len(source), batch_size):
        images = [source.image(i) for i in range(first, min(first + batch_size, len(source)))]
        parts.append(encoder.embed_batch(images))
        if on_progress:
            on_progress(len(images))
    return centroid_of(np.concatenate(parts))
