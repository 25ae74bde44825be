"""Messages and what they are made of, without a graph."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from decoding import decode, decode_compressed
from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from semla_ros.nodes.messages import (
    camera_info_message,
    compressed_message,
    image_message,
    label_info_message,
    stamp_ns,
    to_stamp,
)


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
    scaled, problem = camera_info_message(info, Header(frame_id="cam"), (640, 480), (320, 120))
    assert list(scaled.k) == [250.0, 0.0, 160.0, 0.0, 127.5, 60.0, 0.0, 0.0, 1.0]
    assert list(scaled.p) == [250.0, 0.0, 160.0, -25.0, 0.0, 127.5, 60.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert (list(scaled.d), scaled.width, scaled.height, scaled.header.frame_id) == (list(info.d), 320, 120, "cam")
    assert (info.width, info.k[0], problem) == (640, 500.0, "")  # the source is not touched


def projected(info: CameraInfo, point: np.ndarray) -> np.ndarray:
    """A point of the camera's frame in pixels of the image, by P and by K, as REP 104 has it."""
    offset, binning = [info.roi.x_offset, info.roi.y_offset], [max(info.binning_x, 1), max(info.binning_y, 1)]
    on_sensor = info.p.reshape(3, 4) @ [*point, 1.0], info.k.reshape(3, 3) @ point
    return np.array([(pixel[:2] / pixel[2] - offset) / binning for pixel in on_sensor])


@pytest.mark.parametrize("seed", range(200))
def test_a_point_falls_on_the_same_place_of_image_and_mask_with_any_region_binning_and_scale(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sensor, binning = rng.integers(64, 4000, 2), rng.integers(0, 5, 2)
    info = CameraInfo(width=int(sensor[0]), height=int(sensor[1]), binning_x=int(binning[0]), binning_y=int(binning[1]))
    focal, centre, baseline = rng.uniform(100, 3000, 2), sensor * rng.uniform(0.3, 0.7, 2), rng.uniform(-500, 0)
    info.k = [focal[0], 0.0, centre[0], 0.0, focal[1], centre[1], 0.0, 0.0, 1.0]
    info.p = [focal[0], 0.0, centre[0], baseline, 0.0, focal[1], centre[1], 0.0, 0.0, 0.0, 1.0, 0.0]
    window = sensor
    if seed % 3:
        window = rng.integers(16, sensor + 1)
        offset = rng.integers(0, sensor - window + 1)
        info.roi = RegionOfInterest(
            x_offset=int(offset[0]), y_offset=int(offset[1]), width=int(window[0]), height=int(window[1])
        )
    width, height = (int(side) for side in window // np.maximum(binning, 1))
    mask_scale = rng.uniform(0.01, 1) if seed % 5 else 1.0
    size = max(1, round(width * mask_scale)), max(1, round(height * mask_scale))
    published, problem = camera_info_message(info, Header(frame_id="cam"), (width, height), size)
    assert problem == ""
    for _ in range(5):
        point = np.array([*rng.uniform(-2, 2, 2), rng.uniform(0.5, 50)])
        scale = np.array(size) / (width, height)
        assert np.allclose(projected(published, point), projected(info, point) * scale, rtol=1e-9, atol=1e-6)
    window_of_mask = np.array([published.roi.width or published.width, published.roi.height or published.height])
    assert (abs(window_of_mask / np.maximum([published.binning_x, published.binning_y], 1) - size) < 1).all()


@pytest.mark.parametrize("mask_size", [(640, 360), (320, 180)])
@pytest.mark.parametrize(
    "changes", [{"width": 1280}, {"binning_x": 2}, {"roi": RegionOfInterest(width=320, height=360)}, {"width": 0}]
)
def test_a_calibration_of_another_size_is_passed_on_as_it_is_and_named(changes: dict, mask_size: tuple) -> None:
    info = CameraInfo(**({"width": 640, "height": 360, "k": [500.0, 0, 320, 0, 500, 180, 0, 0, 1]} | changes))
    published, problem = camera_info_message(info, Header(frame_id="cam"), (640, 360), mask_size)
    assert "images have 640x360: it is passed on as it is; let the camera driver" in problem
    assert published.header.frame_id == "cam"
    published.header = info.header
    assert published == info


def test_a_camera_without_calibration_is_no_worry() -> None:
    assert camera_info_message(CameraInfo(), Header(frame_id="cam"), (640, 360), (320, 180))[1] == ""


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
