"""Weather and light as continuous severities that combine."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from semla_ros.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Severity of each condition, 0 (absent) to 1 (severe); all zero is a clear day.

    Raises:
        ConfigError: A severity is not a finite number in 0..1.
    """

    night: float = 0.0
    dusk: float = 0.0
    glare: float = 0.0
    fog: float = 0.0
    rain: float = 0.0
    snow: float = 0.0
    tunnel: float = 0.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (isinstance(value, int | float) and math.isfinite(value) and 0.0 <= value <= 1.0):
                raise ConfigError(f"condition '{name}' must be a number in 0..1, got {value!r}")

    def blend(self, other: Conditions, t: float) -> Conditions:
        """Go from these conditions (t = 0) to `other` (t = 1) linearly; `t` is clipped to 0..1."""
        t = min(max(float(t), 0.0), 1.0)
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return Conditions(**{name: min(max((1 - t) * mine[name] + t * theirs[name], 0.0), 1.0) for name in mine})

    @property
    def darkness(self) -> float:
        """How far the surroundings call for artificial light, 0..1."""
        return max(self.night, 0.65 * self.dusk, 0.9 * self.tunnel)
