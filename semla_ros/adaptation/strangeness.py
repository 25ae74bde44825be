"""How strange a scene is to each domain of a library: 1 where the domain's own images end.

Three things count. **Its own spread:** the distance to the domain's centroid over the distance within which 95 % of its
own images lie. **The company it is in:** the distance to the nearest known scene of the whole library over that to the
nearest strange image. **How new it is:** the distance to the nearest known scene over that of 95 % of them, where a
direction counts the more the less known scenes of one domain differ along it. Known scenes are embeddings of the
domains' own images, strange ones those of test patterns and of the domains' images taken apart
(`lab/training/strange_images.py`). A black frame lies within the spread of many a night, but right beside other dark
patterns; a new combination of known weathers lies beyond every spread, but far from anything strange; a terminal lies
among foggy nights, but where no night has ever been.

Sources: distance to the nearest known sample as a measure of novelty (Sun et al., "Out-of-Distribution Detection with
Deep Nearest Neighbors", ICML 2022), by the covariance that classes share (Lee et al., "A Simple Unified Framework for
Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS 2018), shrunk as few examples ask for (OAS; Chen
et al., "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Trans. Signal Processing 2010); outliers to hold it
against (Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019), among them own images taken apart
(Tack et al., "CSI", NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.domain_statistics import nearest_gaps

WIDEST = 2.0  # times the median spread: a domain of everything would vouch for anything
FARTHEST = 1.4  # how much the way beyond the own spread adds where scenes are held against strange ones
COMPANY, NOVELTY = 0.68, 1.21  # what each counts, as chosen on rendered scenes and photographs (docs/evaluation.md)
CLOSE = 3.0  # how new it can be at most, as a multiple of its company: near known scenes and far from strange ones, not
MOST_EXAMPLES = 4096  # known scenes that are compared with, and strange ones: those of 20 domains as written
LEAST_EXAMPLES = 8  # of a domain: fewer say nothing of its shape

_of_library: WeakKeyDictionary[AdapterLibrary, Strangeness] = WeakKeyDictionary()


def strangeness_of(library: AdapterLibrary) -> Strangeness:
    """That of a library, made once however often settings of retrieval change."""
    found = _of_library.get(library)
    if found is None:
        found = _of_library[library] = Strangeness(library)
    return found


class Strangeness:
    """Judges scenes by the spreads and the examples that a library has.

    In a library of many domains fewer examples of each count, so that work and memory are bounded; of thousands, none.

    Args:
        library: Its measured or estimated spreads and, where its statistics have them, known and strange scenes.
    """

    def __init__(self, library: AdapterLibrary) -> None:
        self._centroids, self._home = library.centroids, library.base_statistics
        spread = library.spread.astype(np.float64)
        median = float(np.median(spread)) if spread.size else float("nan")
        self._spread = np.fmin(spread, WIDEST * median)
        self._home_spread = self._home.spread_p95 if self._home is not None and self._home.spread_p95 else median
        domains = [library.files(name).statistics for name in library.names]
        self._has_examples = np.array([item.known is not None and item.strange is not None for item in domains], bool)
        if self._home is not None:
            domains.append(self._home)
        most = MOST_EXAMPLES // max(1, len(domains))
        if most < LEAST_EXAMPLES:
            self._has_examples[:], most = False, 0
        scenes = [item.scenes("known")[:most] for item in domains]  # the first ones leave none of the others far away
        self._known, self._known_owner = _stacked(scenes)
        strange, owner = _stacked([_spaced(item.scenes("strange"), most) for item in domains])
        is_apart = _told_apart(strange, scenes, [item.reach for item in domains])
        self._strange, self._strange_owner = strange[is_apart], owner[is_apart]

    def of(
        self, embedding: NDArray[np.float32], chosen: NDArray[np.int64], excluded: Sequence[int] = ()
    ) -> NDArray[np.float64]:
        """How strange a scene is to some adapters' domains and, last, to the base model's own.

        Args:
            embedding: Scene embedding, shape (D,).
            chosen: Indices of K adapters.
            excluded: Indices of adapters that count as not there.

        Returns:
            Shape (K + 1,), >= 0: below 1 within a domain; 0 where nothing is known that could tell.
        """
        beyond = np.empty(len(chosen) + 1)
        beyond[:-1] = np.linalg.norm(self._centroids[chosen] - embedding, axis=1) / self._spread[chosen]
        beyond[-1] = 0.0
        if self._home is not None:
            beyond[-1] = float(np.linalg.norm(self._home.centroid - embedding)) / self._home_spread
        beyond = np.nan_to_num(beyond, nan=0.0)
        known, strange = self.company(embedding, excluded)
        if not np.isfinite(known) or not np.isfinite(strange):
            return beyond
        company = known / max(strange, 1e-9)
        novelty = min(self.novelty(embedding, excluded), CLOSE * company)
        together = np.hypot(COMPANY * company * np.clip(beyond, 1.0, FARTHEST), NOVELTY * novelty)
        has_examples = np.append(self._has_examples[chosen], self._home is None or self._home.known is not None)
        return np.where(has_examples, together, beyond)

    def company(self, embedding: NDArray[np.float32], excluded: Sequence[int] = ()) -> tuple[float, float]:
        """Distance of a scene, shape (D,), to the nearest known scene and to the nearest strange image.

        Infinite where there is none; adapters of the indices in `excluded` count as not there.
        """
        known = _nearest(embedding, self._known, self._known_owner, excluded)
        return known, _nearest(embedding, self._strange, self._strange_owner, excluded)

    def novelty(self, embedding: NDArray[np.float32], excluded: Sequence[int] = ()) -> float:
        """How far a scene, shape (D,), is from known scenes: 1 where 95 % of them have another one, 0 without any.

        Adapters of the indices in `excluded` count as not there.
        """
        if not len(self._known):
            return 0.0
        evened, known, usual = self._evened
        nearest = _nearest(embedding @ evened, known, self._known_owner, excluded)
        return nearest / usual if np.isfinite(nearest) and usual > 0 else 0.0

    @cached_property
    def _evened(self) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        """See `evening`; known scenes, evened; distance within which 95 % of them have another one, 0 for too few."""
        evened = evening([self._known[self._known_owner == owner] for owner in np.unique(self._known_owner)])
        known = self._known @ evened
        return evened, known, float(np.quantile(nearest_gaps(known), 0.95)) if len(known) >= LEAST_EXAMPLES else 0.0


def evening(scenes: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """What embeddings are multiplied by so that scenes of one domain differ as much in every direction.

    Args:
        scenes: For each of at least one domain its known scenes, shape (M, D), M >= 1.

    Returns:
        Shape (D, D): W, where W W' is the inverse of the shrunk covariance about the domains' means; the unit matrix
        where scenes do not differ.
    """
    rows = np.concatenate([item - item.mean(0) for item in scenes]).astype(np.float64)
    count, size = len(rows) - len(scenes), rows.shape[1]
    covariance = rows.T @ rows / max(count, 1)
    trace, square = float(np.trace(covariance)), float((covariance**2).sum())
    if not trace > 0:
        return np.eye(size, dtype=np.float32)
    over = (count + 1 - 2 / size) * (square - trace**2 / size)
    share = min(1.0, ((1 - 2 / size) * square + trace**2) / over) if over > 0 else 1.0
    values, vectors = np.linalg.eigh((1 - share) * covariance + share * trace / size * np.eye(size))
    evened: NDArray[np.float32] = (vectors / np.sqrt(values)).astype(np.float32)
    return evened


def _spaced(rows: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """So many rows at most, evenly."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _told_apart(
    strange: NDArray[np.float32], scenes: Sequence[NDArray[np.float32]], reaches: Sequence[float]
) -> NDArray[np.bool_]:
    """Which strange images the encoder can tell from every domain's own: one within its reach marks no border."""
    is_apart = np.ones(len(strange), bool)
    for known, reach in zip(scenes, reaches, strict=True):
        if len(known):
            is_apart &= nearest_gaps(strange, known) > reach
    return is_apart


def _stacked(scenes: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All scenes, shape (M, D), and the index of each one's domain, shape (M,)."""
    rows = np.concatenate(scenes) if scenes else np.zeros((0, 0), np.float32)
    return rows, np.repeat(np.arange(len(scenes)), [len(item) for item in scenes])


def _nearest(
    embedding: NDArray[np.float32], rows: NDArray[np.float32], owner: NDArray[np.int64], excluded: Sequence[int]
) -> float:
    """Distance to the nearest row whose owner is not excluded; infinite where there is none."""
    if len(excluded):
        rows = rows[~np.isin(owner, excluded)]
    if not len(rows):
        return float("inf")
    gaps = rows - embedding
    return float(np.sqrt(np.einsum("ij,ij->i", gaps, gaps).min()))
