from dataclasses import replace

from semla_ros.lab.demo.score import DriveScore, SegmentScore
from semla_ros.lab.demo.verdict import judge


def segment(name: str, right: float | None) -> SegmentScore:
    return SegmentScore(
        name=name, frames=50, base=0.3, adapted=0.45,
        heaviest_adapter_right_fraction=right,
    )  # fmt: skip


GOOD = DriveScore(
    frames=(), segments=(segment("clear", 0.2), segment("night", 0.9), segment("hail", None)), base=0.3, adapted=0.45,
    base_all=0.4, adapted_all=0.5,
)  # fmt: skip


def failed(score: DriveScore = GOOD, *, answered=100, taken=100, generations=7, is_fast=False) -> list[str]:
    checks = judge(score=score, answered=answered, taken=taken, generations=generations, is_fast=is_fast)
    return [check.name for check in checks if not check.passed]


def test_a_good_drive_passes_and_segments_without_an_adapter_are_not_judged() -> None:
    assert failed() == []


def test_each_broken_promise_is_named() -> None:
    assert failed(answered=94) == ["masks"]
    assert failed(taken=0, answered=0) == ["masks"]
    assert failed(replace(GOOD, adapted=0.37)) == ["gain"]
    assert failed(replace(GOOD, adapted=float("nan"))) == ["gain"]
    assert failed(generations=4) == ["generations"]
    assert failed(replace(GOOD, segments=(segment("night", 0.79),))) == ["right adapter: night"]


def test_a_short_drive_is_judged_less_strictly_and_says_so() -> None:
    score = replace(GOOD, adapted=0.31, segments=(segment("night", 0.1),))
    assert failed(score, generations=2, is_fast=True) == []
    assert failed(score, generations=2, answered=90, is_fast=True) == ["masks"]
    checks = judge(score=score, answered=9, taken=9, generations=2, is_fast=True)
    assert {check.name for check in checks if check.is_relaxed} == {"gain", "generations"}


def test_sentences_hold_what_was_expected_and_what_came() -> None:
    checks = judge(score=GOOD, answered=94, taken=100, generations=7, is_fast=False)
    assert "94 of 100 frames" in checks[0].sentence
    assert "95%" in checks[0].sentence
    assert "from 0.300 to 0.450 (+0.150" in checks[1].sentence
