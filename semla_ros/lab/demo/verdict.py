"""What the demo promises, checked against what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from semla_ros.lab.demo.score import DriveScore

LEAST_ANSWERED = 0.95  # of the frames that the node took, masks with the identical stamp and frame_id
LEAST_GAIN = 0.08  # mIoU, adapted minus base, mean over the shifted segments
LEAST_GENERATIONS = 5
LEAST_RIGHT = 0.8  # of the frames of each pure segment


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise.

    Attributes:
        name: Short identifier.
        passed: Kept.
        sentence: What was expected and what came.
        is_relaxed: The full drive's limit makes no sense on a short one and was lowered or left out.
    """

    name: str
    passed: bool
    sentence: str
    is_relaxed: bool = False


def judge(*, score: DriveScore, answered: int, taken: int, generations: int, is_fast: bool) -> list[Check]:
    """Check every promise.

    Args:
        score: The drive.
        answered: Frames whose mask came back with the identical stamp and frame_id.
        taken: Frames that the node took in.
        generations: Fused generations that the node announced.
        is_fast: A short drive: less is expected, and the checks say so.
    """
    least_gain, least_generations = (0.0, 2) if is_fast else (LEAST_GAIN, LEAST_GENERATIONS)
    checks = [
        Check(
            name="masks",
            passed=taken > 0 and answered >= LEAST_ANSWERED * taken,
            sentence=f"{answered} of {taken} frames that the node took came back as masks with the identical stamp and "
            f"frame_id ({answered / max(taken, 1):.1%}; at least {LEAST_ANSWERED:.0%} expected)",
        ),
        Check(
            name="gain",
            passed=score.gain >= least_gain,  # False for NaN
            sentence=f"adaptation moved mIoU over the shifted segments from {score.base:.3f} to {score.adapted:.3f} "
            f"({score.gain:+.3f}; at least {least_gain:+.2f} expected)",
            is_relaxed=is_fast,
        ),
        Check(
            name="generations",
            passed=generations >= least_generations,
            sentence=f"{generations} generations were fused (at least {least_generations} expected)",
            is_relaxed=is_fast,
        ),
    ]
    if not is_fast:
        checks += _adapter_checks(score)
    return checks


def _adapter_checks(score: DriveScore) -> list[Check]:
    """One check per pure shifted segment that the library has an adapter for."""
    return [
        Check(
            name=f"right adapter: {segment.name}",
            passed=segment.heaviest_adapter_right_fraction >= LEAST_RIGHT,
            sentence=f"in segment '{segment.name}' the heaviest adapter was the right one in "
            f"{segment.heaviest_adapter_right_fraction:.0%} of the frames (at least {LEAST_RIGHT:.0%} expected)",
        )
        for segment in score.segments
        if segment.is_shifted and segment.heaviest_adapter_right_fraction is not None
    ]
