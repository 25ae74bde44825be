"""What a replay measures, in memory that does not grow with the length of the recording."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.evaluation.miou import MiouMeter, confusion_matrix, mean_iou
from semla_ros.lab.replay.runners import Made, Outcome, ReplayVariant
from semla_ros.labels import unlabelled_of
from semla_ros.results import MaskArray

CLEAR_SEGMENTS = ("clear", "day")  # stretches that a base model is trained for
BETWEEN_SEGMENTS = ("transition", "")
MAX_SEGMENTS = 200
_BINS = 300  # of the timeline; each doubles its length when a recording outgrows them
_FIRST_BIN_S = 0.1


class Latencies:
    """Percentiles of milliseconds from a histogram with steps of 2 %, so that memory is bounded."""

    _BASE, _LOWEST_MS, _SIZE = 1.02, 0.001, 1200

    def __init__(self) -> None:
        self._counts = np.zeros(self._SIZE, np.int64)
        self._largest_ms = 0.0
        self._total_ms = 0.0

    def add(self, milliseconds: float) -> None:
        """Count one run."""
        position = math.log(max(milliseconds, self._LOWEST_MS) / self._LOWEST_MS, self._BASE)
        self._counts[min(int(position), self._SIZE - 1)] += 1
        self._largest_ms = max(self._largest_ms, milliseconds)
        self._total_ms += milliseconds

    def percentile(self, percent: float) -> float:
        """Milliseconds that `percent` of the runs stay below, exact to 2 %."""
        total = int(self._counts.sum())
        if total == 0:
            return math.nan
        index = int(np.searchsorted(np.cumsum(self._counts), percent / 100 * total))
        return float(min(self._LOWEST_MS * self._BASE ** (index + 0.5), self._largest_ms))

    def summary(self) -> dict[str, float]:
        """Median, 95th and 99th percentile, largest, mean and number of runs."""
        count = int(self._counts.sum())
        return {
            "p50": round(self.percentile(50), 3),
            "p95": round(self.percentile(95), 3),
            "p99": round(self.percentile(99), 3),
            "max": round(self._largest_ms, 3),
            "mean": round(self._total_ms / max(count, 1), 3),
            "count": count,
        }


@dataclass(frozen=True, kw_only=True)
class FrameScore:
    """One variant on one frame.

    Attributes:
        miou: Mean IoU over the classes in the frame's truth; NaN without truth.
        confidence: Mean probability of the chosen classes, 0..1; NaN where there was no mask.
        flicker: Share of pixels whose class differs from the camera's previous mask; NaN at the first one.
        counts: Confusion matrix (K, K + 1); None without truth.
    """

    miou: float = math.nan
    confidence: float = math.nan
    flicker: float = math.nan
    counts: NDArray[np.int64] | None = None


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        if not math.isnan(value):
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        return round(self.total / self.count, 6) if self.count else None


class VariantScore:
    """Everything that is measured of one variant.

    Args:
        variant: What it is.
        class_names: The vocabulary.
    """

    def __init__(self, variant: ReplayVariant, class_names: Sequence[str]) -> None:
        self.variant = variant
        self.class_names = tuple(class_names)
        self.unlabelled = unlabelled_of(class_names)
        self.meter = MiouMeter(len(class_names), ignore=self.unlabelled)
        self.segments: dict[str, MiouMeter] = {}
        self.segment_adapters: dict[str, dict[str, float]] = {}
        self.frames = 0
        self.masks = 0
        self.generations: set[int] = set()
        self.fusions = 0
        self.failures = 0
        self.out_of_library_s = 0.0
        self.weights: dict[str, float] = {}
        self.latencies: dict[str, Latencies] = {}
        self.dropped = 0
        self._digest = hashlib.sha256()
        self._confidence, self._flicker = _Mean(), _Mean()
        self._previous: dict[str, MaskArray] = {}
        self._previous_ns: int | None = None
        self._last_generation = -1

    def add_made(self, made: Sequence[Made]) -> None:
        """Count masks that were made, in order, into the digest."""
        for item in made:
            self._digest.update(np.ascontiguousarray(item.segmentation.mask).data)
            self.masks += 1
            step = item.step
            self.fusions += step is not None and step.action == "fused"
            self.failures += step is not None and step.action == "failed"
            stages = {**(step.latency_ms if step else {}), **item.segmentation.latency_ms}
            for stage, milliseconds in stages.items():
                self.latencies.setdefault(stage, Latencies()).add(milliseconds)

    def add(self, item: ReplayFrame, outcome: Outcome) -> FrameScore:
        """Measure one frame."""
        self.add_made(outcome.made)
        self.frames += 1
        self._add_generation(item, outcome)
        mask = outcome.mask
        counts = None
        if item.truth is not None:
            # Before the first mask is ready, a vehicle sees nothing: each pixel counts as missed.
            predicted = np.full(item.truth.shape, self.unlabelled, np.uint16) if mask is None else mask
            if predicted.shape != item.truth.shape:
                size = (item.truth.shape[1], item.truth.shape[0])
                predicted = cv2.resize(predicted, size, interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
            counts = confusion_matrix(item.truth, predicted, len(self.class_names), ignore=self.unlabelled)  # type: ignore[arg-type]
            self.meter.add_counts(counts)
            self._segment(item.segment).add_counts(counts)
        flicker = math.nan
        if mask is not None:
            previous = self._previous.get(item.frame.camera)
            if previous is not None and previous.shape == mask.shape:
                flicker = float(np.count_nonzero(previous != mask) / mask.size)
            self._previous[item.frame.camera] = mask
        confidence = math.nan if outcome.confidence is None else float(outcome.confidence.mean()) / 255
        self._confidence.add(confidence)
        self._flicker.add(flicker)
        miou = math.nan if counts is None else mean_iou(counts)
        return FrameScore(miou=miou, confidence=confidence, flicker=flicker, counts=counts)

    def summary(self) -> dict[str, Any]:
        """The variant's entry in `summary.json`."""
        has_truth = self.meter.frames > 0
        iou = self.meter.per_class
        return {
            "miou": _rounded(self.meter.mean) if has_truth else None,
            "frames": self.masks,
            "mask_sha256": self._digest.hexdigest(),
            "frames_with_truth": self.meter.frames,
            "per_class": {name: _rounded(float(value)) for name, value in zip(self.class_names, iou, strict=True)}
            if has_truth
            else {},
            "per_segment": {
                name: {"miou": _rounded(meter.mean), "frames": meter.frames}
                for name, meter in self.segments.items()
                if name
            },
            "shifted_miou": self._shifted_miou(),
            "pixels": _overlaps(self.meter),
            "segment_pixels": {name: _overlaps(meter) for name, meter in self.segments.items() if name},
            "confidence": self._confidence.value,
            "flicker": self._flicker.value,
            "out_of_library_s": round(self.out_of_library_s, 3),
            "fusions": self.fusions,
            "generations": len(self.generations),
            "adaptation_failures": self.failures,
            "dropped": self.dropped,
            "adapters": {
                name: round(total / max(self.frames, 1), 6)
                for name, total in sorted(self.weights.items(), key=lambda entry: -entry[1])
            },
            "segment_adapters": {
                segment: max(weights, key=lambda name: weights[name])
                for segment, weights in self.segment_adapters.items()
                if weights and segment
            },
            "latency_ms": {stage: latencies.summary() for stage, latencies in self.latencies.items()},
        }

    def _add_generation(self, item: ReplayFrame, outcome: Outcome) -> None:
        mix = outcome.generation.mix
        self.generations.add(outcome.generation.number)
        per_segment = self.segment_adapters.setdefault(self._segment_name(item.segment), {})
        for name, weight in mix.shares().items():
            self.weights[name] = self.weights.get(name, 0.0) + weight
            per_segment[name] = per_segment.get(name, 0.0) + weight
        if self._previous_ns is not None and mix.is_out_of_library:
            # A pause of the recording is no time in which the vehicle drove.
            self.out_of_library_s += min(max(0, item.log_ns - self._previous_ns) / 1e9, 1.0)
        self._previous_ns = item.log_ns

    def _segment_name(self, name: str) -> str:
        is_known = name in self.segment_adapters or len(self.segment_adapters) < MAX_SEGMENTS
        return name if is_known else "others"

    def _segment(self, name: str) -> MiouMeter:
        name = self._segment_name(name)
        if name not in self.segments:
            self.segments[name] = MiouMeter(len(self.class_names), ignore=self.unlabelled)
        return self.segments[name]

    def _shifted_miou(self) -> float | None:
        """Mean IoU over the named stretches that are neither clear nor between two; None where the bag names none."""
        shifted = [meter for name, meter in self.segments.items() if is_shifted(name)]
        if not shifted:
            return None
        pooled = MiouMeter(len(self.class_names), ignore=self.unlabelled)
        for meter in shifted:
            pooled.add_counts(meter.counts, meter.frames)
        return _rounded(pooled.mean)


