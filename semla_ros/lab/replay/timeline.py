"""What a replay measures over time, for the report's charts, in memory that does not grow with the recording."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.replay.runners import Outcome
from semla_ros.lab.replay.scores import FrameScore, overlap_miou, six_digits

_BINS = 300  # even; each doubles its length when a recording outgrows them
_FIRST_BIN_S = 0.1
_MEASURES = ("confidence", "flicker", "latency", "drift", "out")


class Timeline:
    """Measures over time in at most `_BINS` stretches of equal length.

    Args:
        class_count: Size K of the vocabulary.
    """

    def __init__(self, class_count: int) -> None:
        self._bin_s = _FIRST_BIN_S
        self._origin_ns: int | None = None
        self._frames = _Table(())
        self._segments = _Table(())  # segment -> frames
        self._means = _Table((2,))  # variant, measure -> sum and number of values
        self._latency_max = _Table((), np.maximum)  # variant -> milliseconds
        self._overlaps = _Table((3, class_count))  # variant -> see `overlaps`
        self._shares = _Table(())  # variant, adapter -> sum of weights

    def seconds(self, log_ns: int) -> float:
        """Seconds since the first frame."""
        return 0.0 if self._origin_ns is None else max(0, log_ns - self._origin_ns) / 1e9

    def add(self, item: ReplayFrame, outcomes: Mapping[str, Outcome], scores: Mapping[str, FrameScore]) -> None:
        """Add one frame."""
        if self._origin_ns is None:
            self._origin_ns = item.log_ns
        while (number := int(self.seconds(item.log_ns) / self._bin_s)) >= _BINS:
            self._bin_s *= 2
            for table in (
                self._frames, self._segments, self._means, self._latency_max, self._overlaps, self._shares,
            ):  # fmt: skip
                table.join_pairs()
        self._frames.add(number, "", 1)
        self._segments.add(number, item.segment, 1)
        for name, outcome in outcomes.items():
            answer, mix, score = outcome.answer, outcome.generation.mix, scores[name]
            measures = {"confidence": score.confidence, "flicker": score.flicker, "out": float(mix.is_out_of_library)}
            if answer is not None and outcome.is_of(item):
                measures["latency"] = answer.latency_ms["total"]
                self._latency_max.add(number, name, measures["latency"])
            if answer is not None and answer.step is not None and answer.step.drift is not None:
                measures["drift"] = answer.step.drift
            for measure, value in measures.items():
                if not math.isnan(value):
                    self._means.add(number, (name, measure), (value, 1))
            if score.overlaps is not None:
                self._overlaps.add(number, name, score.overlaps)
            for adapter, share in mix.shares().items():
                self._shares.add(number, (name, adapter), share)

    def series(self, variants: Sequence[str]) -> dict[str, Any]:
        """Lists over time for the report: time, segment, and per variant each measure, None where nothing is known."""
        used = np.flatnonzero(self._frames[""])
        segments = list(self._segments)
        by_segment = np.stack([self._segments[segment][used] for segment in segments])
        return {
            "bin_s": self._bin_s,
            "t": [round((int(number) + 0.5) * self._bin_s, 3) for number in used],
            "segment": [segments[index] for index in by_segment.argmax(axis=0)],
            "variants": {name: self._variant(name, used) for name in variants},
        }

    def _variant(self, name: str, used: np.ndarray[Any, np.dtype[np.intp]]) -> dict[str, Any]:
        def means(measure: str) -> list[float | None]:
            sums = self._means[name, measure][:, used].T.tolist()
            return [six_digits(total / count) if count else None for total, count in sums]

        adapters = sorted(adapter for variant, adapter in self._shares if variant == name)
        shares = {adapter: self._shares[name, adapter][used] / self._frames[""][used] for adapter in adapters}
        return {
            **{measure: means(measure) for measure in _MEASURES},
            "latency_max": [six_digits(value) if value else None for value in self._latency_max[name][used].tolist()],
            "miou": [overlap_miou(self._overlaps[name][..., number]) for number in used],
            "weights": {adapter: [round(share, 4) for share in over.tolist()] for adapter, over in shares.items()},
        }


class _Table(defaultdict[Any, np.ndarray[Any, np.dtype[np.float64]]]):
    """By any key, an array whose last axis are the bins; zero where nothing was added."""

    def __init__(self, shape: tuple[int, ...], join: np.ufunc = np.add) -> None:
        super().__init__(lambda: np.zeros((*shape, _BINS)))
        self._join = join

    def add(self, number: int, key: Any, value: Any) -> None:
        """Add to one bin."""
        array = self[key]
        array[..., number] = self._join(array[..., number], value)

    def join_pairs(self) -> None:
        """Make one bin of every two."""
        for array in self.values():
            array[..., : _BINS // 2] = self._join(array[..., ::2], array[..., 1::2])
            array[..., _BINS // 2 :] = 0
