"""The scene camera as a process: images with ground truth of the same stamp, and the names of its stretches."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from graph import LATCHED, RELIABLE, Graph, wait_for
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from semla_ros.config import from_mapping, settings_of
from semla_ros.errors import ConfigError
from semla_ros.lab.demo.scene_camera_node import SceneCameraConfig
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.drive import demo_drive
from semla_ros.nodes.messages import stamp_ns

MODULE = ("-m", "semla_ros.lab.demo.scene_camera_node")


def test_images_and_truth_come_in_pairs_at_the_rate_until_the_end(graph: Graph) -> None:
    topics = {"image": Image, "ground_truth": Image, "camera_info": CameraInfo}
    received = {name: graph.collect(kind, f"/drive/{name}", RELIABLE) for name, kind in topics.items()}
    told = graph.collect(String, "/drive/segment", LATCHED)
    process = graph.start(
        *MODULE, namespace="drive", duration_s=1.5, rate_hz=10.0, width=64, height=48, seed=3, frame_id="front"
    )
    wait_for(lambda: all(len(items) == 15 for items in received.values()), "all images")
    stamps = [stamp_ns(message.header.stamp) for message in received["image"]]
    for name in ("ground_truth", "camera_info"):
        assert [message.header for message in received[name]] == [message.header for message in received["image"]]
    assert received["image"][0].header.frame_id == "front"
    assert np.median(np.diff(stamps)) == pytest.approx(1e8, rel=0.2)
    drive = demo_drive(3, duration_s=1.5)
    names = [drive.segment_name(index / 10) or "transition" for index in range(15)]
    changes = [name for before, name in pairwise(["", *names]) if name != before]
    assert [message.data for message in told] == changes
    assert len(changes) > 5
    scene = drive.render(0.0, 64, 48)
    image, truth = received["image"][0], received["ground_truth"][0]
    assert (image.encoding, truth.encoding) == ("rgb8", "mono8")
    assert np.array_equal(np.frombuffer(image.data, np.uint8).reshape(48, 64, 3), scene.image)
    assert np.array_equal(np.frombuffer(truth.data, np.uint8).reshape(48, 64), scene.mask)
    assert set(truth.data) <= {*range(len(CLASS_NAMES)), 255}
    late = graph.collect(String, "/drive/segment", LATCHED)
    wait_for(lambda: late, "the present stretch, told to a late joiner")
    assert late[0].data == "clear"
    assert process.stop() == 0, process.output
    assert "15 images" in process.output


def test_a_wrong_parameter_is_one_line_and_status_2(graph: Graph) -> None:
    process = graph.start(*MODULE, namespace="wrong", rate=5.0)
    wait_for(lambda: not process.is_alive, "the end of the process")
    assert process.stop() == 2
    # Kilted's middleware warns of the older one of the two variables that name a profile.
    (line,) = (line for line in process.output.strip().splitlines() if "[rmw_fastrtps_shared_cpp]" not in line)
    assert line.startswith("scene_camera: unknown setting 'rate'; did you mean 'rate_hz'?")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rate_hz": 0.0}, ["rate_hz", "positive"]),
        ({"duration_s": float("inf")}, ["duration_s", "positive"]),
        ({"city": "atlantis"}, ["atlantis", "boulevard"]),
        ({"width": "wide"}, ["width", "int"]),
        ({"height": 8}, ["height", "16"]),
    ],
)
def test_a_wrong_setting_is_refused_by_name(values: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(SceneCameraConfig, values)
    assert all(word in str(caught.value) for word in words), caught.value


def test_help_has_every_parameter_and_starts_no_node() -> None:
    answer = subprocess.run([sys.executable, *MODULE, "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "usage: scene_camera" in answer.stdout
    assert all(f"  {name} " in answer.stdout for name in settings_of(SceneCameraConfig))
