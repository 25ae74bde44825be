"""What is published for an image, and what is not even made while nobody listens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from semla_ros.nodes import messages
from semla_ros.nodes.outputs import CameraOutputs
from semla_ros.results import AdapterMix, Frame, Generation, Segmentation

HEADER = Header(stamp=Time(sec=3, nanosec=7), frame_id="cam")


class Publisher:
    """Stands for rclpy's: counts, and pretends to have listeners."""

    def __init__(self) -> None:
        self.listeners = 0
        self.published: list[Any] = []

    def publish(self, message: Any) -> None:
        self.published.append(message)

    def get_subscription_count(self) -> int:
        return self.listeners


class Node:
    def __init__(self) -> None:
        self.publishers: dict[str, Publisher] = {}

    def create_publisher(self, kind: type, topic: str, *_: Any, **__: Any) -> Publisher:
        self.publishers[topic] = Publisher()
        return self.publishers[topic]


@pytest.fixture
def node() -> Node:
    return Node()


def publish(outputs: CameraOutputs) -> None:
    generation = Generation(number=0, mix=AdapterMix(), class_names=("road", "sky"), vocabulary_version=0)
    frame = Frame(image=np.zeros((4, 6, 3), np.uint8), stamp_ns=1, camera="", frame_id="cam")
    mask = np.zeros((4, 6), np.uint8)
    confidence = mask if outputs.want_confidence else None
    result = Segmentation(
        mask=mask, confidence=confidence, generation=generation, stamp_ns=1, camera="", frame_id="cam", latency_ms={}
    )
    outputs.publish(HEADER, frame, result, CameraInfo(width=6, height=4), 0.5)


def test_what_nobody_listens_to_is_not_made(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = CameraOutputs(node, "", 1.0)

    def forbidden(*_: Any) -> None:
        raise AssertionError("made although nobody listens")

    for module, name in (
        (messages, "compressed_message"), (messages, "rescaled_camera_info"), ("semla_ros.nodes.outputs", "overlay"),
        ("semla_ros.nodes.outputs", "palette_of"),
    ):  # fmt: skip
        monkeypatch.setattr(f"{module}.{name}" if isinstance(module, str) else f"{module.__name__}.{name}", forbidden)
    assert not outputs.want_confidence
    publish(outputs)
    published = {topic: len(publisher.published) for topic, publisher in node.publishers.items()}
    assert published.pop("~/mask") == 1
    assert set(published.values()) == {0}


@pytest.mark.parametrize(
    "topic", ["confidence", "overlay", "overlay/compressed", "mask/compressed", "camera_info"]
)  # fmt: skip
def test_each_is_made_for_its_own_listener_alone(node: Node, topic: str) -> None:
    outputs = CameraOutputs(node, "front", 1.0)
    node.publishers[f"~/front/{topic}"].listeners = 1
    publish(outputs)
    with_messages = {name for name, publisher in node.publishers.items() if publisher.published}
    assert with_messages == {"~/front/mask", f"~/front/{topic}"}
    assert all(
        publisher.published[-1].header.frame_id == "cam"
        for publisher in node.publishers.values()
        if publisher.published
    )
