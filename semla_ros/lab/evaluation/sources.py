"""What is evaluated: images with their truth, domains, benchmarks; and the shipped world, rendered by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import ConfigError
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


@dataclass(frozen=True, kw_only=True)
class WorldBenchmark:
    """The shipped world of procedural street scenes. Small and picklable: worker processes open domains themselves.

    Attributes:
        name: For reports.
        domain_names: Domains of the leave-one-out protocol: those that have an adapter in the shipped library.
        unseen_names: Combinations of city and weather that nothing was trained on.
        source_names: What the base model was trained on: clear day of the source cities.
        chunk_size: How many images one job holds at most.
        split: "test", or "val" for choosing settings.
        width: Image width in pixels.
        height: Image height in pixels.
    """

    name: ClassVar[str] = "world"
    domain_names: ClassVar[tuple[str, ...]] = tuple(BENCHMARK)
    unseen_names: ClassVar[tuple[str, ...]] = tuple(UNSEEN)
    source_names: ClassVar[tuple[str, ...]] = tuple(SOURCE)
    chunk_size: ClassVar[int] = 20  # late fusion keeps two sums of class probabilities per image, here of 2 MB each

    split: Split = "test"
    width: int = 256
    height: int = 192

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

    def families(self, domain: str) -> frozenset[str]:
        """All that a domain belongs to: a snowy night is one of nights and of snow."""
        if domain in BENCHMARK or domain in UNSEEN:
            return domain_named(domain).families
        return frozenset({self.family(domain)})

    def are_relatives(self, domain: str, other: str) -> bool:
        """Whether two domains share a condition."""
        return bool(self.families(domain) & self.families(other))

    def check(self, names: Sequence[str]) -> None:
        """Rendered images are always there; only the names can be wrong."""
        for name in names:
            domain_named(name)

    def open(self, domain: str) -> RenderedDomain:
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
