"""Training samples from the labelled stretches of a recorded bag."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from semla_ros.config import RetrievalConfig
from semla_ros.errors import BagError, ConfigError, DatasetError, ImageError, counted
from semla_ros.image_files import read_image, read_labels
from semla_ros.lab.bags.frames import FrameOptions, FrameSource, ReplayFrame
from semla_ros.lab.bags.label_map import label_names
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import NANOSECONDS
from semla_ros.results import ImageArray, MaskArray

_UNLABELLED = 255
_MOST_CLASSES = 254  # more would need 16-bit masks


@dataclass(frozen=True)
class Stretch:
    """A part of a bag, both ends included.

    Attributes:
        start: Seconds after the first image, as the replay's report counts; or a stamp in ns.
        end: Of the same kind.
        is_stamp: Whether the ends are image stamps in ns, as a worklist has them beside its seconds.
        shown: How messages call it; empty = by its ends.
    """

    start: float
    end: float
    is_stamp: bool = False
    shown: str = ""

    @classmethod
    def parse(cls, text: str) -> Stretch:
        """Read `START:END` in seconds; an end left out is open.

        Raises:
            ConfigError: Not two numbers, or the end lies before the start.
        """
        start, colon, end = text.partition(":")
        stretch: Stretch | None
        try:
            stretch = cls(float(start or 0), float(end or "inf"))
        except ValueError:
            stretch = None
        if not colon or stretch is None or not 0 <= stretch.start <= stretch.end:
            raise ConfigError(
                f"--stretch {text}: expected START:END in seconds with END not before START, as in 12:30.5"
            )
        return stretch

    def holds(self, seconds: float, stamp_ns: int) -> bool:
        """Whether a frame lies in it."""
        return self.start <= (stamp_ns if self.is_stamp else seconds) <= self.end

    def __str__(self) -> str:
        if self.shown:
            return self.shown
        if self.is_stamp:
            return f"stamps {self.start / NANOSECONDS:.3f}..{self.end / NANOSECONDS:.3f} s"
        return f"{self.start:g}..{self.end:g} s"


def read_worklist(path: Path, bag: Path) -> tuple[Stretch, ...]:
    """The stretches that `semla replay --propose-adapter` lists for a bag, by their stamps.

    The stamps hold whatever part of the bag was replayed. A worklist of many bags names the bag of each stretch;
    those of other bags are left out.

    Raises:
        ConfigError: Not such a file, or it lists nothing for this bag.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        items = [item for item in content["stretches"] if _is_same(item.get("bag", bag), bag)]
        stretches = tuple(
            Stretch(int(item["start_stamp_ns"]), int(item["end_stamp_ns"]), True, _seconds(item)) for item in items
        )
    except OSError as error:
        raise ConfigError(f"worklist {path}: {error.strerror}; 'semla replay --propose-adapter' writes one") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"worklist {path}: expected worklist.json of 'semla replay --propose-adapter'") from None
    if not stretches:
        raise ConfigError(f"worklist {path}: it lists no stretch of bag {bag}; choose another, or use --stretch")
    return stretches


def _seconds(item: Mapping[str, Any]) -> str:
    return f"{item['start_s']:g}..{item['end_s']:g} s" if "start_s" in item and "end_s" in item else ""


def alike(embeddings: Sequence[NDArray[np.float32]], least_spread: float = 0.0) -> list[list[int]]:
    """Which stretches are one kind of scene: an adapter that is trained on one would be used in the other.

    Args:
        embeddings: Scene embeddings of each stretch, shape (N, D).
        least_spread: Of a stretch; short ones have hardly any of their own.

    Returns:
        Groups of indices of stretches, each in its order, by their first.
    """
    centroids = [rows.mean(axis=0) for rows in embeddings]
    spreads = [
        max(least_spread, float(np.percentile(np.linalg.norm(rows - centroid, axis=1), 95)))
        for rows, centroid in zip(embeddings, centroids, strict=True)
    ]
    groups: list[list[int]] = []
    for index, centroid in enumerate(centroids):
        near = [
            group
            for group in groups
            if any(
                np.linalg.norm(centroid - centroids[other])
                <= RetrievalConfig.fade_start * max(spreads[index], spreads[other])
                for other in group
            )
        ]
        groups = [group for group in groups if group not in near]
        groups.append(sorted([index, *(other for group in near for other in group)]))
    return sorted(groups)


def bag_class_names(path: Path) -> tuple[str, ...]:
    """Class names by pixel value from the label topic of a bag; empty where it has none.

    Raises:
        BagError: The bag cannot be read.
    """
    with BagReader(path) as bag:
        return tuple(dict.fromkeys(name for _, name in sorted(label_names(bag).items())))


