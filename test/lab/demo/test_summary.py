import json

import pytest

from semla_ros.errors import ConfigError
from semla_ros.lab.demo.recording import DiagnosticsSnapshot
from semla_ros.lab.demo.settings import DemoSettings, parse_size
from semla_ros.lab.demo.summary import NOT_RECEIVED, Flow, make_summary

NAMES = ("road", "sidewalk", "car", "sky")


def diagnostics(**values: int) -> DiagnosticsSnapshot:
    return DiagnosticsSnapshot(
        "OK", "", {key.replace("__", ": ").replace("_", " "): str(value) for key, value in values.items()}
    )


def test_every_frame_sent_is_answered_or_dropped_for_a_reason(drive) -> None:
    recording = drive.recording
    recording.frames_sent = 40
    recording.diagnostics = diagnostics(
        camera__Images_received=36, camera__Dropped__overtaken=4, camera__Dropped__failed=2
    )
    flow = Flow(recording)
    assert (flow.sent, flow.received, flow.taken, flow.masks, flow.answered) == (40, 36, 32, 30, 30)
    assert flow.dropped == {"overtaken": 4, "failed": 2, NOT_RECEIVED: 4}
    assert flow.masks + sum(flow.dropped.values()) == flow.sent


def test_masks_that_came_after_the_last_diagnostics_count_as_taken(drive) -> None:
    drive.recording.diagnostics = diagnostics(camera__Images_received=20)
    assert Flow(drive.recording).taken == 30


def test_a_mask_with_another_frame_id_is_not_an_answer(drive) -> None:
    drive.recording.frames()[4].mask_frame_id = "elsewhere"
    flow = Flow(drive.recording)
    assert (flow.masks, flow.answered) == (30, 29)


def test_the_summary_holds_what_is_promised_and_is_plain_json(drive) -> None:
    summary, checks = make_summary(DemoSettings(is_fast=False), drive.recording, drive.score, NAMES)
    read = json.loads(json.dumps(summary, allow_nan=False))
    assert read["frames_sent"] == read["masks_received"] == 30
    assert read["frames_dropped"] == 0
    assert read["generations"] == 5
    assert read["latency_ms"] == {"p50": 80.0, "p95": 80.0, "max": 80.0}
    assert read["mask_rate_hz"] == pytest.approx(4.0)
    assert read["miou"]["adapted"] - read["miou"]["base"] == pytest.approx(drive.score.gain)
    assert read["miou"]["per_segment"]["night"]["heaviest_adapter_right_fraction"] == 1.0
    assert read["miou"]["per_segment"]["clear to night"]["heaviest_adapter_right_fraction"] is None
    assert [entry["generation"] for entry in read["mix"]] == [1, 2, 3, 4, 5]
    assert read["mix"][2]["weights"]["night"] == 0.7
    assert read["mix"][2]["seconds"] == pytest.approx(3.0)
    assert read["passed"] is all(check.passed for check in checks) is True
    assert {"cpu", "cores", "system"} <= set(read["machine"])
    assert {"semla_ros", "python", "torch"} <= set(read["versions"])


def test_latencies_of_the_node_are_taken_from_its_diagnostics(drive) -> None:
    drive.recording.diagnostics = DiagnosticsSnapshot(
        "OK", "", {"camera: Latency forward p95 (ms)": "61.5", "adaptation: Latency adapt embed p95 (ms)": "9"}
    )
    summary, _ = make_summary(DemoSettings(), drive.recording, drive.score, NAMES)
    assert summary["node_latency_ms"] == {"forward": {"p95": 61.5}}


def test_an_image_size_is_read_as_width_and_height() -> None:
    assert parse_size("320x240") == (320, 240)
    assert parse_size(" 64X48 ") == (64, 48)


@pytest.mark.parametrize("words", ["", "320", "320x", "axb", "320x240x3", "-3x4"])
def test_what_is_no_size_is_named(words) -> None:
    with pytest.raises(ConfigError, match="WIDTHxHEIGHT"):
        parse_size(words)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rate_hz": -1.0}, "rate_hz"),
        ({"width": 8}, "width"),
        ({"height": 9999}, "height"),
        ({"seed": -1}, "seed"),
        ({"drive_s": -2.0}, "duration_s"),
    ],
)
def test_settings_out_of_range_are_named(options, named) -> None:
    with pytest.raises(ConfigError, match=named):
        DemoSettings(**options)


def test_the_camera_rate_follows_the_processor_unless_given() -> None:
    assert 5.0 <= DemoSettings().camera_rate_hz <= 10.0
    assert DemoSettings(rate_hz=3.5).camera_rate_hz == 3.5
