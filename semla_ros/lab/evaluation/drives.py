"""What the gate is measured on: drives in steady weather, slow and sudden changes, failing images, flicker."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semla_ros.errors import ConfigError, known_names
from semla_ros.lab.world.cities import CITIES
from semla_ros.lab.world.conditions import Conditions
from semla_ros.lab.world.drive import DEMO_SEGMENTS, SEGMENT_FAMILIES, Drive, demo_drive
from semla_ros.results import ImageArray, MaskArray

KINDS = ("steady", "slow", "tunnel", "fog-bank", "black-frame", "black-5s", "flicker", "tour")
FLICKER_PERIODS_S = (0.5, 1.3, 3.0, 8.0)
WEATHERS = {**dict(DEMO_SEGMENTS), "fog-night": Conditions(fog=0.6, night=0.8)}
FAMILIES = {**SEGMENT_FAMILIES, "fog-night": "night"}
LOOK_HZ = 2.0
SUDDEN_S = 0.001  # a change between two frames
CALM_S = 20.0  # before whatever a drive is about begins
HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class GateDrive:
    """One drive with what is known about it; frames are looks at the scene, at a fixed rate.

    Attributes:
        name: Kind, and what it is about.
        kind: One of `KINDS`.
        drive: City, weather and its timeline.
        rate_hz: Frames per second.
        duration_s: Length.
        scored_from_s: What lies before is driven but not measured.
        black_s: From when to when the camera delivers black images.
        events_s: When the scene becomes another one; what happens up to `CALM_S` later is put down to it.
    """

    name: str
    kind: str
    drive: Drive
    rate_hz: float = LOOK_HZ
    duration_s: float
    scored_from_s: float = 0.0
    black_s: tuple[float, float] = (0.0, 0.0)
    events_s: tuple[float, ...] = ()

    def times_s(self) -> list[float]:
        """Of the frames."""
        return [index / self.rate_hz for index in range(int(self.duration_s * self.rate_hz))]

    def is_black(self, time_s: float) -> bool:
        """Whether the camera delivers a black image."""
        return self.black_s[0] <= time_s < self.black_s[1]

    def render(self, time_s: float) -> tuple[ImageArray, MaskArray]:
        """The image and its truth."""
        scene = self.drive.render(time_s)
        return (np.zeros_like(scene.image) if self.is_black(time_s) else scene.image), scene.mask

    def weathers(self, time_s: float) -> tuple[str, ...]:
        """Name of the weather; within a transition those of both ends."""
        times = [time for time, _ in self.drive.timeline]
        after = bisect.bisect_right(times, time_s)
        return tuple(dict.fromkeys(self.drive.names[max(0, after - 1) : after + 1]))

    def families(self, time_s: float) -> frozenset[str]:
        """Weather families of which the heaviest part of the mix is right; none where the image is black."""
        if self.is_black(time_s):
            return frozenset()
        return frozenset(FAMILIES[name] for name in self.weathers(time_s))


def made_drive(city: str, seed: int, parts: Sequence[tuple[str, float]], transition_s: float = SUDDEN_S) -> Drive:
    """A drive through weathers, each for its seconds, half of the transitions at either end included."""
    points, names, at_s = [], [], 0.0
    for name, seconds in parts:
        points += [(at_s + transition_s / 2, WEATHERS[name]), (at_s + seconds - transition_s / 2, WEATHERS[name])]
        names += [name, name]
        at_s += seconds
    return Drive(city=city, seed=seed, timeline=tuple(points), names=tuple(names))


def make_drives(seed: int, kinds: Sequence[str] = KINDS) -> list[GateDrive]:
    """The drives of one seed, which chooses cities, streets and when what happens.

    Raises:
        ConfigError: There is no such kind.
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ConfigError(f"there is no drive named '{unknown[0]}'; {known_names(unknown[0], KINDS)}")
    makers = {
        "steady": _steady,
        "slow": _slow,
        "tunnel": lambda rng: [_there_and_back("tunnel", "tunnel", SUDDEN_S, rng)],
        "fog-bank": lambda rng: [_there_and_back("fog-bank", "fog", SUDDEN_S, rng)],
        "black-frame": lambda rng: [_black("black-frame", 1 / LOOK_HZ, rng)],
        "black-5s": lambda rng: [_black("black-5s", 5.0, rng)],
        "flicker": _flicker,
        "tour": _tour,
    }
    drives = []
    for number, kind in enumerate(KINDS):
        if kind in kinds:
            drives += makers[kind](np.random.default_rng([seed, number]))
    return drives


