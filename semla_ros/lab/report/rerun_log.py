"""What a model sees and how it adapts, for the Rerun viewer: into a file, or to a viewer that runs. Needs rerun-sdk."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import ConfigError, first_line
from semla_ros.extras import how_to_install
from semla_ros.lab.report.embedding_map import Scenery
from semla_ros.lab.report.palette import domain_colour
from semla_ros.labels import palette_of
from semla_ros.results import FloatArray, ImageArray, MaskArray

VIEWER = "viewer"  # the target that starts one
TIMELINE = "time"
ROOM_BYTES = 1 << 20  # that a file must have: Rerun can hang where it has not enough for its begin
FLUSH_S = 60.0  # a disk may be slow, but not so slow


class RerunLog:
    """One recording: cameras with their masks in class colours, the mix over time, and the map of the library.

    Args:
        target: A file (`.rrd`); "viewer", which is started; or the address of one that runs (`rerun+http://…`).
        is_dated: Times are since 1970, not since the begin of a drive.

    Raises:
        ConfigError: rerun-sdk is not installed, the target is none of these, or no viewer answers.
        OSError: The file cannot be written.
    """

    def __init__(self, target: str, *, is_dated: bool = False) -> None:
        try:
            rerun = importlib.import_module("rerun")
            blueprint = importlib.import_module("rerun.blueprint")
        except ImportError:
            raise ConfigError(f"--rerun needs rerun-sdk: {how_to_install('rerun')}") from None
        self._rerun = rerun
        self._recording = recording = rerun.RecordingStream("semla_ros")
        views = blueprint.Horizontal(
            blueprint.Spatial2DView(origin="cameras", name="cameras"),
            blueprint.Vertical(
                blueprint.TimeSeriesView(origin="mix", name="mix over time"),
                blueprint.Spatial2DView(origin="library", name="map of the library"),
            ),
        )
        self._target, self._moment = target, "timestamp" if is_dated else "duration"
        with self._told():
            if target == VIEWER:
                scripts = Path(sys.executable).parent  # has the viewer; on PATH where its environment is active
                os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{scripts}"
                recording.spawn(default_blueprint=views)
            elif target.startswith("rerun+"):
                recording.connect_grpc(target, default_blueprint=views)
                recording.flush()  # fails where nothing answers
            elif target.endswith(".rrd"):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                Path(target).write_bytes(bytes(ROOM_BYTES))
                recording.save(target, default_blueprint=views)
            else:
                raise ConfigError(f"--rerun takes FILE.rrd, '{VIEWER}' or rerun+http://HOST:PORT/proxy, got '{target}'")
        self._classes: tuple[str, ...] = ()
        self._shown: list[str] = []  # adapters with a line, in the order of their first weight
        self._scenery: Scenery | None = None

    def classes(self, names: Sequence[str]) -> None:
        """Name the classes of the masks that follow, and give them their colours."""
        if tuple(names) != self._classes:
            self._classes = tuple(names)
            context = [
                self._rerun.AnnotationInfo(id=index, label=name, color=[int(value) for value in colour])
                for index, (name, colour) in enumerate(zip(names, palette_of(names), strict=True))
            ]
            self._recording.log("cameras", self._rerun.AnnotationContext(context), static=True)

    def library(self, scenery: Scenery) -> None:
        """Draw the map of a library: centroids and known scenes on their two axes of greatest variance."""
        self._scenery = scenery
        for name, points in scenery.drawn.items():
            colour = _shade(scenery, name)
            places = _upright(scenery.plane.place(points))
            self._recording.log(
                ["library", "scenes", name],
                self._rerun.Points2D(places, colors=[*colour, 110], radii=0.12),
                static=True,
            )
        self._draw_centroids({})

    def time(self, seconds: float) -> None:
        """What follows happened then, in seconds of the drive or since 1970."""
        self._recording.set_time(TIMELINE, **{self._moment: seconds})

    def image(self, camera: str, pixels: ImageArray) -> None:
        """What a camera saw, RGB."""
        self._recording.log(["cameras", camera, "image"], self._rerun.Image(pixels).compress(jpeg_quality=85))

    def mask(self, camera: str, mask: MaskArray, variant: str = "mask") -> None:
        """What was made of it: class index per pixel."""
        self._recording.log(["cameras", camera, variant], self._rerun.SegmentationImage(mask))

    def figures(self, path: str, values: Mapping[str, float]) -> None:
        """A number of each name at this time; NaN is left out."""
        for name, value in values.items():
            if not np.isnan(value):
                self._recording.log([path, name], self._rerun.Scalars([value]))

    def mix(self, shares: Mapping[str, float]) -> None:
        """Weight of each adapter in the model, and of the base model."""
        for name in shares:
            if name not in self._shown:
                self._shown.append(name)
                style = self._rerun.SeriesLines(names=name, colors=[*domain_colour(name), 255], widths=2)
                self._recording.log(["mix", name], style, static=True)
        for name in self._shown:
            self._recording.log(["mix", name], self._rerun.Scalars([shares.get(name, 0.0)]))
        if self._scenery is not None:
            self._draw_centroids(shares)

    def scene(self, embedding: FloatArray) -> None:
        """Where the scene falls in the map."""
        if self._scenery is not None:
            place = _upright(self._scenery.plane.place(embedding)[None])
            mark = self._rerun.Points2D(place, colors=[20, 24, 32, 255], radii=0.5, labels=["scene"])
            self._recording.log("library/scene", mark)

    def close(self) -> None:
        """Write what is left, and end the recording.

        Raises:
            ConfigError: Something could not be written, as on a full disk, or the viewer went away.
        """
        with self._told():
            self._recording.flush(timeout_sec=FLUSH_S)
        self._recording.disconnect()  # hangs where something could not be written

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Rerun's own errors in one line."""
        try:
            yield
        except RuntimeError as error:
            raise ConfigError(f"--rerun {self._target}: {first_line(error)}") from None

    def _draw_centroids(self, shares: Mapping[str, float]) -> None:
        """Each adapter where its domain lies, the larger the more it weighs; named while it takes part."""
        assert self._scenery is not None
        names = list(self._scenery.centroids)
        places = _upright(
            self._scenery.plane.place(np.stack([np.asarray(item) for item in self._scenery.centroids.values()]))
        )
        points = self._rerun.Points2D(
            places,
            colors=[_shade(self._scenery, name) for name in names],
            radii=[0.25 + 0.75 * shares.get(name, 0.0) for name in names],
            labels=names,
            show_labels=len(names) <= 40,
        )
        self._recording.log("library/centroids", points)


def _shade(scenery: Scenery, name: str) -> tuple[int, int, int]:
    return domain_colour(scenery.families.get(name) or name)


def _upright(places: NDArray[Any]) -> NDArray[Any]:
    """Rerun's second axis goes downwards, that of a map upwards."""
    return places * (1.0, -1.0)
