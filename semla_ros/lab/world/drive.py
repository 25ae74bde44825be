"""A drive: one camera in one city whose weather follows a timeline."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from semla_ros.errors import ConfigError
from semla_ros.lab.world.cities import CityStyle, city_style
from semla_ros.lab.world.conditions import Conditions
from semla_ros.lab.world.render import Scene, render


@dataclass(frozen=True)
class Drive:
    """A moving camera under changing conditions.

    Between two points of the timeline severities blend linearly, so two neighbouring points with equal conditions
    hold a pure segment. Before the first and after the last point those points hold.
    """

    city: str | CityStyle
    seed: int
    timeline: tuple[tuple[float, Conditions], ...]  # (time in s, conditions), times rising
    speed_m_s: float = 8.0
    names: tuple[str, ...] = ()  # name of the domain at each point; empty: nameless

    def __post_init__(self) -> None:
        city_style(self.city)
        times = [time for time, _ in self.timeline]
        if not times:
            raise ConfigError("a drive's timeline must have at least one point, got none")
        if any(b <= a for a, b in pairwise(times)) or not all(math.isfinite(t) for t in times):
            raise ConfigError(f"a drive's timeline must have finite, rising times, got {times}")
        if self.names and len(self.names) != len(self.timeline):
            raise ConfigError(f"a drive of {len(self.timeline)} points needs as many names, got {len(self.names)}")
        if not (math.isfinite(self.speed_m_s) and self.speed_m_s >= 0):
            raise ConfigError(f"'speed_m_s' must be a finite number >= 0, got {self.speed_m_s!r}")

    @property
    def duration_s(self) -> float:
        """Time of the last point."""
        return self.timeline[-1][0]

    def conditions(self, t_s: float) -> Conditions:
        """Weather and light at a time in seconds."""
        times = [time for time, _ in self.timeline]
        after = bisect.bisect_right(times, t_s)
        if after == 0:
            return self.timeline[0][1]
        if after == len(times):
            return self.timeline[-1][1]
        (t0, before), (t1, then) = self.timeline[after - 1], self.timeline[after]
        return before.blend(then, (t_s - t0) / (t1 - t0))

    def segment_name(self, t_s: float) -> str:
        """Domain of the pure segment at a time in seconds; "" within a transition."""
        if not self.names:
            return ""
        times = [time for time, _ in self.timeline]
        after = bisect.bisect_right(times, t_s)
        if after == 0:
            return self.names[0]
        if after == len(times) or t_s == times[after - 1]:
            return self.names[after - 1]
        return self.names[after] if self.timeline[after - 1][1] == self.timeline[after][1] else ""

    def position_m(self, t_s: float) -> float:
        """How far the camera has driven, metres."""
        return self.speed_m_s * t_s

    def render(self, t_s: float, width: int = 256, height: int = 192) -> Scene:
        """The frame at a time in seconds."""
        return render(
            city=self.city,
            seed=self.seed,
            conditions=self.conditions(t_s),
            width=width,
            height=height,
            position_m=self.position_m(t_s),
        )


SEGMENT_FAMILIES: dict[str, str] = {
    "clear": "clear",
    "dusk": "low-sun",
    "night": "night",
    "night-rain": "night",
    "rain": "rain",
    "fog": "fog",
    "snow": "snow",
    "glare": "low-sun",
    "tunnel": "enclosed",
}  # weather family of a drive's segment: which adapters of the library are right there

DEMO_SEGMENTS: tuple[tuple[str, Conditions], ...] = (
    ("clear", Conditions()),
    ("dusk", Conditions(dusk=0.9)),
    ("night", Conditions(night=0.85)),
    ("night-rain", Conditions(night=0.85, rain=0.8)),
    ("rain", Conditions(rain=0.85)),
    ("fog", Conditions(fog=0.85)),
    ("snow", Conditions(snow=0.85)),
    ("glare", Conditions(glare=0.85)),
    ("tunnel", Conditions(tunnel=0.85)),
    ("clear", Conditions()),
)


def drive_through(
    segments: Sequence[tuple[str, Conditions]],
    *,
    city: str | CityStyle,
    seed: int,
    pure_s: float,
    transition_s: float,
) -> Drive:
    """A drive that holds each condition for `pure_s` seconds, with transitions of `transition_s` seconds between."""
    if not segments or pure_s <= 0 or transition_s <= 0:
        raise ConfigError(
            f"a drive needs segments and positive times, got {len(segments)} segments, "
            f"pure_s={pure_s!r}, transition_s={transition_s!r}"
        )
    timeline: list[tuple[float, Conditions]] = []
    names: list[str] = []
    at = 0.0
    for name, conditions in segments:
        timeline += [(at, conditions), (at + pure_s, conditions)]
        names += [name, name]
        at += pure_s + transition_s
    return Drive(city=city, seed=seed, timeline=tuple(timeline), names=tuple(names))


def demo_drive(seed: int = 7, *, city: str = "boulevard", duration_s: float = 90.0) -> Drive:
    """The demo: from day through every condition and back, `duration_s` seconds in all."""
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise ConfigError(f"'duration_s' must be a positive number of seconds, got {duration_s!r}")
    transition_s = 2.5 * duration_s / 90.0
    pure_s = (duration_s - transition_s * (len(DEMO_SEGMENTS) - 1)) / len(DEMO_SEGMENTS)
    return drive_through(DEMO_SEGMENTS, city=city, seed=seed, pure_s=pure_s, transition_s=transition_s)