class BagSamples:
    """The frames of a bag that have ground truth, decoded once and kept as PNG files in a temporary folder.

    Use it as a context manager: leaving it removes the files.

    Args:
        path: The bag.
        class_names: Vocabulary; the bag's truth is brought to it by name.
        options: Topics and truth, as for a replay.
        stretches: Parts to take; empty = the whole bag.

    Attributes:
        topics: Which images are taken, against which truth, and what is left out.
        problems: What could not be read, a line each.

    Raises:
        BagError: The bag cannot be read, lacks a topic asked for, or has no ground truth.
        ConfigError: An option or the class list does not fit the bag.
        DatasetError: No frame in the stretches has ground truth.
    """

    def __init__(
        self, path: Path, class_names: Sequence[str], options: FrameOptions, stretches: Sequence[Stretch] = ()
    ) -> None:
        if len(class_names) > _MOST_CLASSES:
            raise ConfigError(f"class list: {len(class_names)} classes, at most {_MOST_CLASSES} can be trained")
        self._count = 0
        self._stretch_of: list[int] = []  # of each frame on disk; 0 where all are wanted
        self._kept: list[int] = []
        self._folder = tempfile.TemporaryDirectory(prefix="semla-bag-samples-")
        try:
            with BagReader(path) as bag:
                self._read(bag, FrameSource(bag, options, class_names), stretches)
        except BaseException:
            self.close()
            raise

    def _read(self, bag: BagReader, source: FrameSource, stretches: Sequence[Stretch]) -> None:
        if not source.has_truth:
            raise BagError(
                f"bag {bag.path}: no ground truth found for {', '.join(camera.topic for camera in source.cameras)}; "
                f"name it with --truth; the bag has {bag.describe_topics()}"
            )
        taken = [f"{camera.topic} against {camera.truth_topic or 'a folder'}" for camera in source.cameras]
        self.topics = ", ".join([*taken, *(f"not {topic} ({why})" for topic, why in source.left_out.items())])
        frames = frames_inside = 0
        first_ns: int | None = None
        for item in source.frames():
            frames += 1
            first_ns = item.log_ns if first_ns is None else first_ns
            seconds = (item.log_ns - first_ns) / NANOSECONDS
            holding = [at for at, stretch in enumerate(stretches) if stretch.holds(seconds, item.frame.stamp_ns)]
            if stretches and not holding:
                continue
            frames_inside += 1
            self._keep(item, holding[0] if holding else 0)
        self.problems = source.problems.lines()
        if not self._count:
            where = ", ".join(map(str, stretches[:3])) + (", ..." if len(stretches) > 3 else "") or "the whole bag"
            reason = f"; {self.problems[0]}" if self.problems else ""
            raise DatasetError(
                f"bag {bag.path}: no frame with ground truth in {where} "
                f"({frames_inside} of {counted(frames, 'image')} there){reason}; "
                f"choose other stretches, --topic or --truth; the bag has {bag.describe_topics()}"
            )

    def _keep(self, item: ReplayFrame, stretch: int) -> None:
        truth = item.truth
        if truth is None or truth.shape != item.frame.image.shape[:2] or bool((truth == _UNLABELLED).all()):
            return
        _write(self._path("image"), np.ascontiguousarray(item.frame.image[..., ::-1]))
        _write(self._path("mask"), truth.astype(np.uint8, copy=False))
        self._kept.append(self._count)
        self._stretch_of.append(stretch)
        self._count += 1

    def take(self, stretches: Collection[int]) -> None:
        """Go on with the frames of some of the stretches alone."""
        self._kept = [index for index in self._kept if self._stretch_of[index] in stretches]

    def of_stretch(self, stretch: int) -> list[int]:
        """Indices of the frames of a stretch."""
        return [place for place, index in enumerate(self._kept) if self._stretch_of[index] == stretch]

    def _path(self, kind: str, index: int | None = None) -> Path:
        return Path(self._folder.name) / f"{kind}{self._count if index is None else self._kept[index]}.png"

    def __len__(self) -> int:
        return len(self._kept)

    def image(self, index: int) -> ImageArray:
        """RGB image, shape (H, W, 3), uint8."""
        return _again(read_image, self._path("image", index))

    def mask(self, index: int) -> MaskArray:
        """Class index per pixel, shape (H, W), uint8; 255 is ignored."""
        return _again(read_labels, self._path("mask", index))

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def __enter__(self) -> BagSamples:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_same(named: str | Path, bag: Path) -> bool:
    return Path(named).resolve() == bag.resolve()


def _write(path: Path, pixels: ImageArray) -> None:
    if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise DatasetError(f"{path} cannot be written; is the temporary folder full?")


def _again(read: Callable[[Path], NDArray[Any]], path: Path) -> NDArray[Any]:
    try:
        return read(path)
    except ImageError:
        raise DatasetError(f"{path} cannot be read again; was the temporary folder cleaned meanwhile?") from None
