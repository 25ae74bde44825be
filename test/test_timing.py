"""Percentiles of the latest runs, and stamps that jump back."""

from __future__ import annotations

import pytest

from semla_ros.timing import WINDOW, LatencySummary, LatencyWindow, RestartWatch, Stopwatch


def test_a_stage_entered_twice_counts_with_the_sum() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("embed"):
            pass
    assert list(watch.latency_ms) == ["embed"]
    assert watch.latency_ms["embed"] > 0


def test_percentiles_are_those_of_the_latest_runs() -> None:
    window = LatencyWindow()
    for milliseconds in (1000.0, *range(WINDOW)):
        window.add({"total": milliseconds, "wait": 1.0})
    summary = window.summary()
    assert summary["wait"] == LatencySummary(p50=1.0, p95=1.0, max=1.0, count=WINDOW)
    assert summary["total"].max == WINDOW - 1
    assert summary["total"].p50 == pytest.approx((WINDOW - 1) / 2)
    window.clear()
    assert window.summary() == {}


def test_percentiles_since_a_time_are_those_of_the_latest_run_where_nothing_came_since() -> None:
    window = LatencyWindow()
    for second in range(10):
        window.add({"total": 10.0 * second}, now_s=float(second))
    assert window.summary(since_s=8.0)["total"] == LatencySummary.of([80.0, 90.0])
    assert window.summary(since_s=60.0)["total"] == LatencySummary.of([90.0])


def test_stamps_that_jump_back_are_told_apart_from_those_that_come_a_little_late() -> None:
    watch = RestartWatch()
    stamps_s = (10.0, 10.4, 10.0, 9.9, 10.5, 4.0, 4.1, 3.7, 3.0)
    assert [round(watch.jump_s(round(1e9 * stamp_s)), 3) for stamp_s in stamps_s] == [0, 0, 0, 0, 0, 6.5, 0, 0, 1.1]
    watch.forget()
    assert watch.jump_s(0) == 0