def _city(rng: np.random.Generator) -> str:
    """Any but the garage, which has no weather."""
    return str(rng.choice([name for name in CITIES if name != "garage"]))


def _street(rng: np.random.Generator) -> int:
    return int(rng.integers(1_000_000, 2_000_000))


def _steady(rng: np.random.Generator) -> list[GateDrive]:
    return [
        GateDrive(
            name=f"steady {weather}",
            kind="steady",
            drive=Drive(city=_city(rng), seed=_street(rng), timeline=((0.0, conditions),), names=(weather,)),
            duration_s=120.0,
        )
        for weather, conditions in WEATHERS.items()
    ]


def _slow(rng: np.random.Generator) -> list[GateDrive]:
    points = [(0.0, "clear"), (0.25, "clear"), (1.0, "dusk"), (1.1, "dusk"), (1.75, "night"), (2.0, "night")]
    timeline = tuple((hours * HOUR_S, WEATHERS[name]) for hours, name in points)
    drive = Drive(city=_city(rng), seed=_street(rng), timeline=timeline, names=tuple(name for _, name in points))
    return [GateDrive(name="slow day to night", kind="slow", drive=drive, rate_hz=0.5, duration_s=2 * HOUR_S)]


def _there_and_back(kind: str, weather: str, transition_s: float, rng: np.random.Generator) -> GateDrive:
    into_s, out_s = (30.0 + float(rng.uniform(0, 1 / LOOK_HZ)), 60.0 + float(rng.uniform(0, 1 / LOOK_HZ)))
    parts = [("clear", into_s), (weather, out_s - into_s), ("clear", 90.0 - out_s)]
    return GateDrive(
        name=f"{kind.replace('-', ' ')}, in and out",
        kind=kind,
        drive=made_drive(_city(rng), _street(rng), parts, transition_s),
        duration_s=90.0,
        events_s=(into_s, out_s),
    )


def _black(kind: str, seconds: float, rng: np.random.Generator) -> GateDrive:
    weather, start_s = str(rng.choice(list(WEATHERS))), 40.0 + float(rng.uniform(0, 1 / LOOK_HZ))
    return GateDrive(
        name=f"{kind.replace('-', ' ')}, {weather}",
        kind=kind,
        drive=made_drive(_city(rng), _street(rng), [(weather, 90.0)]),
        duration_s=90.0,
        scored_from_s=CALM_S,
        black_s=(start_s, start_s + seconds),
        events_s=(start_s + seconds,),
    )


def _flicker(rng: np.random.Generator) -> list[GateDrive]:
    drives = []
    for period_s in FLICKER_PERIODS_S:
        one, other = map(str, rng.choice(list(WEATHERS), 2, replace=False))
        phase_s = float(rng.uniform(0, period_s / 2))
        halves = itertools.cycle([(other, period_s / 2), (one, period_s / 2)])
        count = int(60 / (period_s / 2)) + 1
        parts = [(one, CALM_S - phase_s), *itertools.islice(halves, count)]
        drives.append(
            GateDrive(
                name=f"flicker {period_s:g} s, {one} and {other}",
                kind="flicker",
                drive=made_drive(_city(rng), _street(rng), parts),
                duration_s=CALM_S + 60.0,
                scored_from_s=CALM_S,
            )
        )
    return drives


def _tour(rng: np.random.Generator) -> list[GateDrive]:
    """The demo's: every weather in 90 s, with transitions of 2.5 s."""
    drive = demo_drive(_street(rng), city=_city(rng))
    return [GateDrive(name="tour of all weathers", kind="tour", drive=drive, duration_s=drive.duration_s)]
