"""The monitor against publishers in a process of their own, over DDS."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from semla_ros.lab.demo.frame_store import FrameStore
from semla_ros.lab.demo.recording import Recording, shares_of
from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.results import BASE_MODEL

pytestmark = pytest.mark.ros

NODES = Path(__file__).parents[2] / "helpers" / "published_drive.py"


def wait_for(condition, timeout_s: float = 30.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """What the monitor heard of the drive that `published_drive.py` publishes."""
    domain = free_domain()
    environment = isolated_environment(domain)
    before = dict(os.environ)
    os.environ.update(environment)
    from semla_ros.lab.demo.demo_monitor import Monitor

    try:
        with FrameStore(tmp_path_factory.mktemp("drive") / "frames.bin") as store:
            heard = Recording(store)
            with Monitor(heard, domain) as monitor:
                process = subprocess.Popen([sys.executable, str(NODES)], env=environment)
                complete = wait_for(lambda: len(store.stamps("image", "truth", "mask")) == 4 and heard.drive_ended)
                monitor.check()
                status = process.wait(20)
            assert status == 0
            assert complete, "not everything that was published arrived"
            yield heard
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_pictures_arrive_exactly_with_stamp_and_frame_id(recording) -> None:
    records = [record for record in recording.frames() if record.image_s is not None]
    assert [record.stamp_ns for record in records] == [1_700_000_000_000_000_000 + index * 10**8 for index in range(4)]
    assert all(record.is_answered and record.frame_id == "camera_link" for record in records)
    image = recording.store.get("image", records[2].stamp_ns)
    assert image.shape == (6, 8, 3)
    np.testing.assert_array_equal(image[0, 0], [2, 20, 200])
    np.testing.assert_array_equal(recording.store.get("truth", records[2].stamp_ns), np.full((6, 8), 2))
    np.testing.assert_array_equal(recording.store.get("mask", records[2].stamp_ns), np.full((6, 8), 12))


def test_segments_and_the_end_of_the_drive_are_heard(recording) -> None:
    assert [record.segment for record in recording.frames()] == ["clear", "clear", "night", "night"]
    assert recording.frames_sent == 4


def test_labels_mix_and_diagnostics_are_read_as_the_node_publishes_them(recording) -> None:
    assert recording.class_names == ("road", "car")
    (generation,) = recording.generations
    assert generation.number == 3
    assert generation.reason == "drift"
    assert shares_of(generation) == pytest.approx({"night": 0.75, BASE_MODEL: 0.25})
    assert generation.mix.heaviest == "night"
    assert recording.frames()[-1].generation is generation
    assert recording.diagnostics.level == "WARN"
    assert recording.diagnostics.message == "2 of 9 images were broken"
    assert recording.diagnostics.count("camera: Images received") == 9
    assert recording.diagnostics.dropped() == {"overtaken": 3}


def test_diagnostics_of_other_nodes_are_left_alone(recording) -> None:
    assert not any("battery" in key for key in recording.diagnostics.values)
