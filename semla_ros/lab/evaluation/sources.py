"""Where the evaluated images come from: the shipped world, rendered by seed, or the published data sets on disk."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import ConfigError
from semla_ros.lab.evaluation.datasets import SEMLA20, DomainImages, check_domains, open_domain
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.domains import BENCHMARK, SOURCE, UNSEEN, Split, domain_named, split_seed
from semla_ros.results import BASE_MODEL, ImageArray

SEED_BLOCK = 10_000  # scenes of one evaluation seed: each seed has a block of its own, so seeds share no image


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationImage:
    """One image with what is known about it.

    Attributes:
        name: For traces.
        scene: RGB as the camera took it, shape (H, W, 3), uint8; what the scene encoder sees.
        image: RGB as the segmentation model is shown it, shape (h, w, 3), uint8.
        labels: Class index per pixel, shape (H, W), uint8, 255 = not scored.
        answer_size: (height, width) that class probabilities are asked for at.
    """

    name: str
    scene: ImageArray
    image: ImageArray
    labels: NDArray[np.uint8]
    answer_size: tuple[int, int]


class DomainSource(Protocol):
    """Images of one domain."""

    class_names: tuple[str, ...]

    def indices(self, seed: int, count: int) -> list[int]:
        """Indices of the images that make up one evaluation seed."""

    def read(self, seed: int, index: int) -> EvaluationImage:
        """One image."""


class Benchmark(Protocol):
    """A set of domains. Small and picklable: worker processes open domains themselves."""

    @property
    def name(self) -> str:
        """For reports."""

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Domains of the leave-one-out protocol."""

    @property
    def unseen_names(self) -> tuple[str, ...]:
        """Domains that nothing was trained on."""

    @property
    def source_names(self) -> tuple[str, ...]:
        """Domains that the base model was trained on."""

    @property
    def chunk_size(self) -> int:
        """How many images one job holds at most."""

    def family(self, domain: str) -> str:
        """The weather or kind of place that a domain is counted under in reports."""

    def are_relatives(self, domain: str, other: str) -> bool:
        """Whether two domains share a weather or kind of place."""

    def check(self, names: Sequence[str]) -> None:
        """Raise a `DatasetError` where images of a domain are missing, before any work is done."""

    def open(self, domain: str) -> DomainSource:
        """The images of one domain."""


