"""What the shipped world is meant to show, checked against the figures of a run of `semla evaluate`.

python -m bench.goals out/results/results.json       # a table in Markdown
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semla_ros.lab.evaluation.sources import WorldBenchmark

POINT = 0.01  # one mIoU point


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One claim with the figure that a run found.

    Attributes:
        claim: What is claimed.
        wanted: The bound, in words.
        found: The figure, in words.
        is_met: Whether it holds.
    """

    claim: str
    wanted: str
    found: str
    is_met: bool


def check_goals(results: Mapping[str, Any], family_share: float) -> list[Goal]:
    """Check a run's figures.

    Args:
        results: As written to the JSON file.
        family_share: Share of images whose heaviest adapter is of the right family, leave-one-out, over the domains
            that have relatives; NaN where none has.

    Returns:
        Goals that the run's variants and domains can decide, in the order they are reported.
    """
    return [*_source_goal(results), *_h_mean_goals(results, family_share), *_unseen_goal(results)]


def family_share(results: Mapping[str, Any], are_relatives: Callable[[str, str], bool]) -> float:
    """Share of images whose heaviest adapter is of the right family, leave-one-out; NaN where it was not measured.

    Args:
        results: As written to the JSON file.
        are_relatives: Whether two domains share a weather or kind of place; domains without a relative do not count.
    """
    names = list(results["domains"])
    shares = [
        results["retrieval"][name]["semla_without_own"]["right_family"]
        for name in names
        if "semla_without_own" in results["retrieval"][name]
        and any(other != name and are_relatives(name, other) for other in names)
    ]
    return float(np.mean(shares)) if shares else math.nan


def markdown_table(goals: list[Goal]) -> str:
    """The goals as a table."""
    rows = [f"| {goal.claim} | {goal.wanted} | {goal.found} | {'met' if goal.is_met else 'missed'} |" for goal in goals]
    return "\n".join(["| claim | wanted | found | |", "| --- | --- | --- | --- |", *rows])


def _source_goal(results: Mapping[str, Any]) -> Iterator[Goal]:
    found = {name: scores.get("zero_shot") for name, scores in results["source"].items()}
    known = {name: value for name, value in found.items() if value is not None}
    if known:
        worst = min(known, key=lambda name: known[name])
        yield Goal(
            claim="base model at home",
            wanted="zero-shot mIoU >= 0.75 on the clear-day source",
            found=f"{known[worst]:.3f} on {worst}",
            is_met=known[worst] >= 0.75,
        )


def _h_mean_goals(results: Mapping[str, Any], family_share: float) -> Iterator[Goal]:
    means: Mapping[str, float | None] = results["h_mean"]
    zero_shot, uniform = means.get("zero_shot"), means.get("uniform_without_own")
    semla, left_out, oracle = means.get("semla"), means.get("semla_without_own"), means.get("oracle")
    if semla is not None and oracle:
        yield Goal(
            claim="own adapter is found",
            wanted="SemLA >= 97 % of oracle (h-mean)",
            found=f"{semla / oracle:.1%}",
            is_met=semla >= 0.97 * oracle,
        )
    if left_out is not None and uniform is not None:
        yield Goal(
            claim="retrieval beats the plain mean",
            wanted="leave-one-out, SemLA > uniform + 2.3 points (h-mean)",
            found=f"{(left_out - uniform) / POINT:+.1f} points",
            is_met=left_out > uniform + 2.3 * POINT,
        )
    if left_out is not None and zero_shot is not None:
        gains = {
            name: scores["semla_without_own"] - scores["zero_shot"]
            for name, scores in results["domains"].items()
            if scores.get("semla_without_own") is not None and scores.get("zero_shot") is not None
        }
        if gains:
            worst = min(gains, key=lambda name: gains[name])
            yield Goal(
                claim="relatives help everywhere",
                wanted="leave-one-out, SemLA above zero-shot in every domain",
                found=f"worst {gains[worst] / POINT:+.1f} points on {worst}",
                is_met=gains[worst] > 0,
            )
        if oracle is not None and oracle > zero_shot:
            recovered = (left_out - zero_shot) / (oracle - zero_shot)
            yield Goal(
                claim="gain recovered without the own adapter",
                wanted=">= 80 % of oracle's gain (the paper: 68 %)",
                found=f"{recovered:.1%}",
                is_met=recovered >= 0.8,
            )
    if not math.isnan(family_share):
        yield Goal(
            claim="right relatives are retrieved",
            wanted="heaviest adapter of the right family in >= 90 % of images",
            found=f"{family_share:.1%}",
            is_met=family_share >= 0.9,
        )


def _unseen_goal(results: Mapping[str, Any]) -> Iterator[Goal]:
    losses = {
        name: scores["semla"] - scores["zero_shot"]
        for name, scores in results["unseen"].items()
        if scores.get("semla") is not None and scores.get("zero_shot") is not None
    }
    if losses:
        worst = min(losses, key=lambda name: losses[name])
        yield Goal(
            claim="no harm out of the library",
            wanted="unseen scenes never more than 1 point below zero-shot",
            found=f"worst {losses[worst] / POINT:+.1f} points on {worst}",
            is_met=losses[worst] >= -POINT,
        )


if __name__ == "__main__":
    read = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(markdown_table(check_goals(read, family_share(read, WorldBenchmark().are_relatives))))
