from pathlib import Path
from typing import Any

import pytest

from semla_ros.cli import main
from semla_ros.commands import demo
from semla_ros.lab.demo.verdict import BROKEN, KEPT, NOT_JUDGED, Leaders, judge, told
from semla_ros.results import BASE_MODEL

RIGHT = {"clear": 1.0, "night": 1.0, "fog": 0.9}


def visits(**figures: float) -> list[dict[str, Any]]:
    return [{"segment": segment, "miou": miou} for segment, miou in figures.items()]


def summary(**adapted: Any) -> dict[str, Any]:
    """Of a drive on which every promise was kept, but for what is given."""
    entry = {
        "sent": 450, "received_by_node": 450, "dropped": 0, "dropped_by_node": {}, "masks_of_no_image": 0,
        "fusions": 12, "shifted_miou": 0.45, "shifted_gain_over_base": 0.3,
    }  # fmt: skip
    before, after = visits(clear=0.7, night=0.05), visits(clear=0.69, night=0.4)
    variants = {
        "base": {"shifted_miou": 0.15, "visits": before},
        "semla": {**entry, "visits": after, **adapted},
    }
    return {"primary": "semla", "reference": "base", "variants": variants}


def broken(right: dict[str, float] = RIGHT, *, is_fast: bool = False, **adapted: Any) -> list[str]:
    return [check.name for check in judge(summary(**adapted), right, is_fast=is_fast) if check.verdict != KEPT]


def test_a_good_drive_keeps_every_promise() -> None:
    checks = judge(summary(), RIGHT, is_fast=False)
    assert [check.name for check in checks] == [
        "masks",
        "gain",
        "harm",
        "fusions",
        "right adapter: night",
        "right adapter: fog",
    ]
    assert all(check.verdict == KEPT for check in checks)
    assert "from 0.150 to 0.450 (+0.300; at least +0.08 expected)" in checks[1].sentence


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"dropped": 40}, ["masks"]),  # neither answered nor overtaken
        ({"dropped": 40, "dropped_by_node": {"overtaken": 40}}, []),  # the newest image wins
        ({"dropped": 40, "dropped_by_node": {"failed": 40}}, ["masks"]),
        ({"dropped": 40, "received_by_node": 410}, []),  # a busy machine may lose images before the node has them
        ({"dropped": 450, "dropped_by_node": {"overtaken": 450}}, ["masks"]),
        ({"masks_of_no_image": 1}, ["masks"]),
        ({"shifted_gain_over_base": 0.05}, ["gain"]),
        ({"shifted_gain_over_base": None}, ["gain"]),
        ({"fusions": 4}, ["fusions"]),
        ({"visits": visits(clear=0.65, night=0.4)}, ["harm"]),
    ],
)
def test_what_is_missing_breaks_the_promise_that_it_belongs_to(changes: dict[str, Any], names: list[str]) -> None:
    assert broken(**changes) == names


def test_a_wrong_adapter_breaks_its_segments_promise_alone() -> None:
    assert broken({"clear": 0.1, "night": 0.79, "fog": 0.8}) == ["right adapter: night"]


def test_a_fast_drive_is_judged_by_lower_limits_and_says_so() -> None:
    assert broken({"night": 0.0}, is_fast=True, fusions=2, shifted_gain_over_base=0.0) == []
    assert broken(is_fast=True, fusions=1) == ["fusions"]
    assert broken(is_fast=True, shifted_gain_over_base=-0.01) == ["gain"]
    relaxed = [check.name for check in judge(summary(), RIGHT, is_fast=True) if check.is_relaxed]
    assert relaxed == ["gain", "fusions"]


def test_harm_on_a_fast_drive_is_explained_and_neither_called_kept_nor_broken() -> None:
    harmed = summary(visits=visits(clear=0.61, night=0.4))
    (check,) = [check for check in judge(harmed, RIGHT, is_fast=True) if check.name == "harm"]
    assert check.verdict == NOT_JUDGED
    assert "'clear' adaptation cost 0.09 mIoU, 0.70 → 0.61" in check.sentence
    assert "too short to judge" in check.explanation
    (check,) = [check for check in judge(harmed, RIGHT, is_fast=False) if check.name == "harm"]
    assert (check.verdict, check.explanation) == (BROKEN, "")
    (check,) = [check for check in judge(summary(), RIGHT, is_fast=True) if check.name == "harm"]
    assert (check.verdict, check.explanation) == (KEPT, "")


def test_a_fast_drive_without_a_shifted_segment_is_not_judged_by_it() -> None:
    (check,) = [
        item for item in judge(summary(shifted_gain_over_base=None), RIGHT, is_fast=True) if item.name == "gain"
    ]
    assert check.verdict == NOT_JUDGED
    assert "too short" in check.explanation


@pytest.mark.parametrize("is_fast", [False, True])
@pytest.mark.parametrize(
    "adapted",
    [
        {},
        {"dropped": 40},
        {"shifted_gain_over_base": -0.1},
        {"shifted_gain_over_base": None},
        {"fusions": 0},
        {"visits": visits(clear=0.61, night=0.4)},
    ],
)
def test_words_and_exit_status_say_the_same(
    adapted: dict[str, Any], *, is_fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    replayed = summary(**adapted)
    verdicts = told(judge(replayed, RIGHT, is_fast=is_fast))
    entry = {"interrupted": False, "drive": {"speed": 5.0 if is_fast else 1.0}}
    monkeypatch.setattr(demo, "run_demo", lambda *_: replayed | entry | verdicts)
    monkeypatch.setattr(demo, "_print_tables", lambda *_: None)
    status = main(["demo", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    first_words = [line.split("  ")[0] for line in printed.splitlines()]
    assert ("broken" in first_words) is (status == 1) is (not verdicts["passed"])
    assert all(f"{check['verdict']:<10} {check['sentence']}" in printed for check in verdicts["checks"])


def led(families: dict[str, str], *masks: tuple[str, str]) -> dict[str, float]:
    leaders = Leaders(families)
    for segment, heaviest in masks:
        leaders.add(segment, heaviest)
    return leaders.fractions()


def test_adapters_named_like_the_segment_or_of_its_weather_are_right() -> None:
    families = {"night": "x", "old-town-night": "night", "boulevard-rain-night": "night", "old-town-rain": "rain"}
    assert led(families, ("night", "night"), ("night", "old-town-rain")) == {"night": 0.5}
    assert led(families, ("night-rain", "boulevard-rain-night"), ("night-rain", "old-town-rain")) == {"night-rain": 0.5}


def test_transitions_and_segments_without_an_adapter_are_not_judged() -> None:
    families = {"night": "night"}
    assert led(families, ("transition", "night"), ("", "night"), ("tunnel", "night"), ("elsewhere", "night")) == {}


def test_the_base_model_is_right_only_where_it_was_trained() -> None:
    families = {"night": "night", "suburb-clear": "clear"}
    assert led(families, ("clear", BASE_MODEL), ("night", BASE_MODEL)) == {"clear": 1.0, "night": 0.0}
    assert led(families, ("clear", "suburb-clear"), ("clear", "night")) == {"clear": 0.5}
