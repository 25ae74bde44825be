"""A recording of a shipped drive: several cameras, calibration, ground truth and the names of its stretches."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import ConfigError, counted
from semla_ros.lab.bags.writer import NANOSECONDS, SEGMENT_TOPIC, START_NS, BagWriter
from semla_ros.lab.processes import worker_pool
from semla_ros.lab.world.camera import view
from semla_ros.lab.world.cities import city_style
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.drive import Drive, demo_drive
from semla_ros.lab.world.render import Scene
from semla_ros.labels import labels_json

T = TypeVar("T")
DRIVE_S = 90.0
TRANSITION = "transition"  # name of the stretches between two pure ones


@dataclass(frozen=True, kw_only=True)
class DemoBagOptions:
    """What is recorded.

    Attributes:
        frames: Images in all, taken by the cameras in turn.
        seed: Which streets the drive goes through.
        rate_hz: Images of each camera per second; 0 = such that the drive takes 90 s, within 1 to 30 Hz. The drive is
            stretched over the whole recording.
        cameras: Names; the first looks along the demo's own street, each other one along another street of the
            same city, under the same sky.
        width: Image width in pixels.
        height: Image height in pixels.
        city: Name of one of the shipped cities.
        transport: "raw" (rgb8), "jpeg" or "png" (CompressedImage).
        storage: "mcap" or "sqlite3".
        compression: Of the bag, see `BagWriter`.
        has_truth: Write the label topics.
    """

    frames: int = 1000
    seed: int = 7
    rate_hz: float = 0.0
    cameras: tuple[str, ...] = ("front", "rear")
    width: int = 256
    height: int = 192
    city: str = "boulevard"
    transport: Literal["raw", "jpeg", "png"] = "raw"
    storage: Literal["mcap", "sqlite3"] = "mcap"
    compression: Literal["none", "chunk", "message", "file"] = "none"
    has_truth: bool = True

    def __post_init__(self) -> None:
        if self.frames < 1 or not 0 <= self.rate_hz <= 1000:
            raise ConfigError(
                f"a recording needs frames and a rate, got {counted(self.frames, 'frame')} at {self.rate_hz:g} Hz"
            )
        if self.rate_hz == 0:
            object.__setattr__(self, "rate_hz", min(30.0, max(1.0, round(self.instants / DRIVE_S, 1))))
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"--seed must be at least 0 and below 2^31, got {self.seed}")
        if not (32 <= self.width <= 4096 and 32 <= self.height <= 4096):
            raise ConfigError(f"--size must be 32x32 to 4096x4096 pixels, got {self.width}x{self.height}")
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ConfigError(f"--cameras must be different names, got '{','.join(self.cameras)}'")
        if bad := [name for name in self.cameras if not name.replace("_", "").isalnum()]:
            raise ConfigError(f"--cameras: '{bad[0]}' cannot be part of a topic name; use letters, digits and _")
        city_style(self.city)

    @property
    def instants(self) -> int:
        """How many times the cameras take their images."""
        return -(-self.frames // max(1, len(self.cameras)))

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds."""
        return self.instants / self.rate_hz


def drives(options: DemoBagOptions) -> tuple[Drive, ...]:
    """The drive of each camera."""
    own = demo_drive(options.seed, city=options.city, duration_s=options.duration_s)
    return tuple(replace(own, seed=own.seed + 1000 * number) for number in range(len(options.cameras)))


def record_demo_bag(
    path: Path, options: DemoBagOptions, *, jobs: int = 1, progress: Callable[[int], None] | None = None
) -> None:
    """Write the bag.

    The same options give the same messages, whatever the number of jobs. An interrupt leaves a readable bag of the
    frames written so far.

    Args:
        path: Folder to make.
        options: What to record.
        jobs: Processes that render.
        progress: Told how many frames are written.

    Raises:
        BagError: The folder exists or cannot be written.
    """
    with BagWriter(path, storage=options.storage, compression=options.compression) as bag:
        bag.string("/labels", labels_json(CLASS_NAMES, 1), START_NS)
        segment = None
        for index, scenes in enumerate(_rendered(options, jobs)):
            t_s = index / options.rate_hz
            stamp_ns = START_NS + round(t_s * NANOSECONDS)
            name = drives(options)[0].segment_name(t_s) or TRANSITION
            if name != segment:
                bag.string(SEGMENT_TOPIC, name, stamp_ns)
                segment = name
            first = index * len(options.cameras)
            for camera, scene in zip(options.cameras[: options.frames - first], scenes, strict=False):
                _write_camera(bag, camera, scene, stamp_ns, options)
            if progress is not None:
                progress(min(options.frames, first + len(options.cameras)))


def _write_camera(bag: BagWriter, camera: str, scene: Scene, stamp_ns: int, options: DemoBagOptions) -> None:
    frame_id = f"{camera}_camera_optical_frame"
    if options.transport == "raw":
        bag.image(f"/{camera}/image", scene.image, stamp_ns, frame_id)
    else:
        topic = f"/{camera}/image/compressed"
        bag.compressed_image(topic, scene.image, stamp_ns, frame_id, format=options.transport)
    bag.camera_info(
        f"/{camera}/camera_info",
        stamp_ns,
        frame_id,
        width=options.width,
        height=options.height,
        matrix=camera_matrix(options.city, options.width, options.height),
    )
    if options.has_truth:
        bag.image(f"/{camera}/label", scene.mask, stamp_ns, frame_id)


def camera_matrix(city: str, width: int, height: int) -> NDArray[np.float64]:
    """Intrinsics (3, 3) of a city's camera; the centre of the first pixel is (0, 0), as ROS has it.

    It looks level through a shifted lens: its principal point is on the horizon.
    """
    focal_px, horizon_px = view(city_style(city), width, height)
    return np.array([[focal_px, 0, width / 2 - 0.5], [0, focal_px, horizon_px - 0.5], [0, 0, 1]])


def parse_size(words: str) -> tuple[int, int]:
    """Read "256x192" as (width, height).

    Raises:
        ConfigError: It is not of that form.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", words.strip().lower())
    if match is None:
        raise ConfigError(f"--size must be WIDTHxHEIGHT in pixels, as in 256x192, got '{words}'")
    return int(match[1]), int(match[2])


def _render(all_drives: Sequence[Drive], width: int, height: int, t_s: float) -> list[Scene]:
    scenes = [drive.render(t_s, width, height) for drive in all_drives]
    # Depth is not recorded: leaving it out keeps it from travelling between processes.
    return [replace(scene, depth_m=scene.depth_m[:0]) for scene in scenes]


def _rendered(options: DemoBagOptions, jobs: int) -> Iterator[list[Scene]]:
    """Scenes of all cameras, frame by frame, rendered ahead by several processes."""
    work = partial(_render, drives(options), options.width, options.height)
    times = (index / options.rate_hz for index in range(options.instants))
    if jobs <= 1:
        yield from map(work, times)
        return
    with worker_pool(jobs) as pool:
        yield from ahead(pool, work, times, 4 * jobs)


def ahead(pool: Executor, work: Callable[[float], T], items: Iterable[float], count: int) -> Iterator[T]:
    """`map` in a pool, never more than `count` results ahead; closing it cancels what has not begun."""
    rest = iter(items)
    pending = deque(pool.submit(work, item) for item in islice(rest, count))
    try:
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield result
    finally:
        for future in pending:
            future.cancel()