def is_shifted(segment: str) -> bool:
    """Whether a stretch is neither what the base model was trained for nor between two."""
    return segment not in (*CLEAR_SEGMENTS, *BETWEEN_SEGMENTS)


def _overlaps(meter: MiouMeter) -> list[list[int]]:
    """Pixels per class: right, in the truth, predicted. They add up over recordings."""
    classes = meter.counts.shape[0]
    hits, truth = np.diagonal(meter.counts), meter.counts.sum(axis=1)
    return [hits.tolist(), truth.tolist(), meter.counts[:, :classes].sum(axis=0).tolist()]


class Agreement:
    """Share of pixels on which two variants give the same class."""

    def __init__(self) -> None:
        self._means: dict[tuple[str, str], _Mean] = {}

    def add(self, outcomes: Mapping[str, Outcome]) -> dict[tuple[str, str], float]:
        """Compare the masks of one frame; returns the share for each pair."""
        names = [name for name, outcome in outcomes.items() if outcome.mask is not None]
        shares = {}
        for index, first in enumerate(names):
            for second in names[index + 1 :]:
                a, b = outcomes[first].mask, outcomes[second].mask
                if a is not None and b is not None and a.shape == b.shape:
                    shares[first, second] = float(np.count_nonzero(a == b) / a.size)
                    self._means.setdefault((first, second), _Mean()).add(shares[first, second])
        return shares

    def summary(self) -> dict[str, float | None]:
        """Mean share for each pair, keyed "a|b"."""
        return {f"{first}|{second}": mean.value for (first, second), mean in self._means.items()}


