"""Levels, and sentences that say what to do."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny_parts import PipelineFactory

from semla_ros.config import DiagnosticsConfig
from semla_ros.errors import ConfigError
from semla_ros.results import Level, Status
from semla_ros.serving import camera_statistics as drops
from semla_ros.serving.camera_statistics import CameraSnapshot
from semla_ros.serving.health import adaptation_report, camera_report, node_report
from semla_ros.serving.model_bank import ModelBank
from semla_ros.serving.parameters import Settings
from semla_ros.serving.troubles import Troubles
from semla_ros.timing import LatencySummary


def snapshot_of(**changes: object) -> CameraSnapshot:
    values: dict = {
        "received": 100, "answered": 100, "dropped": {}, "recent_received": 100, "recent_dropped": {},
        "image_rate_hz": 10.0, "mask_rate_hz": 10.0, "span_s": 10.0,
        "silence_s": 0.1, "age_ms": LatencySummary(p50=50, p95=60, max=70),
        "latency_ms": {"total": LatencySummary(p50=20, p95=30, max=40)},
    }  # fmt: skip
    return CameraSnapshot(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, Level.OK, ["10.0 masks per second"]),
        ({"silence_s": None}, Level.STALE, ["no image on /image yet", "check"]),
        ({"silence_s": 5.0}, Level.STALE, ["5.0 s", "check"]),
        ({"recent_dropped": {drops.BROKEN: 3}, "last_error": "step 5"}, Level.WARN, ["3 of 100", "step 5"]),
        ({"recent_dropped": {drops.BROKEN: 80}}, Level.ERROR, ["80 of 100"]),
        ({"recent_dropped": {drops.FAILED: 1}, "last_error": "oom"}, Level.ERROR, ["oom"]),
        ({"recent_dropped": {drops.OVERTAKEN: 95}}, Level.WARN, ["95%", "10.0 Hz come", "lower the camera's rate"]),
        ({"age_ms": LatencySummary(p50=2000, p95=2500, max=3000)}, Level.WARN, ["2.0 s old", "late"]),
        ({"age_ms": LatencySummary(p50=1e9, p95=1e9, max=1e9)}, Level.WARN, ["12 days behind", "use_sim_time"]),
        ({"age_ms": LatencySummary(p50=-3e6, p95=-3e6, max=-3e6)}, Level.WARN, ["3000.0 s ahead", "synchronise"]),
        ({"has_stamps": False}, Level.WARN, ["no stamp", "camera driver"]),
        ({"recent_restarts": 3}, Level.WARN, ["jumped back 3 times", "one camera alone"]),
        ({"recent_restarts": 1}, Level.OK, ["10.0 masks per second"]),
        ({"lost": 9, "recent_lost": 2}, Level.WARN, ["2 of 102", "lost on the way", "fastdds.xml"]),
        ({"lost": 9, "recent_lost": 1}, Level.OK, ["10.0 masks per second"]),  # of 101
        ({"recent_late": 4}, Level.WARN, ["4 times", "deadline", "check the camera's rate"]),
        ({"is_alive": False}, Level.WARN, ["liveliness", "driver"]),
        ({"latency_ms": {"total": LatencySummary(p50=1, p95=900, max=901)}}, Level.WARN, ["900 ms", "smaller images"]),
        ({"mask_rate_hz": 4.0}, Level.WARN, ["4.0 masks per second", "fewer than 5"]),
        ({"mask_rate_hz": 0.0}, Level.WARN, ["0.0 masks per second", "fewer than 5"]),
        ({"mask_rate_hz": 0.0, "span_s": 0.3}, Level.OK, ["0.0 masks per second"]),  # the first image has just come
    ],
)  # fmt: skip
def test_each_worry_has_a_level_and_says_what_to_do(changes: dict, level: Level, words: list[str]) -> None:
    config = DiagnosticsConfig(min_rate_hz=5.0)
    report = camera_report("perception", "", "/image", snapshot_of(**changes), config, is_enabled=True)
    assert report.level == level, report.message
    assert all(word in report.message for word in words), report.message
    assert report.values["Images received"] == "100"


def test_the_worst_worry_decides_and_all_are_told() -> None:
    snapshot = snapshot_of(recent_dropped={drops.FAILED: 1, drops.BROKEN: 1}, last_error="x")
    report = camera_report("perception", "front", "/f", snapshot, DiagnosticsConfig(), is_enabled=True)
    assert (report.name, report.level) == ("perception: camera front", Level.ERROR)
    assert report.message.count(";") == 1


def test_broken_images_do_not_ask_for_a_faster_device() -> None:
    snapshot = snapshot_of(recent_dropped={drops.BROKEN: 100}, last_error="x")
    report = camera_report("perception", "", "/f", snapshot, DiagnosticsConfig(), is_enabled=True)
    assert report.level == Level.ERROR
    assert "faster" not in report.message


def report_of(troubles: Troubles, is_enabled: bool = True) -> Status:
    frames = SimpleNamespace(is_enabled=is_enabled, image_codec="built in")
    return node_report("perception", "active", Settings.make({}), ModelBank(lambda _: None), frames, troubles)


def test_a_node_that_failed_to_start_is_an_error_with_the_reason() -> None:
    troubles = Troubles(lambda: False)
    assert report_of(troubles).message == "active"
    troubles.problem = "configuring failed: no model"
    report = report_of(troubles)
    assert (report.level, report.message) == (Level.ERROR, "configuring failed: no model")
    assert report.values["Model"] == "semla-tiny"


def test_what_was_refused_and_a_library_that_cannot_be_read_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    troubles = Troubles(lambda: False)
    assert troubles.refuse("change of top_k refused", ConfigError("'top_k' must be at least 1")) == (
        "'top_k' must be at least 1"
    )
    troubles.library_problem = "the adapter library cannot be read"
    report = report_of(troubles, is_enabled=False)
    assert report.level == Level.WARN
    assert report.message.split("; ") == [
        "switched off: call the enable service with true to go on",
        "change of top_k refused: 'top_k' must be at least 1",
        "the adapter library cannot be read",
    ]
    later_s = time.monotonic() + 60.0  # a refusal is old news after a while
    monkeypatch.setattr("semla_ros.serving.troubles.time.monotonic", lambda: later_s)
    assert report_of(troubles).message == "the adapter library cannot be read"


def test_an_error_that_nobody_expected_is_named_and_logged_unless_the_process_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert Troubles(lambda: True).reason(OSError("gone")) == "OSError: gone"
    assert caplog.text == ""
    assert Troubles(lambda: False).reason(OSError("gone")) == "OSError: gone"
    assert "unexpected error" in caplog.text
    assert "OSError: gone" in caplog.text


@pytest.mark.parametrize(("source", "flagged"), [("measured", "no"), ("estimated", "no"), ("unknown", "unknown")])
def test_what_spreads_are_is_told_and_nobody_is_within_the_library_where_they_are_unknown(
    make_pipeline: PipelineFactory, source: str, flagged: str
) -> None:
    status = replace(make_pipeline().status(), spread_source=source)
    report = adaptation_report("perception", "", status, failure_age_s=None, hold_s=10.0)
    assert (report.values["Spread of the adapters"], report.values["Out of library"]) == (source, flagged)


def test_a_model_of_rendered_images_says_so_and_what_to_do(make_pipeline: PipelineFactory) -> None:
    status = make_pipeline().status()
    report = adaptation_report("perception", "", status, failure_age_s=None, hold_s=10.0)
    assert report.values["Made for"] == "not stated"
    report = adaptation_report("perception", "", replace(status, domain="rendered"), failure_age_s=None, hold_s=10.0)
    assert report.values["Made for"] == "rendered"
    assert report.level == Level.OK
    assert "made for rendered images" in report.message
    assert "semla train adapter" in report.message
