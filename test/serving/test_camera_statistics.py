"""What becomes of each image is counted, and forgotten only where time explains it."""

from __future__ import annotations

import pytest

from semla_ros.serving import camera_statistics as drops
from semla_ros.serving.camera_statistics import CameraStatistics


def test_statistics_account_for_every_image_and_forget_only_what_time_explains() -> None:
    statistics = CameraStatistics()
    for index in range(11):
        statistics.receive(100.0 + 0.1 * index)
    for index in range(5):
        statistics.answer(100.0 + 0.2 * index, {"total": 10.0 * (index + 1)}, age_ms=50.0)
    for reason in (drops.OVERTAKEN, drops.OVERTAKEN, drops.BROKEN):
        statistics.drop(101.0, reason, "why" if reason == drops.BROKEN else "")
    snapshot = statistics.snapshot(101.5, window_s=10.0)
    assert (snapshot.received, snapshot.answered, snapshot.dropped) == (11, 5, {"overtaken": 2, "broken image": 1})
    assert (snapshot.image_rate_hz, snapshot.mask_rate_hz) == (pytest.approx(10 / 1.5), pytest.approx(4 / 1.5))
    assert snapshot.silence_s == pytest.approx(0.5)
    assert (snapshot.latency_ms["total"].p50, snapshot.latency_ms["total"].max) == (30.0, 50.0)
    assert snapshot.last_error == "why"
    assert statistics.snapshot(200.0, window_s=10.0).recent_dropped == {}
    statistics.clear()
    snapshot = statistics.snapshot(103.0, window_s=10.0)
    assert (snapshot.received, snapshot.image_rate_hz, snapshot.age_ms, snapshot.silence_s) == (11, 0.0, None, 2.0)


def test_what_the_middleware_tells_of_the_transport_counts_beside_what_is_received() -> None:
    statistics = CameraStatistics()
    statistics.receive(100.0)
    statistics.lose(100.0, 3)
    statistics.lose(120.0, 2)
    statistics.miss_deadline(120.0, 7)
    statistics.tell_alive(False)
    snapshot = statistics.snapshot(121.0, window_s=10.0)
    assert (snapshot.received, snapshot.lost, snapshot.recent_lost, snapshot.recent_late) == (1, 5, 2, 7)
    assert not snapshot.is_alive
    later = statistics.snapshot(200.0, window_s=10.0)
    assert (later.lost, later.recent_lost, later.recent_late) == (5, 0, 0)


def test_rates_are_those_of_the_window_that_ends_now_and_fall_where_nothing_happens_any_more() -> None:
    statistics = CameraStatistics()
    rates = []
    for index in range(301):
        if index >= 200 and not index % 10:
            rates.append(statistics.snapshot(100.0 + 0.1 * index, window_s=10.0))
        statistics.receive(100.0 + 0.1 * index)
        if index < 200:  # then the frame path hangs
            statistics.answer(100.05 + 0.1 * index, {}, age_ms=0.0)
    assert [rate.mask_rate_hz for rate in rates] == pytest.approx([10.0 - second for second in range(11)], abs=0.11)
    assert [rate.image_rate_hz for rate in rates] == pytest.approx([10.0] * 11, abs=0.11)
    assert statistics.snapshot(200.0, window_s=10.0).image_rate_hz == 0.0
    early = CameraStatistics()
    early.receive(100.0)
    assert (early.snapshot(100.5, 10.0).image_rate_hz, early.snapshot(100.5, 10.0).span_s) == (0.0, 0.5)


def test_ages_are_unknown_without_a_clock_which_is_no_missing_stamp() -> None:
    statistics = CameraStatistics()
    statistics.answer(100.0, {"total": 5.0}, age_ms=3.0)
    statistics.clear_ages()  # the clock has jumped
    statistics.answer(101.0, {"total": 5.0}, age_ms=None, has_stamp=True)
    snapshot = statistics.snapshot(101.0, window_s=10.0)
    assert (snapshot.age_ms, snapshot.has_stamps, snapshot.latency_ms["total"].count) == (None, True, 2)


def test_latencies_and_ages_are_those_of_the_window_and_the_last_ones_where_it_is_empty() -> None:
    statistics = CameraStatistics()
    for second in range(20):
        statistics.answer(100.0 + second, {"total": 1000.0 if second < 10 else 5.0}, age_ms=9e9 if second < 10 else 7.0)
    snapshot = statistics.snapshot(120.0, window_s=10.0)
    assert (snapshot.latency_ms["total"].max, snapshot.age_ms.max) == (5.0, 7.0)
    assert statistics.snapshot(500.0, window_s=10.0).latency_ms["total"].p50 == 5.0


def test_images_without_stamps_and_stamps_that_jump_back_are_noticed() -> None:
    statistics = CameraStatistics()
    statistics.answer(100.0, {}, age_ms=None, has_stamp=False)
    assert not statistics.snapshot(100.0, window_s=10.0).has_stamps
    for second in (101.0, 102.0, 103.0):
        statistics.restart(second)
        statistics.answer(second, {}, age_ms=1.0)
    snapshot = statistics.snapshot(104.0, window_s=10.0)
    assert (snapshot.has_stamps, snapshot.recent_restarts) == (True, 3)
    assert statistics.snapshot(200.0, window_s=10.0).recent_restarts == 0