@dataclass
class _Bin:
    """Sums over one stretch of the timeline, per variant."""

    frames: int = 0
    segments: dict[str, int] = field(default_factory=dict)
    values: dict[tuple[str, str], _Mean] = field(default_factory=dict)  # (variant, measure)
    peaks: dict[tuple[str, str], float] = field(default_factory=dict)
    overlaps: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # variant -> (3, K) hits, truth, predicted
    weights: dict[str, dict[str, float]] = field(default_factory=dict)  # variant -> adapter -> sum
    latest: dict[tuple[str, str], float] = field(default_factory=dict)

    def merge(self, other: _Bin) -> None:
        """Add the next stretch."""
        self.frames += other.frames
        for segment, count in other.segments.items():
            self.segments[segment] = self.segments.get(segment, 0) + count
        for key, mean in other.values.items():
            mine = self.values.setdefault(key, _Mean())
            mine.total, mine.count = mine.total + mean.total, mine.count + mean.count
        for key, peak in other.peaks.items():
            self.peaks[key] = max(self.peaks.get(key, peak), peak)
        for variant, sums in other.overlaps.items():
            self.overlaps[variant] = self.overlaps[variant] + sums if variant in self.overlaps else sums
        for variant, weights in other.weights.items():
            target = self.weights.setdefault(variant, {})
            for name, weight in weights.items():
                target[name] = target.get(name, 0.0) + weight


