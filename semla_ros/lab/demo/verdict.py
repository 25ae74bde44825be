"""What the demo promises, checked against what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from semla_ros.errors import counted
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

KEPT, BROKEN, NOT_JUDGED = "kept", "broken", "not judged"  # what may become of a promise


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise.

    Attributes:
        name: Short identifier.
        verdict: `KEPT`, `BROKEN` or `NOT_JUDGED`. The demo fails for a broken one, and for no other.
        sentence: What was expected and what came.
        is_relaxed: The full drive's limit makes no sense on a short one and was lowered.
        explanation: Why it is not judged.
    """

    name: str
    verdict: str
    sentence: str
    is_relaxed: bool = False
    explanation: str = ""


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
    least_fusions = 2 if is_fast else LEAST_FUSIONS
    answered = adapted["sent"] - adapted["dropped"]
    taken = max(answered, adapted["received_by_node"] - adapted["dropped_by_node"].get(OVERTAKEN, 0))
    checks = [
        Check(
            name="masks",
            verdict=_verdict(taken > 0 and answered >= LEAST_ANSWERED * taken and not adapted["masks_of_no_image"]),
            sentence=f"{answered} of {counted(taken, 'frame')} that the node took came back as masks with the "
            f"identical stamp and frame_id ({answered / max(taken, 1):.1%}; at least {LEAST_ANSWERED:.0%} expected), "
            f"and {counted(adapted['masks_of_no_image'], 'mask')} of no image",
        ),
        _gain(base, adapted, is_fast=is_fast),
        _harm(base["visits"], adapted["visits"], is_fast=is_fast),
        Check(
            name="fusions",
            verdict=_verdict(adapted["fusions"] >= least_fusions),
            sentence=f"{counted(adapted['fusions'], 'model')} fused (at least {least_fusions} expected)",
            is_relaxed=is_fast,
        ),
    ]
    return checks if is_fast else [*checks, *_adapter_checks(right)]


def told(checks: Sequence[Check]) -> dict[str, Any]:
    """What `summary.json` says of them: the "checks", and whether there are any and none is broken as "passed"."""
    passed = bool(checks) and all(check.verdict != BROKEN for check in checks)
    return {"passed": passed, "checks": [asdict(check) for check in checks]}


def _verdict(is_kept: bool) -> str:
    return KEPT if is_kept else BROKEN


def _gain(base: Mapping[str, Any], adapted: Mapping[str, Any], *, is_fast: bool) -> Check:
    """Whether adaptation helped where the scene is not that of the base model's training."""
    gain, least_gain = adapted["shifted_gain_over_base"], 0.0 if is_fast else LEAST_GAIN
    if gain is None:
        return Check(
            name="gain",
            verdict=NOT_JUDGED if is_fast else BROKEN,
            sentence="no shifted segment was seen",
            explanation="a drive played this fast is too short to be sure of one" if is_fast else "",
        )
    return Check(
        name="gain",
        verdict=_verdict(gain >= least_gain),
        sentence=f"adaptation moved mIoU over the shifted segments from {base['shifted_miou']:.3f} to "
        f"{adapted['shifted_miou']:.3f} ({gain:+.3f}; at least {least_gain:+.2f} expected)",
        is_relaxed=is_fast,
    )


def _harm(base: Sequence[Mapping[str, Any]], adapted: Sequence[Mapping[str, Any]], *, is_fast: bool) -> Check:
    """Whether adaptation cost anything in any stretch, and on a fast drive why that says little."""
    losses = [
        (before["miou"] - after["miou"], before["segment"], before["miou"], after["miou"])
        for before, after in zip(base, adapted, strict=True)
    ]
    lost, segment, before, after = max(losses, default=(0.0, "", 0.0, 0.0))
    if lost <= MOST_HARM:
        sentence = f"in no stretch did adaptation cost more than {max(lost, 0):.2f} mIoU (at most {MOST_HARM} allowed)"
        return Check(name="harm", verdict=KEPT, sentence=sentence)
    explanation = (
        "a drive played this fast is too short to judge it: a stretch is nearly over before its adapters are in use, "
        "and those of the stretch before still serve; without --fast the drive has its own pace, and this is judged"
    )
    return Check(
        name="harm",
        verdict=NOT_JUDGED if is_fast else BROKEN,
        sentence=f"in stretch '{segment}' adaptation cost {lost:.2f} mIoU, {before:.2f} → {after:.2f} (at most "
        f"{MOST_HARM} allowed)",
        explanation=explanation if is_fast else "",
    )


def _adapter_checks(right: Mapping[str, float]) -> list[Check]:
    """One check per pure shifted segment that the library has an adapter for."""
    return [
        Check(
            name=f"right adapter: {segment}",
            verdict=_verdict(fraction >= LEAST_RIGHT),
            sentence=f"in segment '{segment}' the heaviest adapter was the right one in {fraction:.0%} of the frames "
            f"(at least {LEAST_RIGHT:.0%} expected)",
        )
        for segment, fraction in right.items()
        if is_shifted(segment)
    ]
