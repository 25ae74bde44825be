"""What a replay measures, in memory that does not grow with the length of the recording."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.evaluation.miou import Counts, MiouMeter, confusion_matrix, mean_iou, mean_iou_of, overlaps
from semla_ros.lab.replay.runners import Answer, Outcome
from semla_ros.lab.report.charts import BETWEEN
from semla_ros.labels import unlabelled_of
from semla_ros.results import MaskArray
from semla_ros.timing import LatencyWindow

CLEAR_SEGMENTS = ("clear", "day")  # stretches that a base model is trained for
MAX_SEGMENTS = 200
LATENCY_WINDOW = 10_000  # latest masks that latencies are told of


@dataclass(frozen=True, kw_only=True)
class FrameScore:
    """One variant on one frame.

    Attributes:
        miou: Mean IoU over the classes in the frame's truth; NaN without truth.
        confidence: Mean probability of the chosen classes, 0..1; NaN where there was no mask.
        flicker: Share of pixels whose class differs from the camera's previous mask; NaN at the first one.
        overlaps: See `overlaps`; None without truth.
    """

    miou: float = math.nan
    confidence: float = math.nan
    flicker: float = math.nan
    overlaps: Counts | None = None


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


@dataclass
class _Visit:
    """A stretch of the drive from its first frame to its last; where it comes back, that is another visit."""

    segment: str
    meter: MiouMeter
    shares: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def summary(self) -> dict[str, Any]:
        heaviest = max(self.shares, key=self.shares.__getitem__)
        return {
            "segment": self.segment,
            "miou": six_digits(self.meter.mean),
            "frames": self.meter.frames,
            "adapter": heaviest,
        }


class VariantScore:
    """Everything that is measured of one variant.

    Args:
        class_names: The vocabulary.

    Attributes:
        facts: What the runner knows at the end, see `VariantRunner.facts`.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.facts: Mapping[str, Any] = {"dropped": 0}
        self._class_names = tuple(class_names)
        self._unlabelled = unlabelled_of(class_names)
        self._whole = self._meter()
        self._segments: dict[str, MiouMeter] = defaultdict(self._meter)
        self._shares: dict[str, float] = defaultdict(float)
        self._segment_shares: dict[str, dict[str, float]] = {}
        self._visits: list[_Visit] = []
        self._segment = ""
        self._frames = self._masks = 0
        self._actions: Counter[str] = Counter()  # of the adaptation path
        self._generations: set[int] = set()
        self._out_of_library_s = 0.0
        self._latencies = LatencyWindow(LATENCY_WINDOW)
        self._digest = hashlib.sha256()
        self._confidence, self._flicker = _Mean(), _Mean()
        self._previous: dict[str, MaskArray] = {}
        self._previous_ns: int | None = None

    def add_made(self, made: Sequence[Answer]) -> None:
        """Count masks that were made, in order, into the digest."""
        for answer in made:
            self._digest.update(np.ascontiguousarray(answer.segmentation.mask).data)
            self._masks += 1
            if answer.step is not None:
                self._actions[answer.step.action] += 1
            self._latencies.add(answer.latency_ms)

    def add(self, item: ReplayFrame, outcome: Outcome) -> FrameScore:
        """Measure one frame."""
        self.add_made(outcome.made)
        self._frames += 1
        segment = self._segment_name(item.segment)
        visit = self._visit(segment)
        self._add_generation(item, outcome, segment, visit)
        counts = self._compare(item.truth, outcome.mask) if item.truth is not None else None
        if counts is not None:
            self._whole.add_counts(counts)
            self._segments[segment].add_counts(counts)
            if visit is not None:
                visit.meter.add_counts(counts)
        confidence = outcome.answer.segmentation.confidence if outcome.answer else None
        score = FrameScore(
            miou=math.nan if counts is None else mean_iou(counts),
            confidence=math.nan if confidence is None else float(confidence.mean()) / 255,
            flicker=self._changed_share(item.frame.camera, outcome.mask),
            overlaps=None if counts is None else overlaps(counts),
        )
        self._confidence.add(score.confidence)
        self._flicker.add(score.flicker)
        return score

    def summary(self) -> dict[str, Any]:
        """The variant's entry in `summary.json`."""
        has_truth = self._whole.frames > 0
        named = {name: meter for name, meter in self._segments.items() if name}
        return {
            "miou": six_digits(self._whole.mean) if has_truth else None,
            "frames": self._masks,
            "mask_sha256": self._digest.hexdigest(),
            "frames_with_truth": self._whole.frames,
            "per_class": {
                name: six_digits(float(value))
                for name, value in zip(self._class_names, self._whole.per_class, strict=True)
                if has_truth
            },
            "per_segment": {
                name: {"miou": six_digits(meter.mean), "frames": meter.frames} for name, meter in named.items()
            },
            "visits": [visit.summary() for visit in self._visits if visit.meter.frames],
            "shifted_miou": self._shifted_miou(),
            "pixels": overlaps(self._whole.counts).tolist(),
            "segment_pixels": {name: overlaps(meter.counts).tolist() for name, meter in named.items()},
            "confidence": self._confidence.value,
            "flicker": self._flicker.value,
            "out_of_library_s": round(self._out_of_library_s, 3),
            "fusions": self._actions["fused"],
            "recalls": self._actions["recalled"],
            "generations": len(self._generations),
            "adaptation_failures": self._actions["failed"],
            "adapters": {
                name: round(total / max(self._frames, 1), 6)
                for name, total in sorted(self._shares.items(), key=lambda entry: -entry[1])
            },
            "segment_adapters": {
                segment: max(shares, key=shares.__getitem__)
                for segment, shares in self._segment_shares.items()
                if segment
            },
            "latency_ms": {
                stage: {key: round(value, 3) for key, value in asdict(latency).items()}
                for stage, latency in self._latencies.summary().items()
            },
            **self.facts,
        }

    def _meter(self) -> MiouMeter:
        return MiouMeter(len(self._class_names), ignore=self._unlabelled)

    def _segment_name(self, name: str) -> str:
        is_known = name in self._segment_shares or len(self._segment_shares) < MAX_SEGMENTS
        return name if is_known else "others"

    def _visit(self, segment: str) -> _Visit | None:
        """The time in a named stretch that goes on, or begins; None between stretches and where there were too many."""
        has_changed, self._segment = segment != self._segment, segment
        if segment in BETWEEN:
            return None
        if has_changed and len(self._visits) < MAX_SEGMENTS:
            self._visits.append(_Visit(segment, self._meter()))
        return self._visits[-1] if self._visits[-1].segment == segment else None

    def _add_generation(self, item: ReplayFrame, outcome: Outcome, segment: str, visit: _Visit | None) -> None:
        mix = outcome.generation.mix
        self._generations.add(outcome.generation.number)
        in_segment = self._segment_shares.setdefault(segment, defaultdict(float))
        for name, share in mix.shares().items():
            self._shares[name] += share
            in_segment[name] += share
            if visit is not None:
                visit.shares[name] += share
        if self._previous_ns is not None and mix.is_out_of_library:
            # A pause of the recording is no time in which the vehicle drove.
            self._out_of_library_s += min(max(0, item.log_ns - self._previous_ns) / 1e9, 1.0)
        self._previous_ns = item.log_ns

    def _compare(self, truth: MaskArray, mask: MaskArray | None) -> Counts:
        # Before the first mask is ready, a vehicle sees nothing: each pixel counts as missed.
        predicted = np.full(truth.shape, self._unlabelled, np.uint16) if mask is None else mask
        if predicted.shape != truth.shape:
            size = (truth.shape[1], truth.shape[0])
            predicted = cv2.resize(predicted, size, interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
        return confusion_matrix(truth, predicted, len(self._class_names), ignore=self._unlabelled)  # type: ignore[arg-type]

    def _changed_share(self, camera: str, mask: MaskArray | None) -> float:
        if mask is None:
            return math.nan
        previous = self._previous.get(camera)
        self._previous[camera] = mask
        if previous is None or previous.shape != mask.shape:
            return math.nan
        return float(np.count_nonzero(previous != mask) / mask.size)

    def _shifted_miou(self) -> float | None:
        """Mean IoU over the named stretches that are neither clear nor between two; None where the bag names none."""
        shifted = [meter for name, meter in self._segments.items() if is_shifted(name)]
        return six_digits(mean_iou(sum(meter.counts for meter in shifted))) if shifted else None  # type: ignore[arg-type]


def add_gains(variants: Mapping[str, dict[str, Any]]) -> None:
    """Write into each variant's summary what it gains over the base model; None where that is not known."""
    base = variants.get("base")
    for entry in variants.values():
        for key, gain in (("miou", "gain_over_base"), ("shifted_miou", "shifted_gain_over_base")):
            is_known = base is not None and entry[key] is not None and base[key] is not None
            entry[gain] = round(entry[key] - base[key], 6) if base is not None and is_known else None


def is_shifted(segment: str) -> bool:
    """Whether a stretch is neither what the base model was trained for nor between two."""
    return segment not in (*CLEAR_SEGMENTS, *BETWEEN)


def overlap_miou(sums: NDArray[np.int64] | NDArray[np.float64]) -> float | None:
    """Mean IoU of sums of `overlaps`, for a file; None where there is no truth."""
    return six_digits(mean_iou_of(sums))


def six_digits(value: float) -> float | None:
    """Rounded for a file; None for NaN, which JSON does not have."""
    return None if math.isnan(value) else round(value, 6)


class Agreement:
    """Share of pixels on which two variants give the same class."""

    def __init__(self) -> None:
        self._means: dict[tuple[str, str], _Mean] = defaultdict(_Mean)

    def add(self, outcomes: Mapping[str, Outcome]) -> dict[tuple[str, str], float]:
        """Compare the masks of one frame; returns the share for each pair."""
        masks = {name: outcome.mask for name, outcome in outcomes.items() if outcome.mask is not None}
        shares = {
            (first, second): float(np.count_nonzero(a == b) / a.size)
            for (first, a), (second, b) in combinations(masks.items(), 2)
            if a.shape == b.shape
        }
        for pair, share in shares.items():
            self._means[pair].add(share)
        return shares

    def summary(self) -> dict[str, float | None]:
        """Mean share for each pair, keyed "a|b"."""
        return {f"{first}|{second}": mean.value for (first, second), mean in self._means.items()}