class Timeline:
    """Measures over time in at most `_BINS` stretches of equal length."""

    def __init__(self) -> None:
        self.bin_s = _FIRST_BIN_S
        self._bins: dict[int, _Bin] = {}
        self._origin_ns: int | None = None

    def seconds(self, log_ns: int) -> float:
        """Seconds since the first frame."""
        return 0.0 if self._origin_ns is None else max(0, log_ns - self._origin_ns) / 1e9

    def add(self, item: ReplayFrame, outcomes: Mapping[str, Outcome], scores: Mapping[str, FrameScore]) -> None:
        """Add one frame."""
        if self._origin_ns is None:
            self._origin_ns = item.log_ns
        number = int(self.seconds(item.log_ns) / self.bin_s)
        while number >= _BINS:
            self._double()
            number = int(self.seconds(item.log_ns) / self.bin_s)
        stretch = self._bins.setdefault(number, _Bin())
        stretch.frames += 1
        stretch.segments[item.segment] = stretch.segments.get(item.segment, 0) + 1
        for name, outcome in outcomes.items():
            score = scores[name]
            measures = {"confidence": score.confidence, "flicker": score.flicker}
            if outcome.is_own:
                measures["latency"] = outcome.latency_ms.get("total", math.nan)
            if outcome.step is not None and outcome.step.drift is not None:
                measures["drift"] = outcome.step.drift
            measures["out"] = float(outcome.generation.mix.is_out_of_library)
            for measure, value in measures.items():
                stretch.values.setdefault((name, measure), _Mean()).add(value)
                if measure in ("latency", "drift") and not math.isnan(value):
                    stretch.peaks[name, measure] = max(stretch.peaks.get((name, measure), value), value)
            if score.counts is not None:
                classes = score.counts.shape[0]
                sums = np.stack(
                    [np.diagonal(score.counts), score.counts.sum(axis=1), score.counts[:, :classes].sum(axis=0)]
                )
                stretch.overlaps[name] = stretch.overlaps[name] + sums if name in stretch.overlaps else sums
            weights = stretch.weights.setdefault(name, {})
            mix = outcome.generation.mix
            for adapter, weight in mix.shares().items():
                weights[adapter] = weights.get(adapter, 0.0) + weight

    def _double(self) -> None:
        self.bin_s *= 2
        merged: dict[int, _Bin] = {}
        for number in sorted(self._bins):
            half = number // 2
            if half in merged:
                merged[half].merge(self._bins[number])
            else:
                merged[half] = self._bins[number]
        self._bins = merged

    def series(self, variants: Sequence[str]) -> dict[str, Any]:
        """Lists over time for the report: time, segment, and per variant each measure, None where nothing is known."""
        numbers = sorted(self._bins)
        bins = [self._bins[number] for number in numbers]
        result: dict[str, Any] = {
            "bin_s": self.bin_s,
            "t": [round((number + 0.5) * self.bin_s, 3) for number in numbers],
            "segment": [max(item.segments, key=lambda name: item.segments[name]) for item in bins],
            "variants": {},
        }
        for name in variants:
            adapters = sorted({adapter for item in bins for adapter in item.weights.get(name, {})})
            measures: dict[str, Any] = {
                measure: [
                    None
                    if (mean := item.values.get((name, measure))) is None or not mean.count
                    else _rounded(mean.total / mean.count)
                    for item in bins
                ]
                for measure in ("confidence", "flicker", "latency", "drift", "out")
            }
            measures["latency_max"] = [_optional(item.peaks.get((name, "latency"))) for item in bins]
            measures["miou"] = [overlap_miou(item.overlaps.get(name)) for item in bins]
            measures["weights"] = {
                adapter: [round(item.weights.get(name, {}).get(adapter, 0.0) / item.frames, 4) for item in bins]
                for adapter in adapters
            }
            result["variants"][name] = measures
        return result


def overlap_miou(sums: NDArray[np.int64] | None) -> float | None:
    """Mean IoU of pixels per class, shape (3, K): right, in the truth, predicted; None where there is no truth."""
    if sums is None:
        return None
    hits, truth, predicted = sums.astype(np.float64)
    is_there = truth > 0
    if not is_there.any():
        return None
    return _rounded(float((hits[is_there] / (truth + predicted - hits)[is_there]).mean()))


def _optional(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _rounded(value: float) -> float | None:
    """Six digits; None for NaN, which JSON does not have."""
    return None if math.isnan(value) else round(value, 6)
