"""How good the masks of a drive were, with and without adaptation, and whether the right adapter led."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.bags.label_map import LabelMap
from semla_ros.lab.demo.recording import FrameRecord, Recording, shares_of
from semla_ros.lab.evaluation.miou import Counts, confusion_matrix, iou_per_class, mean_iou
from semla_ros.lab.world.drive import SEGMENT_FAMILIES
from semla_ros.results import BASE_MODEL, ImageArray, MaskArray

UNSHIFTED_SEGMENT = "clear"  # what the base model was trained on; named "clear" in the drive


def as_truth_classes(mask: MaskArray, mask_names: Sequence[str], truth_names: Sequence[str]) -> MaskArray:
    """A mask (H, W) renumbered by name into the classes of the truth; 255 where it has no class of that name."""
    return LabelMap(dict(enumerate(mask_names)), truth_names)(mask)


@dataclass(frozen=True)
class LiveFigures:
    """mIoU over the frames sampled so far; NaN before the first."""

    base: float = math.nan
    adapted: float = math.nan
    frames: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameScore:
    """One answered frame against its truth.

    Attributes:
        record: The frame.
        adapted: Confusion of the node's mask, shape (K, K + 1).
        base: Confusion of the base model's mask.
    """

    record: FrameRecord
    adapted: Counts
    base: Counts

    @property
    def gain(self) -> float:
        """Difference in mIoU of this frame with adaptation minus without."""
        return mean_iou(self.adapted) - mean_iou(self.base)


@dataclass(frozen=True, kw_only=True)
class SegmentScore:
    """One segment of the drive.

    Attributes:
        name: Domain, or "a to b" for a transition.
        frames: Number of answered frames.
        base: mIoU without adaptation, 0..1.
        adapted: mIoU with adaptation.
        heaviest_adapter_right_fraction: Share of the frames whose mask was made with an adapter of the segment's name
            or weather family as the heaviest; None for a transition, and where the library has no such adapter (unless
            it is the segment that the base model was trained on: there the base model is right).
    """

    name: str
    frames: int
    base: float
    adapted: float
    heaviest_adapter_right_fraction: float | None

    @property
    def is_pure(self) -> bool:
        """The conditions stand still."""
        return not is_transition(self.name)

    @property
    def is_shifted(self) -> bool:
        """Pure, and other than what the base model was trained on."""
        return self.is_pure and self.name != UNSHIFTED_SEGMENT


@dataclass(frozen=True, kw_only=True, eq=False)
class DriveScore:
    """The whole drive.

    Attributes:
        frames: Answered frames in order of time.
        segments: In order of first appearance.
        base: mIoU without adaptation: mean over the shifted segments; NaN where there is none.
        adapted: ... with adaptation.
        base_all: mIoU without adaptation over all frames counted together, transitions and clear ones too.
        adapted_all: ... with adaptation.
    """

    frames: tuple[FrameScore, ...]
    segments: tuple[SegmentScore, ...]
    base: float
    adapted: float
    base_all: float
    adapted_all: float

    @property
    def gain(self) -> float:
        """What adaptation brought over the shifted segments."""
        return self.adapted - self.base


def compare_masks(
    recording: Recording,
    base_mask: Callable[[ImageArray, int], MaskArray],
    base_names: Sequence[str],
    truth_names: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> list[FrameScore]:
    """Compare every answered frame with its truth, and with what the base model makes of the same image.

    Both are kept in the recording's store in the classes of the truth, as "adapted" and "base"; base masks that are
    there already are not made again.

    Args:
        recording: What the monitor collected.
        base_mask: Segments an RGB image (H, W, 3) with a stamp by the base model.
        base_names: Class names of the base model's masks.
        truth_names: Class names of the truth.
        progress: Told how many frames of how many are done.

    Returns:
        One score per answered frame that has a truth, in order of time.
    """
    store, class_count = recording.store, len(truth_names)
    mask_names = recording.class_names or tuple(truth_names)
    stamps = set(store.stamps("image", "truth", "mask"))
    records = [record for record in recording.frames() if record.is_answered and record.stamp_ns in stamps]
    scores = []
    for index, record in enumerate(records):
        truth = store.get("truth", record.stamp_ns)
        adapted = as_truth_classes(store.get("mask", record.stamp_ns), mask_names, truth_names)
        store.add("adapted", record.stamp_ns, adapted)
        if ("base", record.stamp_ns) not in store:
            mask = base_mask(store.get("image", record.stamp_ns), record.stamp_ns)
            store.add("base", record.stamp_ns, as_truth_classes(mask, base_names, truth_names))
        scores.append(
            FrameScore(
                record=record,
                adapted=confusion_matrix(truth, adapted, class_count),
                base=confusion_matrix(truth, store.get("base", record.stamp_ns), class_count),
            )
        )
        if progress is not None:
            progress(index + 1, len(records))
    return scores


def is_transition(segment: str) -> bool:
    """Whether a segment name stands for a change between two conditions."""
    return not segment or " to " in segment or segment == "transition"


def leads_rightly(record: FrameRecord, adapters: Mapping[str, str]) -> bool | None:
    """Whether a right adapter was the heaviest of the mix that made a frame's mask.

    Args:
        record: An answered frame.
        adapters: The library's adapters -> their families. Those named like the segment are right, and those of the
            family of its weather.

    Returns:
        None where there is no right one: in transitions, and where the library has no adapter for the segment. In the
        segment of the base model's own training the base model is right too.
    """
    if is_transition(record.segment):
        return None
    wanted = SEGMENT_FAMILIES.get(record.segment, record.segment)
    right = {name for name, family in adapters.items() if name == record.segment or family == wanted}
    if record.segment == UNSHIFTED_SEGMENT:
        right = right | {BASE_MODEL}
    return record.generation.mix.heaviest in right if right else None


def score_drive(frames: Iterable[FrameScore], adapters: Mapping[str, str]) -> DriveScore:
    """Add frames up into segments and the drive.

    Args:
        frames: Scored frames in order of time.
        adapters: The library's adapters -> their families.
    """
    frames = tuple(frames)
    by_segment: dict[str, list[FrameScore]] = {}
    for frame in frames:
        by_segment.setdefault(frame.record.segment or "transition", []).append(frame)
    segments = tuple(_score_segment(name, members, adapters) for name, members in by_segment.items())
    shifted = [(segment.base, segment.adapted) for segment in segments if segment.is_shifted]
    base, adapted = np.mean(shifted, axis=0) if shifted else (math.nan, math.nan)
    base_all, adapted_all = _pooled(frames)
    return DriveScore(
        frames=frames,
        segments=segments,
        base=float(base),
        adapted=float(adapted),
        base_all=base_all,
        adapted_all=adapted_all,
    )


def _score_segment(name: str, members: Sequence[FrameScore], adapters: Mapping[str, str]) -> SegmentScore:
    base, adapted = _pooled(members)
    verdicts = [verdict for frame in members if (verdict := leads_rightly(frame.record, adapters)) is not None]
    return SegmentScore(
        name=name,
        frames=len(members),
        base=base,
        adapted=adapted,
        heaviest_adapter_right_fraction=sum(verdicts) / len(verdicts) if verdicts else None,
    )


def _pooled(frames: Sequence[FrameScore]) -> tuple[float, float]:
    """Common mIoU of several frames: base, adapted."""
    if not frames:
        return math.nan, math.nan
    base, adapted = _totals(frames)
    return mean_iou(base), mean_iou(adapted)


def _totals(frames: Sequence[FrameScore]) -> tuple[Counts, Counts]:
    return np.sum([frame.base for frame in frames], axis=0), np.sum([frame.adapted for frame in frames], axis=0)


def rolling_miou(frames: Sequence[FrameScore], window_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smooth the mIoU of the frames over time, base and adapted.

    Args:
        frames: Scored frames in order of time.
        window_s: Width of the window in seconds of image time, centred on the frame; it stops at the ends of a pure
            segment, so that a jump at a border stays one.

    Returns:
        Two arrays of shape (len(frames),), 0..1.
    """
    half_ns = round(window_s * 1e9 / 2)
    result = [
        _pooled(
            [
                other
                for other in frames
                if other.record.segment == frame.record.segment
                and abs(other.record.stamp_ns - frame.record.stamp_ns) <= half_ns
            ]
        )
        for frame in frames
    ]
    base, adapted = np.array(result, np.float64).reshape(-1, 2).T
    return base, adapted


def shares_over_time(frames: Sequence[FrameScore]) -> dict[str, NDArray[np.float64]]:
    """Share of each adapter in each frame's mix, (len(frames),) per name; most used first, the base model last."""
    names: dict[str, float] = {}
    for frame in frames:
        for name, share in shares_of(frame.record.generation).items():
            names[name] = names.get(name, 0.0) + share
    ordered = sorted(names, key=lambda name: (name == BASE_MODEL, -names[name]))
    return {name: np.array([shares_of(frame.record.generation).get(name, 0.0) for frame in frames]) for name in ordered}


def class_table(frames: Sequence[FrameScore], truth_names: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """IoU of each class over all frames, base and adapted; classes that never occur are left out."""
    if not frames:
        return {}
    base, adapted = map(iou_per_class, _totals(frames))
    pairs = zip(truth_names, base.tolist(), adapted.tolist(), strict=True)
    return {name: (without, with_) for name, without, with_ in pairs if not math.isnan(without)}
