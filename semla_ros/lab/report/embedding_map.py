"""Scene embeddings, centroids with their spreads and images, on the two axes of greatest variance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.report.charts import Chart, scatter
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.results import FloatArray

MOST_POINTS = 60  # embeddings drawn per domain; more hide each other


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenery:
    """What an embedding map is drawn from.

    Attributes:
        points: Domain -> scene embeddings, shape (N, D).
        centroids: Adapter -> centroid, shape (D,).
        families: Domain or adapter -> family.
        spreads: Adapter -> distance within which its domain's images lie.
        images: Image -> embedding, shape (D,): where it falls; axes do not depend on it.
    """

    points: Mapping[str, FloatArray]
    centroids: Mapping[str, FloatArray]
    families: Mapping[str, str]
    spreads: Mapping[str, float] = field(default_factory=dict)
    images: Mapping[str, FloatArray] = field(default_factory=dict)

    @cached_property
    def plane(self) -> Plane:
        """The axes."""
        centroids = [np.asarray(item)[None] for item in self.centroids.values()]
        return Plane.through(np.concatenate([*self.drawn.values(), *centroids]))

    @cached_property
    def drawn(self) -> dict[str, FloatArray]:
        """`points` without those that would hide each other."""
        return {name: values[:MOST_POINTS] for name, values in self.points.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """The plane that shows most of how points differ.

    Attributes:
        centre: Mean of the points, shape (D,).
        axes: Of greatest variance, shape (2, D); zero where the points do not span a plane.
        explained: Share of the variance along each.
    """

    centre: NDArray[np.floating]
    axes: NDArray[np.floating]
    explained: tuple[float, float]

    @classmethod
    def through(cls, points: FloatArray) -> Plane:
        """The plane of points, shape (N, D)."""
        centre = points.mean(axis=0)
        _, strengths, axes = np.linalg.svd(points - centre, full_matrices=False)
        missing = max(0, 2 - len(axes))
        squares = np.append(strengths**2, [0.0, 0.0])
        shares = squares[:2] / max(float(squares.sum()), 1e-12)
        return cls(
            centre=centre,
            axes=np.pad(axes[:2], ((0, missing), (0, 0))),
            explained=(float(shares[0]), float(shares[1])),
        )

    def place(self, points: FloatArray) -> NDArray[np.floating]:
        """Points (..., D) in the plane, (..., 2)."""
        placed: NDArray[np.floating] = (points - self.centre) @ self.axes.T
        return placed

    @property
    def names(self) -> tuple[str, str]:
        """What the axes show."""
        first, second = self.explained
        return f"first axis, {first:.0%} of the variance", f"second axis, {second:.0%}"


def scenery_of(library: AdapterLibrary, images: Mapping[str, FloatArray] | None = None) -> Scenery:
    """What a library knows of where its domains lie, and where images fall in it."""
    known = {name: library.files(name).statistics.scenes("known") for name in library.names}
    spreads = zip(library.names, library.spread, strict=True)
    return Scenery(
        points={name: rows for name, rows in known.items() if len(rows)},
        centroids=dict(zip(library.names, library.centroids, strict=True)),
        families={name: family for name in library.names if (family := library.entry(name).family)},
        spreads={name: float(spread) for name, spread in spreads if np.isfinite(spread)},
        images=images or {},
    )


def embedding_map(
    scenery: Scenery, title: str = "Scene embeddings of the domains and centroids of the adapters"
) -> Chart:
    """The map as a chart of a page."""
    plane = scenery.plane
    return scatter(
        title,
        {name: plane.place(values) for name, values in scenery.drawn.items()},
        {name: plane.place(item) for name, item in scenery.centroids.items()},
        scenery.families,
        plane.names,
        radii=scenery.spreads,
        images={name: plane.place(item) for name, item in scenery.images.items()},
    )
