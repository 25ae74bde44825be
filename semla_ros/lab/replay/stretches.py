"""Stretches of a recording that no adapter covers: the worklist for training the next one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.replay.gallery import jpeg_bytes
from semla_ros.lab.replay.runners import Outcome
from semla_ros.lab.replay.scores import FrameScore

GAP_S = 1.0  # shorter returns to the library do not end a stretch
SHORTEST_S = 0.5
EXAMPLES = 4


@dataclass
class _Stretch:
    start_s: float
    end_s: float
    start_ns: int
    end_ns: int
    frames: int = 0
    frames_with_truth: int = 0
    confidences: float = 0.0
    mious: float = 0.0
    distances: dict[str, tuple[float, int]] = field(default_factory=dict)
    segments: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


class StretchFinder:
    """Notes while the replay runs where the scene lies outside the library.

    Args:
        folder: Where example frames are put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: _Stretch | None = None
        self._done: list[_Stretch] = []
        self._next_example_s = 0.0

    def add(self, item: ReplayFrame, seconds: float, outcome: Outcome, score: FrameScore) -> None:
        """Look at one frame of the adapting variant."""
        if self._open is not None and seconds - self._open.end_s > GAP_S:
            self._close()
        if not outcome.generation.mix.is_out_of_library:
            return
        if self._open is None:
            self._open = _Stretch(seconds, seconds, item.frame.stamp_ns, item.frame.stamp_ns)
            self._next_example_s = seconds
        stretch = self._open
        stretch.end_s, stretch.end_ns = seconds, item.frame.stamp_ns
        stretch.frames += 1
        stretch.frames_with_truth += item.truth is not None
        stretch.confidences += 0.0 if math.isnan(score.confidence) else score.confidence
        stretch.mious += 0.0 if math.isnan(score.miou) else score.miou
        stretch.segments[item.segment] += 1
        for name, distance in outcome.answer.nearest if outcome.answer else ():
            total, count = stretch.distances.get(name, (0.0, 0))
            stretch.distances[name] = (total + distance, count + 1)
        if seconds >= self._next_example_s and len(stretch.examples) < EXAMPLES:
            # Each further example lies twice as far into the stretch, so that a long one is seen at several places.
            self._next_example_s = seconds + max(0.5, 2 * (seconds - stretch.start_s))
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{item.frame.stamp_ns}{'_' + item.frame.camera if item.frame.camera else ''}.jpg"
            path.write_bytes(jpeg_bytes(item.frame.image))
            stretch.examples.append(str(path.relative_to(self._folder.parent)))

    def stretches(self) -> list[dict[str, Any]]:
        """The stretches, those with the most to gain first: long ones in which the model is unsure."""
        if self._open is not None:
            self._close()
        return sorted((_describe(stretch) for stretch in self._done), key=most_to_gain)

    def _close(self) -> None:
        assert self._open is not None
        if self._open.end_s - self._open.start_s >= SHORTEST_S or self._open.frames > 1:
            self._done.append(self._open)
        self._open = None


def _describe(stretch: _Stretch) -> dict[str, Any]:
    nearest = sorted((total / count, name) for name, (total, count) in stretch.distances.items())[:3]
    return {
        "start_s": round(stretch.start_s, 3),
        "end_s": round(stretch.end_s, 3),
        "duration_s": round(stretch.end_s - stretch.start_s, 3),
        "start_stamp_ns": stretch.start_ns,
        "end_stamp_ns": stretch.end_ns,
        "frames": stretch.frames,
        "frames_with_truth": stretch.frames_with_truth,
        "segment": stretch.segments.most_common(1)[0][0],
        "mean_confidence": round(stretch.confidences / stretch.frames, 6),
        "mean_miou": round(stretch.mious / stretch.frames_with_truth, 6) if stretch.frames_with_truth else None,
        "nearest_adapters": [{"name": name, "distance": round(distance, 6)} for distance, name in nearest],
        "examples": stretch.examples,
    }


def most_to_gain(stretch: Mapping[str, Any]) -> float:
    """Sorting key: seconds times the probability mass that the model did not put on its answers, largest first."""
    return -float(stretch["duration_s"]) * (1.0 - float(stretch["mean_confidence"]))