@dataclass(frozen=True, kw_only=True)
class WorldBenchmark:
    """The shipped world of procedural street scenes.

    Attributes:
        split: "test", or "val" for choosing settings.
        width: Image width in pixels.
        height: Image height in pixels.
    """

    split: Split = "test"
    width: int = 256
    height: int = 192

    @property
    def name(self) -> str:
        """For reports."""
        return "world"

    @property
    def chunk_size(self) -> int:
        """Late fusion keeps two sums of class probabilities per image: 11 classes at 256 x 192 are 2 MB each."""
        return 20

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Domains that have an adapter in the shipped library."""
        return tuple(BENCHMARK)

    @property
    def unseen_names(self) -> tuple[str, ...]:
        """Combinations of city and weather that nothing was trained on."""
        return tuple(UNSEEN)

    @property
    def source_names(self) -> tuple[str, ...]:
        """What the base model was trained on: clear day of the source cities."""
        return tuple(SOURCE)

    def family(self, domain: str) -> str:
        """The weather and light of a domain, whatever the city; the name itself of one that the world does not know.

        The base model is of the family of its own training scenes.
        """
        if domain == BASE_MODEL:
            domain = next(iter(SOURCE))
        try:
            return domain_named(domain).family
        except ConfigError:
            return domain

    def are_relatives(self, domain: str, other: str) -> bool:
        """Whether two domains share a condition: a snowy night is a relative of nights and of snow."""
        mine, others = (
            domain_named(name).families if name in BENCHMARK or name in UNSEEN else frozenset({self.family(name)})
            for name in (domain, other)
        )
        return bool(mine & others)

    def check(self, names: Sequence[str]) -> None:
        """Rendered images are always there; only the names can be wrong."""
        for name in names:
            domain_named(name)

    def open(self, domain: str) -> DomainSource:
        """The images of one domain."""
        return RenderedDomain(self, domain)


class RenderedDomain:
    """Scenes of one domain, rendered when they are read."""

    def __init__(self, benchmark: WorldBenchmark, name: str) -> None:
        self.class_names: tuple[str, ...] = tuple(CLASS_NAMES)
        self._domain = domain_named(name)
        self._benchmark = benchmark

    def indices(self, seed: int, count: int) -> list[int]:
        """The first `count` scenes of the seed's block.

        Raises:
            ConfigError: The block has fewer scenes, or the seed is negative.
        """
        if not 0 < count <= SEED_BLOCK:
            raise ConfigError(f"'--images' must be 1 to {SEED_BLOCK} for rendered scenes, got {count}")
        split_seed(self._benchmark.split, seed * SEED_BLOCK + count - 1)  # raises where the block is out of range
        return list(range(count))

    def read(self, seed: int, index: int) -> EvaluationImage:
        """Render one scene; the same seed and index always give the same one."""
        benchmark = self._benchmark
        scene_seed = split_seed(benchmark.split, seed * SEED_BLOCK + index)
        scene = self._domain.scene(scene_seed).render(benchmark.width, benchmark.height)
        return EvaluationImage(
            name=f"{seed}/{index}",
            scene=scene.image,
            image=scene.image,
            labels=scene.mask,
            answer_size=(benchmark.height, benchmark.width),
        )


@dataclass(frozen=True, kw_only=True)
class DiskBenchmark:
    """The published 20 domains over ten data sets.

    Attributes:
        root: Folder of all data sets, `$DETECTRON2_DATASETS` of the published code.
        split: "val" or "train".
    """

    root: Path
    split: str = "val"

    @property
    def name(self) -> str:
        """For reports."""
        return "semla20"

    @property
    def chunk_size(self) -> int:
        """A single image's class probabilities can take gigabytes (65 classes at 12 megapixels)."""
        return 4

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The 20 domains."""
        return tuple(SEMLA20)

    @property
    def unseen_names(self) -> tuple[str, ...]:
        """The published benchmark has none."""
        return ()

    @property
    def source_names(self) -> tuple[str, ...]:
        """The published base model was trained on COCO-Stuff, none of the 20."""
        return ()

    def family(self, domain: str) -> str:
        """Weather for the driving sets that state it, "street", "indoor" or "photos" for the rest."""
        for word in ("night", "fog", "rain", "snow"):
            if word in domain:
                return word
        return {"nyu": "indoor", "a150": "photos", "pc59": "photos", "coconutL": "photos"}.get(domain, "street")

    def are_relatives(self, domain: str, other: str) -> bool:
        """Whether two domains are of one family."""
        return self.family(domain) == self.family(other)

    def check(self, names: Sequence[str]) -> None:
        """Every domain's folders are looked for at once."""
        check_domains(names, self.root, self.split)

    def open(self, domain: str) -> DomainSource:
        """The images of one domain."""
        return DiskDomain(_images_on_disk(domain, self.root, self.split))


@functools.cache
def _images_on_disk(domain: str, root: Path, split: str) -> DomainImages:
    """Found once per process: a job is a few images, a data set's folder or annotation file has thousands."""
    return open_domain(domain, root, split)


class DiskDomain:
    """Images of one domain on disk."""

    def __init__(self, images: DomainImages) -> None:
        self._images = images
        self.class_names = images.domain.class_names

    def indices(self, seed: int, count: int) -> list[int]:
        """`count` images drawn by the seed; all of them for count 0."""
        return self._images.draw(count, seed)

    def read(self, seed: int, index: int) -> EvaluationImage:
        """Read one image and its labels."""
        del seed
        sample = self._images.read(index)
        return EvaluationImage(
            name=sample.name,
            scene=sample.scene,
            image=sample.image,
            labels=sample.labels,
            answer_size=sample.answer_size,
        )
