"""The parts of the node that need no graph: slots, statistics, diagnostics, messages, label map, library watch."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from semla_ros.config import DiagnosticsConfig
from semla_ros.image_codec import decode, decode_compressed
from semla_ros.labels import colour_of, labels_json, overlay, palette_of
from semla_ros.nodes.messages import (
    compressed_message,
    image_message,
    label_info_message,
    rescaled_camera_info,
    stamp_ns,
    to_stamp,
)
from semla_ros.nodes.ros_logging import forward_logs, stop_forwarding
from semla_ros.serving import camera_statistics as drops
from semla_ros.serving.camera_slots import CameraSlots
from semla_ros.serving.camera_statistics import CameraSnapshot, CameraStatistics
from semla_ros.serving.health import Level, NodeState, camera_report, node_report
from semla_ros.serving.library_watch import LibraryWatch
from semla_ros.timing import LatencySummary


def test_the_newest_image_of_each_camera_is_served_in_turn() -> None:
    slots: CameraSlots[int] = CameraSlots(["front", "left", "right"])
    assert slots.put("front", 1) is None
    assert slots.put("front", 2) == 1
    slots.put("right", 10)
    assert slots.take() == [("front", 2)]
    slots.put("front", 3)  # a fast camera does not keep the others out
    assert slots.take() == [("right", 10)]
    assert slots.take() == [("front", 3)]


def test_cameras_that_wait_are_taken_together_up_to_a_number_and_in_turn() -> None:
    slots: CameraSlots[int] = CameraSlots(["front", "left", "right"])
    for number, camera in enumerate(("front", "left", "right")):
        slots.put(camera, number)
    assert slots.take(2) == [("front", 0), ("left", 1)]
    slots.put("front", 3)
    assert slots.take(5) == [("right", 2), ("front", 3)]
    slots.put("front", 4)
    slots.put("left", 5)
    assert slots.take(1) == [("left", 5)]


def test_closing_wakes_the_taker_and_returns_what_waited() -> None:
    slots: CameraSlots[int] = CameraSlots([""])
    taken: list[object] = []
    taker = threading.Thread(target=lambda: taken.append(slots.take()))
    taker.start()
    assert slots.close() == {}
    taker.join(5.0)
    assert taken == [[]]
    assert slots.put("", 5) == 5
    waiting: CameraSlots[int] = CameraSlots([""])
    waiting.put("", 7)
    assert waiting.close() == {"": 7}


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
    assert snapshot.image_rate_hz == pytest.approx(10.0)
    assert snapshot.mask_rate_hz == pytest.approx(5.0)
    assert snapshot.silence_s == pytest.approx(0.5)
    assert (snapshot.latency_ms["total"].p50, snapshot.latency_ms["total"].max) == (30.0, 50.0)
    assert (snapshot.last_error, snapshot.error_age_s) == ("why", pytest.approx(0.5))
    assert statistics.snapshot(200.0, window_s=10.0).recent_dropped == {}
    statistics.clear()
    snapshot = statistics.snapshot(3.0, window_s=10.0)  # the clock has jumped back
    assert (snapshot.received, snapshot.image_rate_hz, snapshot.age_ms, snapshot.silence_s) == (11, 0.0, None, 0.0)


def snapshot_of(**changes: object) -> CameraSnapshot:
    values: dict = {
        "received": 100, "answered": 100, "dropped": {}, "recent_received": 100, "recent_dropped": {},
        "image_rate_hz": 10.0, "mask_rate_hz": 10.0, "silence_s": 0.1, "age_ms": LatencySummary(p50=50, p95=60, max=70),
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
        ({"latency_ms": {"total": LatencySummary(p50=1, p95=900, max=901)}}, Level.WARN, ["900 ms", "smaller images"]),
        ({"mask_rate_hz": 4.0}, Level.WARN, ["4.0 masks per second", "fewer than 5"]),
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


def test_latencies_and_ages_are_those_of_the_window_and_the_last_ones_where_it_is_empty() -> None:
    statistics = CameraStatistics()
    for second in range(20):
        statistics.answer(100.0 + second, {"total": 1000.0 if second < 10 else 5.0}, age_ms=9e9 if second < 10 else 7.0)
    snapshot = statistics.snapshot(120.0, window_s=10.0)
    assert (snapshot.latency_ms["total"].max, snapshot.age_ms.max) == (5.0, 7.0)
    assert statistics.snapshot(500.0, window_s=10.0).latency_ms["total"].p50 == 5.0


def test_images_without_stamps_and_stamps_that_jump_back_are_noticed() -> None:
    statistics = CameraStatistics()
    statistics.answer(100.0, {}, age_ms=None)
    assert not statistics.snapshot(100.0, window_s=10.0).has_stamps
    for second in (101.0, 102.0, 103.0):
        statistics.restart(second)
        statistics.answer(second, {}, age_ms=1.0)
    snapshot = statistics.snapshot(104.0, window_s=10.0)
    assert (snapshot.has_stamps, snapshot.recent_restarts) == (True, 3)
    assert statistics.snapshot(200.0, window_s=10.0).recent_restarts == 0


def test_a_node_that_failed_to_start_is_an_error_with_the_reason() -> None:
    report = node_report("perception", NodeState(lifecycle="unconfigured", problem="configuring failed: no model"))
    assert (report.level, report.message) == (Level.ERROR, "configuring failed: no model")
    assert node_report("perception", NodeState(lifecycle="active")).message == "active"


@pytest.mark.parametrize(("dtype", "encoding"), [(np.uint8, "mono8"), (np.uint16, "mono16")])
def test_a_mask_survives_both_kinds_of_message(dtype: type, encoding: str) -> None:
    mask = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7)).astype(dtype)
    message = image_message(Header(frame_id="cam"), mask)
    assert (message.encoding, message.step, message.header.frame_id) == (encoding, 7 * mask.itemsize, "cam")
    assert np.array_equal(np.frombuffer(message.data, dtype).reshape(5, 7), mask)
    compressed = compressed_message(Header(), mask)
    assert compressed.format == f"{encoding}; png compressed {encoding}"
    import cv2

    assert np.array_equal(cv2.imdecode(np.frombuffer(compressed.data, np.uint8), cv2.IMREAD_UNCHANGED), mask)


def test_pictures_survive_too() -> None:
    image = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    message = image_message(Header(), image[:, ::-1])  # not contiguous
    assert np.array_equal(
        decode(encoding=message.encoding, width=16, height=16, step=message.step, data=message.data), image
    )
    assert np.abs(decode_compressed(compressed_message(Header(), image).data).astype(int) - image).max() < 8


def test_stamps_survive_the_way_to_nanoseconds_and_back() -> None:
    for nanoseconds in (0, 1, 999_999_999, 1_000_000_000, 1_795_000_000_123_456_789):
        assert stamp_ns(to_stamp(nanoseconds)) == nanoseconds


def test_calibration_scales_with_the_image() -> None:
    info = CameraInfo(width=640, height=480, d=[0.1, 0.2, 0.0, 0.0, 0.0])
    info.k = [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
    info.p = [500.0, 0.0, 320.0, -50.0, 0.0, 510.0, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    scaled = rescaled_camera_info(info, Header(frame_id="cam"), 320, 120)
    assert list(scaled.k) == [250.0, 0.0, 160.0, 0.0, 127.5, 60.0, 0.0, 0.0, 1.0]
    assert list(scaled.p) == [250.0, 0.0, 160.0, -25.0, 0.0, 127.5, 60.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert (list(scaled.d), scaled.width, scaled.height, scaled.header.frame_id) == (list(info.d), 320, 120, "cam")
    assert (info.width, info.k[0]) == (640, 500.0)  # the source is not touched


def test_colours_depend_on_the_name_only_and_labels_say_all() -> None:
    assert colour_of("Road") == (128, 64, 128)
    assert colour_of("unicorn") == colour_of("unicorn") != colour_of("dragon")
    told = json.loads(labels_json(["road", "straße"], version=4))
    assert told["version"] == 4
    assert [(item["id"], item["name"]) for item in told["classes"]] == [(0, "road"), (1, "straße")]
    assert (told["unlabelled"], told["encoding"]) == (255, "mono8")
    assert json.loads(labels_json([str(index) for index in range(255)], 0))["unlabelled"] == 65535


def test_the_overlay_blends_classes_and_leaves_the_rest() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    mask = np.array([[0, 1, 255]], np.uint8)
    palette = palette_of(["road", "sky"])
    blended = overlay(image, mask, palette, 1.0)
    assert np.array_equal(blended[0], [palette[0], palette[1], (100, 100, 100)])
    assert np.array_equal(overlay(image, mask, palette, 0.0), image)


def test_a_change_of_the_library_counts_once_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "fog").mkdir()
    (tmp_path / "fog" / "weights").write_bytes(b"1")
    watch = LibraryWatch(tmp_path)
    assert [watch.has_changed() for _ in range(2)] == [False, False]
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "weights").write_bytes(b"12")
    assert not watch.has_changed()  # may still be being written
    assert [watch.has_changed() for _ in range(2)] == [True, False]
    (tmp_path / "fog" / "weights").unlink()
    assert [watch.has_changed() for _ in range(3)] == [False, True, False]


def test_vision_msgs_get_the_same_classes_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("vision_msgs.msg")
    package.LabelInfo = types.SimpleNamespace
    package.VisionClass = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "vision_msgs", types.ModuleType("vision_msgs"))
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", package)
    header = Header(frame_id="cam")
    message = label_info_message(header, ["road", "sky"])
    assert message.header is header
    assert [(item.class_id, item.class_name) for item in message.class_map] == [(0, "road"), (1, "sky")]


def test_the_core_logs_through_the_node_with_its_traceback() -> None:
    class Logger:
        lines: list[tuple[str, str]] = []  # noqa: RUF012

        def get_effective_level(self) -> int:
            return 20

        def __getattr__(self, level: str):
            return lambda text: self.lines.append((level, text))

    handler = forward_logs(Logger())
    core = logging.getLogger("semla_ros.some.module")
    try:
        core.debug("not wanted")
        core.info("adapter %s", "fog")
        core.warning("hot")
        try:
            raise ValueError("broken")
        except ValueError:
            core.exception("failed")
    finally:
        stop_forwarding(handler)
    core.warning("after the end")
    assert [line[0] for line in Logger.lines] == ["info", "warning", "error"]
    assert Logger.lines[0][1] == "adapter fog"
    assert "ValueError: broken" in Logger.lines[2][1]


def test_waiting_for_an_image_costs_no_processor_time() -> None:
    slots: CameraSlots[int] = CameraSlots([""])
    taker = threading.Thread(target=slots.take)
    before = time.process_time()
    taker.start()
    time.sleep(0.2)
    slots.close()
    taker.join()
    assert time.process_time() - before < 0.1
