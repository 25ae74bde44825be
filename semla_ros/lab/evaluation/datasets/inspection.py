"""What a benchmark file finds on disk: pairs, sizes, classes, and what is missing or doubtful."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from semla_ros.errors import DatasetError, counted
from semla_ros.lab.evaluation.datasets.benchmark import DiskBenchmark, DomainImages
from semla_ros.results import UNLABELLED, ImageArray, MaskArray

SPLITS = ("train", "val")
SHOWN = 4  # images of a domain and split that are kept to be looked at


@dataclass(kw_only=True, eq=False)
class DomainFindings:
    """What was found of one domain.

    Attributes:
        name: The domain.
        role: As the file says.
        class_names: Its vocabulary.
        images: Split -> number of pairs; without splits that the domain does not have.
        sizes: "WIDTHxHEIGHT" -> number of images.
        pixels: Labelled pixels of each class, shape (K,); of the images that were read.
        unlabelled: Pixels without a class.
        problems: What is missing or doubtful, a line each.
        shown: Some images with their masks and file names.
    """

    name: str
    role: str
    class_names: tuple[str, ...]
    images: dict[str, int] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    pixels: np.ndarray[Any, np.dtype[np.int64]]
    unlabelled: int = 0
    problems: list[str] = field(default_factory=list)
    shown: list[tuple[ImageArray, MaskArray, str]] = field(default_factory=list)

    @property
    def shares(self) -> dict[str, float]:
        """Class -> share of the labelled pixels, 0..1."""
        total = max(1, int(self.pixels.sum()))
        return {name: int(count) / total for name, count in zip(self.class_names, self.pixels, strict=True)}

    @property
    def unlabelled_share(self) -> float:
        """Share of all pixels that has no class, 0..1."""
        return self.unlabelled / max(1, self.unlabelled + int(self.pixels.sum()))

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, without images."""
        return {
            "role": self.role,
            "images": self.images,
            "sizes": dict(self.sizes.most_common()),
            "shares": {name: round(share, 6) for name, share in self.shares.items()},
            "unlabelled": round(self.unlabelled_share, 6),
            "problems": self.problems,
        }


def inspect_domain(
    benchmarks: Mapping[str, DiskBenchmark],
    name: str,
    *,
    images: int = 0,
    on_image: Callable[[], object] = lambda: None,
) -> DomainFindings:
    """Read a domain whole, in every split that it has.

    Doubtful is a pair that cannot be read or whose sizes differ, labels without any class, and a label file that is
    byte for byte another one's, so that one of the two may be another image's.

    Args:
        benchmarks: Split -> the benchmark.
        name: The domain.
        images: Of each split that are read, spread evenly; 0 = all.
        on_image: Called after each image.
    """
    one = next(iter(benchmarks.values()))
    names = one.class_names(name)
    found = DomainFindings(
        name=name, role=one.domains[name].role, class_names=names, pixels=np.zeros(len(names), np.int64)
    )
    seen: set[Path] = set()
    digests: dict[bytes, Path] = {}
    for split, benchmark in benchmarks.items():
        if not benchmark.has_split(name):
            continue
        source, problems = benchmark.find(name)
        if not len(source) and not problems and not (split == "train" and found.role == "unseen"):
            problems = [f"there is no {split} image; wanted is {benchmark.describe(name)}"]
        found.problems += [problem for problem in problems if problem not in found.problems]
        found.images[split] = len(source)
        files = {sample.image for sample in source.paths}
        if found.role != "unseen" and (both := files & seen):
            found.problems.append(
                f"{counted(len(both), 'image')} both trained and validated on: give the domain a 'val_share'"
            )
        seen |= files
        chosen = _spread(len(source), images)
        shown = {chosen[place] for place in _spread(len(chosen), SHOWN)}
        for index in chosen:
            try:
                _look_at(found, source, index, digests, is_shown=index in shown)
            except DatasetError as error:
                found.problems.append(str(error))
            on_image()
    return found


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly; 0 = all."""
    if not 0 < most < count:
        return list(range(count))
    return [int(index) for index in np.linspace(0, count - 1, most).round()]


def _look_at(
    found: DomainFindings, source: DomainImages, index: int, digests: dict[bytes, Path], *, is_shown: bool
) -> None:
    image, mask = source.image(index), source.mask(index)
    height, width = mask.shape
    found.sizes[f"{width}x{height}"] += 1
    counts = np.bincount(mask.ravel(), minlength=256)
    found.pixels += counts[: len(found.class_names)]
    found.unlabelled += int(counts[UNLABELLED])
    path = source.paths[index].labels
    if counts[UNLABELLED] == mask.size:
        found.problems.append(f"{path} holds no class at all")
    else:
        other = digests.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
        if other != path:
            found.problems.append(f"{path} is byte for byte {other}: is it another image's?")
    if is_shown:
        found.shown.append((image, mask, source.name(index)))
