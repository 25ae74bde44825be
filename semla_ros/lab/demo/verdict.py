"""What the demo promises, checked against what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semla_ros.lab.replay.scores import is_shifted
from semla_ros.lab.world.drive import SEGMENT_FAMILIES
from semla_ros.results import BASE_MODEL
from semla_ros.serving.camera_statistics import OVERTAKEN

UNSHIFTED_SEGMENT = "clear"  # what the base model was trained on
LEAST_ANSWERED = 0.95  # of the frames that the node took, masks with the identical stamp and frame_id
LEAST_GAIN = 0.08  # mIoU, adapted minus base, over the shifted segments
LEAST_FUSIONS = 5
LEAST_RIGHT = 0.8  # of the frames of each pure segment
MOST_HARM = 0.03  # mIoU that adaptation may cost in any stretch


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise.

    Attributes:
        name: Short identifier.
        passed: Kept.
        sentence: What was expected and what came.
        is_relaxed: The full drive's limit makes no sense on a short one and was lowered.
        explanation: Why it may be broken on such a drive, which does not fail for it then.
    """

    name: str
    passed: bool
    sentence: str
    is_relaxed: bool = False
    explanation: str = ""

    @property
    def is_broken(self) -> bool:
        """Whether the demo fails for it."""
        return not self.passed and not self.explanation


class Leaders:
    """How often an adapter of the right weather was the heaviest of the mix.

    Those named like the segment are right, and those of the family of its weather; in the segment of the base model's
    own training the base model is right too.

    Args:
        families: The library's adapters -> their weather families; may be filled later.
    """

    def __init__(self, families: Mapping[str, str]) -> None:
        self._families = families
        self._verdicts: dict[str, list[bool]] = defaultdict(list)

    def add(self, segment: str, heaviest: str) -> None:
        """Count one mask; nothing where the segment is a transition, or the library has nothing for it."""
        wanted = SEGMENT_FAMILIES.get(segment)
        right = {name for name, family in self._families.items() if name == segment or family == wanted}
        if segment == UNSHIFTED_SEGMENT:
            right.add(BASE_MODEL)
        if wanted and right:
            self._verdicts[segment].append(heaviest in right)

    def fractions(self) -> dict[str, float]:
        """Segment -> share of its masks, 0..1."""
        return {segment: sum(verdicts) / len(verdicts) for segment, verdicts in self._verdicts.items()}


def judge(summary: Mapping[str, Any], right: Mapping[str, float], *, is_fast: bool) -> list[Check]:
    """Check every promise.

    Args:
        summary: Of a replay of the demo's drive to the real node, with the base model beside it.
        right: Segment -> share of its masks that the right adapter led.
        is_fast: A short drive: less is expected, and the checks say so.
    """
    base, adapted = summary["variants"][summary["reference"]], summary["variants"][summary["primary"]]
    least_gain, least_fusions = (0.0, 2) if is_fast else (LEAST_GAIN, LEAST_FUSIONS)
    answered = adapted["sent"] - adapted["dropped"]
    taken = max(answered, adapted["received_by_node"] - adapted["dropped_by_node"].get(OVERTAKEN, 0))
    gain = adapted["shifted_gain_over_base"]
    checks = [
        Check(
            name="masks",
            passed=taken > 0 and answered >= LEAST_ANSWERED * taken and not adapted["masks_of_no_image"],
            sentence=f"{answered} of {taken} frames that the node took came back as masks with the identical stamp and "
            f"frame_id ({answered / max(taken, 1):.1%}; at least {LEAST_ANSWERED:.0%} expected), and "
            f"{adapted['masks_of_no_image']} masks belong to none",
        ),
        Check(
            name="gain",
            passed=gain is not None and gain >= least_gain,
            sentence="no shifted segment was seen"
            if gain is None
            else f"adaptation moved mIoU over the shifted segments from {base['shifted_miou']:.3f} to "
            f"{adapted['shifted_miou']:.3f} ({gain:+.3f}; at least {least_gain:+.2f} expected)",
            is_relaxed=is_fast,
        ),
        _harm(base["visits"], adapted["visits"], is_fast=is_fast),
        Check(
            name="fusions",
            passed=adapted["fusions"] >= least_fusions,
            sentence=f"{adapted['fusions']} models were fused (at least {least_fusions} expected)",
            is_relaxed=is_fast,
        ),
    ]
    return checks if is_fast else [*checks, *_adapter_checks(right)]


def _harm(base: Sequence[Mapping[str, Any]], adapted: Sequence[Mapping[str, Any]], *, is_fast: bool) -> Check:
    """Whether adaptation cost anything in any stretch, and on a fast drive why it may have."""
    losses = [
        (before["miou"] - after["miou"], before["segment"], before["miou"], after["miou"])
        for before, after in zip(base, adapted, strict=True)
    ]
    lost, segment, before, after = max(losses, default=(0.0, "", 0.0, 0.0))
    if lost <= MOST_HARM:
        sentence = f"in no stretch did adaptation cost more than {max(lost, 0):.2f} mIoU (at most {MOST_HARM} allowed)"
        return Check(name="harm", passed=True, sentence=sentence)
    explanation = (
        "played this fast, a stretch is nearly over before its adapters are in use, and those of the stretch before "
        "still serve; without --fast the drive has its own pace"
    )
    return Check(
        name="harm",
        passed=False,
        sentence=f"in stretch '{segment}' adaptation cost {lost:.2f} mIoU, {before:.2f} → {after:.2f} (at most "
        f"{MOST_HARM} allowed)",
        explanation=explanation if is_fast else "",
    )


def _adapter_checks(right: Mapping[str, float]) -> list[Check]:
    """One check per pure shifted segment that the library has an adapter for."""
    return [
        Check(
            name=f"right adapter: {segment}",
            passed=fraction >= LEAST_RIGHT,
            sentence=f"in segment '{segment}' the heaviest adapter was the right one in {fraction:.0%} of the frames "
            f"(at least {LEAST_RIGHT:.0%} expected)",
        )
        for segment, fraction in right.items()
        if is_shifted(segment)
    ]
