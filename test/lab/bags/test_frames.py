"""Frames of a bag: cameras and truth found, brought together, decoded ahead."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from semla_ros.errors import BagError, ConfigError
from semla_ros.lab.bags.frames import FrameOptions, FrameSource, ReplayFrame
from semla_ros.lab.bags.label_map import LabelMap, parse_label_map, read_label_map
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import TYPES, BagWriter

NAMES = ("road", "sky", "car")
STEP_NS = 100_000_000
START_NS = 1_700_000_000_000_000_000


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (12, 16, 3), np.uint8)


def truth(index: int) -> np.ndarray:
    return np.full((12, 16), index % 3, np.uint8)


def stamp(index: int) -> int:
    return START_NS + index * STEP_NS


def write_bag(path: Path, frames: int = 6, *, label_delay: int = 0, label_topic: str = "/front/label") -> Path:
    with BagWriter(path) as bag:
        for index in range(frames + label_delay):
            if index < frames:
                bag.image("/front/image_raw", picture(index), stamp(index), "front")
                bag.compressed_image("/front/image_raw/compressed", picture(index), stamp(index), format="png")
            if index >= label_delay:
                late = index - label_delay
                message = image_message(truth(late), stamp(late), "mono8")
                bag.write(label_topic, "sensor_msgs/msg/Image", message, stamp(index))
    return path


def image_message(array: np.ndarray, stamp_ns: int, encoding: str) -> object:
    time = TYPES.types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    header = TYPES.types["std_msgs/msg/Header"](stamp=time, frame_id="front")
    return TYPES.types["sensor_msgs/msg/Image"](
        header=header,
        height=array.shape[0],
        width=array.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=array[0].nbytes,
        data=np.ascontiguousarray(array).reshape(-1).view(np.uint8),
    )


def replay(path: Path, names: tuple[str, ...] = NAMES, **options: object) -> tuple[list[ReplayFrame], list[str]]:
    with BagReader(path) as bag:
        source = FrameSource(bag, FrameOptions(**options), names)
        frames = list(source.frames())
        return frames, source.problems.lines()


@pytest.mark.parametrize("label_delay", [0, 2])
def test_images_and_their_truth_come_together_in_order(tmp_path: Path, label_delay: int) -> None:
    frames, problems = replay(write_bag(tmp_path / "bag", label_delay=label_delay))
    assert [frame.index for frame in frames] == list(range(6))
    for index, frame in enumerate(frames):
        assert frame.frame.stamp_ns == stamp(index)
        assert np.array_equal(frame.frame.image, picture(index))
        assert np.array_equal(frame.truth, truth(index))
    assert problems == []


def test_compressed_images_give_the_same_frames(tmp_path: Path) -> None:
    frames, _ = replay(write_bag(tmp_path / "bag"), topics=("/front/image_raw/compressed",))
    assert all(np.array_equal(frame.frame.image, picture(index)) for index, frame in enumerate(frames))
    assert len(frames) == 6


def test_several_cameras_are_named_by_their_topics(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(3):
            for camera in ("front", "left"):
                bag.image(f"/{camera}/image", picture(index), stamp(index))
                bag.image(f"/{camera}/semantic_labels", truth(index), stamp(index))
    frames, _ = replay(tmp_path / "bag")
    assert [frame.frame.camera for frame in frames] == ["front", "left"] * 3
    assert all(frame.truth is not None for frame in frames)


def test_start_duration_stride_and_limit_choose_the_frames(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", frames=20)

    def chosen(**options: object) -> list[int]:
        return [(frame.frame.stamp_ns - START_NS) // STEP_NS for frame in replay(path, **options)[0]]

    assert chosen(start_s=1.0) == list(range(10, 20))
    assert chosen(start_s=0.5, duration_s=0.4) == [5, 6, 7, 8]
    assert chosen(stride=6) == [0, 6, 12, 18]
    assert chosen(max_frames=3) == [0, 1, 2]


def test_a_truth_folder_is_matched_by_stamp(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for index in (0, 2):
        cv2.imwrite(str(tmp_path / "masks" / f"{stamp(index)}.png"), truth(index))
    frames, problems = replay(write_bag(tmp_path / "bag", frames=3), truth=(str(tmp_path / "masks"),))
    assert [frame.truth is not None for frame in frames] == [True, False, True]
    assert "no ground truth" in problems[0]


def test_truth_is_renumbered_by_name_and_strangers_are_ignored(tmp_path: Path) -> None:
    frames, problems = replay(
        write_bag(tmp_path / "bag", frames=3), label_map={0: "Sky", 1: "car", 2: "tram"}, truth=("/front/label",)
    )
    assert [int(frame.truth[0, 0]) for frame in frames] == [1, 2, 255]
    assert "tram" in problems[0]


def test_the_label_topic_of_the_bag_names_the_truth(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.string("/labels", '{"version": 1, "classes": [{"id": 0, "name": "car"}, {"id": 1, "name": "road"}]}', 1)
        bag.image("/image", picture(0), stamp(0))
        bag.image("/truth", truth(1), stamp(0))
    frames, _ = replay(tmp_path / "bag")
    assert int(frames[0].truth[0, 0]) == 0


def test_truth_of_another_size_is_left_out_and_said(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(3):
            bag.image("/image", picture(index), stamp(index))
            bag.image("/label", truth(index)[:6], stamp(index))
    frames, problems = replay(tmp_path / "bag")
    assert [frame.truth for frame in frames] == [None] * 3
    assert "16x6" in problems[0]
    assert "16x12" in problems[0]
    assert "2 more" in problems[0]


def test_an_unknown_encoding_costs_only_its_own_images(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(4):
            encoding = "rgb8" if index % 2 else "mystery12"
            bag.write(
                "/image", "sensor_msgs/msg/Image", image_message(picture(index), stamp(index), encoding), stamp(index)
            )
    frames, problems = replay(tmp_path / "bag")
    assert [frame.frame.stamp_ns for frame in frames] == [stamp(1), stamp(3)]
    assert "mystery12" in problems[0]


def test_what_cameras_left_open_is_read_as_in_the_node_and_said_once(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(4):
            deep = picture(index)[..., 0].astype(np.uint16) << 4
            for topic, pixels, encoding in (("/left", picture(index), "8UC3"), ("/right", deep, "mono16")):
                bag.write(topic, "sensor_msgs/msg/Image", image_message(pixels, stamp(index), encoding), stamp(index))
    topics = ("/left", "/right")
    frames, problems = replay(tmp_path / "bag", topics=topics, truth=("none",))
    assert sorted(problems) == [
        "images on /left: encoding '8UC3' is read as bgr8; set assume_encoding to what it is",
        "images on /right: 16-bit samples use 12 bits so far and are read as such; set bits to what the camera has",
    ]
    for item in frames:
        expected = picture((item.frame.stamp_ns - START_NS) // STEP_NS)
        expected = expected[..., ::-1] if item.topic == "/left" else expected[..., :1].repeat(3, axis=2)
        assert np.array_equal(item.frame.image, expected)
    frames, problems = replay(tmp_path / "bag", topics=topics, truth=("none",), assume_encoding="rgb8", bits=12)
    assert problems == []
    assert np.array_equal(next(item.frame.image for item in frames if item.topic == "/left"), picture(0))


def test_truth_of_a_palette_is_its_indices(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag")
    (tmp_path / "truth").mkdir()
    for index in range(6):
        ids = Image.fromarray(truth(index), mode="P")
        ids.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
        ids.save(tmp_path / "truth" / f"{stamp(index)}.png")
    frames, problems = replay(bag, truth=(str(tmp_path / "truth"),))
    assert problems == []
    assert all(np.array_equal(frame.truth, truth(index)) for index, frame in enumerate(frames))


def test_segments_name_the_frames_behind_them(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(6):
            if index % 3 == 0:
                bag.string("/scene/segment", ["day", "fog"][index // 3], stamp(index))
            bag.image("/image", picture(index), stamp(index))
    assert [frame.segment for frame in replay(tmp_path / "bag")[0]] == ["day"] * 3 + ["fog"] * 3
    assert [frame.segment for frame in replay(tmp_path / "bag", start_s=0.2)[0]] == ["day"] + ["fog"] * 3


def test_images_without_a_stamp_take_their_recording_time(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.write("/image", "sensor_msgs/msg/Image", image_message(picture(0), 0, "rgb8"), stamp(3))
    frames, problems = replay(tmp_path / "bag")
    assert frames[0].frame.stamp_ns == stamp(3)
    assert "no stamp" in problems[0]


def test_a_jpeg_as_truth_is_refused(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.image("/image", picture(0), stamp(0))
        bag.compressed_image("/label/compressed", truth(0), stamp(0), format="jpeg")
    frames, problems = replay(tmp_path / "bag", topics=("/image",), truth=("/label/compressed",))
    assert frames[0].truth is None
    assert any("lossless" in problem for problem in problems)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topics": ("/rear",)}, "no topic '/rear'"),
        ({"truth": ("/rear_label",)}, "neither a folder nor a topic"),
        ({"truth": ("/front/label", "/front/label")}, "2 topics for 1"),
        ({"start_s": 100.0}, "only"),
    ],
)
def test_what_the_bag_does_not_have_is_refused(tmp_path: Path, options: dict[str, object], words: str) -> None:
    path = write_bag(tmp_path / "bag")
    with pytest.raises((BagError, ConfigError), match=words):
        replay(path, **options)


def test_closing_early_ends_the_reading_thread(tmp_path: Path) -> None:
    with BagReader(write_bag(tmp_path / "bag", frames=60)) as bag:
        frames = FrameSource(bag, FrameOptions(), NAMES).frames()
        next(frames)
        frames.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("semla-bag-reader")]


def test_label_maps_come_in_three_forms(tmp_path: Path) -> None:
    expected = {0: "road", 7: "car"}
    assert parse_label_map({"0": "road", 7: "car"}, "x") == expected
    assert parse_label_map({"classes": [{"id": 0, "name": "road"}, {"id": 7, "name": "car"}]}, "x") == expected
    (tmp_path / "list.yaml").write_text("[road, car]")
    assert read_label_map(tmp_path / "list.yaml") == {0: "road", 1: "car"}


@pytest.mark.parametrize("text", ["7", "{road: 7}", "{0: [road]}", "{: :", "{99999: road}"])
def test_what_is_no_label_map_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(ConfigError, match="label map"):
        read_label_map(tmp_path / "map.yaml")


def test_a_label_map_without_any_known_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="none of its names"):
        LabelMap({0: "hull", 1: "sail"}, NAMES)


def test_label_values_beyond_the_map_are_unlabelled() -> None:
    label_map = LabelMap({0: "road", 300: "car"}, NAMES)
    mapped = label_map(np.array([[0, 300, 4000, 65535]], np.uint16))
    assert mapped.tolist() == [[0, 2, 255, 255]]
