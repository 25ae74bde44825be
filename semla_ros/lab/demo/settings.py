"""What a demo run is asked to do."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from semla_ros.errors import ConfigError

FULL_DRIVE_S, FAST_DRIVE_S = 90.0, 18.0


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Checked options of `semla demo`."""

    out: Path = Path("out/demo")  # folder for summary, pictures, video and logs
    is_fast: bool = False  # a short drive, for tests
    seed: int = 7  # street, traffic and noise
    rate_hz: float = 0.0  # camera frames per second; 0 = by the number of processor cores
    width: int = 256  # camera image, pixels
    height: int = 192
    drive_s: float = 0.0  # length of the drive; 0 = 90 s, or 18 s for a fast one
    shows_live: bool = True  # the live table, where the output is a terminal
    model: str = "semla-tiny"  # model id or path
    library: str = ""  # adapter library folder; empty = the model's own

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("rate_hz", self.rate_hz, 0, 60),
            ("duration_s", self.drive_s, 0, 3600),
            ("width", self.width, 32, 4096),
            ("height", self.height, 32, 4096),
            ("seed", self.seed, 0, 2**31 - 1),
        ):
            if not low <= value <= high:
                raise ConfigError(f"'{name}' must be between {low} and {high}, got {value:g}")

    @property
    def duration_s(self) -> float:
        """Length of the drive."""
        return self.drive_s or (FAST_DRIVE_S if self.is_fast else FULL_DRIVE_S)

    @property
    def camera_rate_hz(self) -> float:
        """Frames per second that the camera sends.

        On one core a frame of the tiny model takes about 60 ms and rendering one 45 ms, so 5 Hz leaves two cores room
        for the rest; where there are more, camera and model have their own.
        """
        if self.rate_hz:
            return self.rate_hz
        cores = usable_cores()
        return 5.0 if cores <= 2 else 8.0 if cores <= 4 else 10.0

    @property
    def threads(self) -> int:
        """Threads of the model: half the cores, because the camera, the adaptation and the monitor need some as well.

        Where the threads of one model have to wait for a core, all wait for the last: on two cores with other work,
        a frame took 60 ms with one thread and seconds with two.
        """
        return max(1, usable_cores() // 2)


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_size(words: str) -> tuple[int, int]:
    """Read "256x192" as (width, height).

    Raises:
        ConfigError: It is not of that form.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", words.strip().lower())
    if match is None:
        raise ConfigError(f"image size must be WIDTHxHEIGHT in pixels, such as 256x192, got '{words}'")
    return int(match[1]), int(match[2])
