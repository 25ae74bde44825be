"""Messages and what they are made of, without a graph."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from semla_ros.image_codec import decode, decode_compressed
from semla_ros.nodes.messages import (
    compressed_message,
    image_message,
    label_info_message,
    rescaled_camera_info,
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
    scaled = rescaled_camera_info(info, Header(frame_id="cam"), 320, 120)
    assert list(scaled.k) == [250.0, 0.0, 160.0, 0.0, 127.5, 60.0, 0.0, 0.0, 1.0]
    assert list(scaled.p) == [250.0, 0.0, 160.0, -25.0, 0.0, 127.5, 60.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert (list(scaled.d), scaled.width, scaled.height, scaled.header.frame_id) == (list(info.d), 320, 120, "cam")
    assert (info.width, info.k[0]) == (640, 500.0)  # the source is not touched


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
