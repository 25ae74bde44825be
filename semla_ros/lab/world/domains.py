"""Domains: which cities under which conditions; the base model's own, the 20 of the benchmark, and unseen ones.

They stand in `world.yaml`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from semla_ros.errors import ConfigError, known_names
from semla_ros.lab.world.cities import CITIES, world_table
from semla_ros.lab.world.conditions import Conditions
from semla_ros.lab.world.render import Scene, render

Split = Literal["train", "val", "test"]

_SPLIT_SIZE = 1_000_000
_SPLIT_STARTS: dict[str, int] = {"train": 0, "val": _SPLIT_SIZE, "test": 2 * _SPLIT_SIZE}


def split_seed(split: Split, index: int) -> int:
    """Seed of scene `index` of a split; the ranges of train, val and test do not meet.

    Raises:
        ConfigError: Unknown split, or an index outside 0..999999.
    """
    if split not in _SPLIT_STARTS:
        raise ConfigError(f"unknown split {split!r}; {known_names(split, _SPLIT_STARTS)}")
    if not 0 <= index < _SPLIT_SIZE:
        raise ConfigError(f"scene index of split '{split}' must be in 0..{_SPLIT_SIZE - 1}, got {index!r}")
    return _SPLIT_STARTS[split] + int(index)


@dataclass(frozen=True)
class DomainScene:
    """One sampled member of a domain: everything `render` and `caption` need besides the size."""

    city: str
    seed: int
    position_m: float
    conditions: Conditions

    def render(self, width: int = 256, height: int = 192) -> Scene:
        """Render it."""
        return render(
            city=self.city,
            seed=self.seed,
            conditions=self.conditions,
            width=width,
            height=height,
            position_m=self.position_m,
        )


@dataclass(frozen=True)
class Domain:
    """Cities and ranges of severities under one name."""

    name: str
    family: str  # weather family: which other domains are relatives
    cities: tuple[str, ...]
    severities: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # condition -> lowest, highest
    mixed: tuple[Mapping[str, tuple[float, float]], ...] = ()  # instead of `severities`: one is drawn per scene
    also: tuple[str, ...] = ()  # further families: a snowy night has relatives among snow scenes too

    def __post_init__(self) -> None:
        for city in self.cities:
            if city not in CITIES:
                raise ConfigError(f"domain '{self.name}': unknown city {city!r}; {known_names(city, CITIES)}")

    @property
    def families(self) -> frozenset[str]:
        """All families that the domain belongs to."""
        return frozenset((self.family, *self.also))

    def sample_conditions(self, rng: np.random.Generator) -> Conditions:
        """Draw severities uniformly from the domain's ranges."""
        ranges = self.mixed[int(rng.integers(len(self.mixed)))] if self.mixed else self.severities
        return Conditions(**{name: float(rng.uniform(low, high)) for name, (low, high) in ranges.items()})

    def scene(self, seed: int) -> DomainScene:
        """The domain's scene of one seed (see `split_seed`); another domain has another street for the same seed."""
        salt = zlib.crc32(self.name.encode())
        rng = np.random.default_rng([seed, salt])
        city = self.cities[int(rng.integers(len(self.cities)))]
        street_seed = seed * 64 + salt % 64  # stays apart for seeds that are apart
        position_m = float(rng.uniform(0.0, 400.0))
        return DomainScene(city, street_seed, position_m, self.sample_conditions(rng))


def _table(name: str) -> dict[str, Domain]:
    return {key: Domain(name=key, **values) for key, values in world_table(name).items()}


SOURCE = _table("source")  # what the base model is trained on
BENCHMARK = _table("benchmark")
UNSEEN = _table("unseen")


def domain_named(name: str) -> Domain:
    """The base model's own domain, one of the benchmark, or an unseen combination.

    Raises:
        ConfigError: There is no such domain.
    """
    for table in (SOURCE, BENCHMARK, UNSEEN):
        if name in table:
            return table[name]
    raise ConfigError(f"unknown domain {name!r}; {known_names(name, (*SOURCE, *BENCHMARK, *UNSEEN))}")
