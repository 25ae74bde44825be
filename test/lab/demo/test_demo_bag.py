"""The bag of a shipped drive holds what the drive shows."""

from pathlib import Path

import numpy as np
import pytest

from semla_ros.cli import main
from semla_ros.errors import ConfigError
from semla_ros.lab.bags.frames import FrameOptions, FrameSource
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.demo.demo_bag import DemoBagOptions, camera_matrix, drives, record_demo_bag
from semla_ros.lab.world.cities import city_style
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.drive import demo_drive

SMALL = DemoBagOptions(frames=8, width=64, height=48, rate_hz=0.1)


def contents(path: Path) -> list[tuple[str, int, bytes]]:
    with BagReader(path) as bag:
        return [(message.topic, message.log_ns, message.data) for message in bag.messages(list(bag.topics))]


def test_the_bag_holds_images_truth_and_calibration_of_every_camera(tmp_path: Path) -> None:
    record_demo_bag(tmp_path / "bag", SMALL)
    with BagReader(tmp_path / "bag") as bag:
        counts = {name: topic.count for name, topic in bag.topics.items()}
        info = bag.deserialize(next(bag.messages(["/rear/camera_info"])))
        source = FrameSource(bag, FrameOptions(), CLASS_NAMES)
        frames = list(source.frames())
        assert source.problems.lines() == []
    for camera in ("front", "rear"):
        assert [counts[f"/{camera}/{what}"] for what in ("image", "label", "camera_info")] == [4, 4, 4]
    assert (info.width, info.height, info.header.frame_id) == (64, 48, "rear_camera_optical_frame")
    np.testing.assert_array_equal(info.k.reshape(3, 3), camera_matrix(SMALL.city, 64, 48))
    np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], info.k.reshape(3, 3))
    front, rear = (drive.render(0.0, 64, 48) for drive in drives(SMALL))
    assert np.array_equal(frames[0].frame.image, front.image)
    assert np.array_equal(frames[0].truth, front.mask)
    assert np.array_equal(frames[1].frame.image, rear.image)
    assert frames[0].segment == "clear"
    assert len(frames) == 8


@pytest.mark.parametrize("city", ["boulevard", "suburb"])
def test_the_calibration_projects_a_point_to_the_pixel_that_shows_it(city: str) -> None:
    """Depth and the row of the road determine each other: y = -height of the camera everywhere on the road."""
    height_m = city_style(city).camera_height_m
    scene = demo_drive(3, city=city).render(0.0, 256, 192)
    rows, columns = np.nonzero(scene.mask == CLASS_NAMES.index("road"))
    matrix = camera_matrix(city, 256, 192)
    depth_m = scene.depth_m[rows, columns]
    expected = matrix[1, 1] * height_m / depth_m + matrix[1, 2]
    near = depth_m < 30
    assert near.sum() > 1000
    assert np.median(np.abs(expected - rows)[near]) < 0.1


def test_frames_are_counted_over_all_cameras(tmp_path: Path) -> None:
    record_demo_bag(tmp_path / "bag", DemoBagOptions(frames=5, width=64, height=48))
    with BagReader(tmp_path / "bag") as bag:
        assert (bag.topics["/front/image"].count, bag.topics["/rear/image"].count) == (3, 2)


def test_the_drive_takes_90_s_where_frames_allow_it() -> None:
    assert DemoBagOptions(frames=1000).duration_s == pytest.approx(90, rel=0.02)
    assert DemoBagOptions(frames=20).rate_hz == 1


def test_the_number_of_rendering_processes_does_not_change_the_bag(tmp_path: Path) -> None:
    record_demo_bag(tmp_path / "one", SMALL, jobs=1)
    record_demo_bag(tmp_path / "two", SMALL, jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_command_writes_a_bag_and_says_what_to_do_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["record-demo", "--out", str(tmp_path / "bag"), "--frames", "2", "--size", "64x48", "--jobs", "1"]
    assert main([*arguments, "--transport", "jpeg", "--cameras", "front"]) == 0
    assert "semla replay" in capsys.readouterr().err.replace("\n", " ")
    with BagReader(tmp_path / "bag") as bag:
        assert bag.topics["/front/image/compressed"].count == 2
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "0 frames"),
        ({"cameras": ("a", "a")}, "different names"),
        ({"cameras": ("a b",)}, "'a b'"),
        ({"seed": -1}, "--seed"),
        ({"city": "atlantis"}, "atlantis"),
    ],
)
def test_impossible_recordings_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DemoBagOptions(**options)
