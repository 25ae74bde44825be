"""What is published for an image, and what is not even made while nobody listens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from semla_ros.nodes import messages
from semla_ros.nodes.outputs import Outputs
from semla_ros.results import AdapterMix, Frame, Generation, Segmentation
from semla_ros.serving.parameters import Settings

LATCHED = ("~/labels", "~/adapter_weights")
HEADER = Header(stamp=Time(sec=3, nanosec=7), frame_id="cam")


class Publisher:
    """Stands for rclpy's: counts, and pretends to have listeners."""

    def __init__(self, topic_name: str) -> None:
        self.topic_name = topic_name
        self.listeners = 0
        self.published: list[Any] = []

    def publish(self, message: Any) -> None:
        self.published.append(message)

    def get_subscription_count(self) -> int:
        return self.listeners


class Node:
    def __init__(self) -> None:
        self.publishers: dict[str, Publisher] = {}
        self.context = SimpleNamespace(ok=lambda: True)
        self.get_clock = lambda: SimpleNamespace(now=lambda: SimpleNamespace(to_msg=Time))

    def create_publisher(self, kind: type, topic: str, *_: Any, **__: Any) -> Publisher:
        self.publishers[topic] = Publisher(topic.replace("~", "/perception"))
        return self.publishers[topic]


@pytest.fixture
def node() -> Node:
    return Node()


def outputs_of(node: Node, camera: str = "") -> Outputs:
    settings = Settings.make({"cameras": [camera]})
    parameters = SimpleNamespace(settings=settings, cameras=(camera,), hardware_id="")
    outputs = Outputs(node, parameters)
    outputs.create({"": SimpleNamespace(on_generation=[], engine=SimpleNamespace(name="torch", precision="fp32"))})
    outputs.infos[camera] = CameraInfo(width=6, height=4)
    return outputs


def generation_of(number: int, vocabulary_version: int = 0) -> Generation:
    return Generation(
        number=number, mix=AdapterMix(), class_names=("road", "sky"), vocabulary_version=vocabulary_version
    )


def publish(outputs: Outputs, camera: str = "") -> None:
    generation = generation_of(0)
    frame = Frame(image=np.zeros((4, 6, 3), np.uint8), stamp_ns=1, camera=camera, frame_id="cam")
    mask = np.zeros((4, 6), np.uint8)
    confidence = mask if outputs.wants(camera, "confidence") else None
    result = Segmentation(
        mask=mask,
        confidence=confidence,
        generation=generation,
        stamp_ns=1,
        camera=camera,
        frame_id="cam",
        latency_ms={},
    )
    outputs.publish(Image(header=HEADER), frame, result)


def test_the_mix_names_all_topics_of_the_node_so_that_a_recording_tells_them_apart(node: Node) -> None:
    publish(outputs_of(node))
    status = node.publishers["~/adapter_weights"].published[0].status[-1]
    named = next(item.value for item in status.values if item.key == "topics").split()
    assert sorted(named) == sorted(publisher.topic_name for publisher in node.publishers.values())
    assert "/perception/overlay/compressed" in named


def test_what_nobody_listens_to_is_not_made(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = outputs_of(node)

    def forbidden(*_: Any) -> None:
        raise AssertionError("made although nobody listens")

    for module, name in (
        (messages, "compressed_message"), (messages, "camera_info_message"), ("semla_ros.nodes.outputs", "overlay"),
        ("semla_ros.nodes.outputs", "palette_of"),
    ):  # fmt: skip
        monkeypatch.setattr(f"{module}.{name}" if isinstance(module, str) else f"{module.__name__}.{name}", forbidden)
    assert not outputs.wants("", "confidence")
    publish(outputs)
    published = {
        topic: len(publisher.published) for topic, publisher in node.publishers.items() if topic not in LATCHED
    }
    assert (published.pop("~/mask"), published.pop("~/mask_info")) == (1, 1)
    assert set(published.values()) == {0}


@pytest.mark.parametrize(
    "topic", ["confidence", "overlay", "overlay/compressed", "mask/compressed", "camera_info"]
)  # fmt: skip
def test_each_is_made_for_its_own_listener_alone(node: Node, topic: str) -> None:
    outputs = outputs_of(node, "front")
    node.publishers[f"~/front/{topic}"].listeners = 1
    publish(outputs, "front")
    heard = {name: item.published for name, item in node.publishers.items() if item.published and name not in LATCHED}
    assert set(heard) == {"~/front/mask", "~/front/mask_info", f"~/front/{topic}"}
    assert all(messages[-1].header == HEADER for messages in heard.values())


def test_a_generation_is_announced_once_before_its_first_mask_and_never_after_a_newer_one(node: Node) -> None:
    outputs = outputs_of(node)
    labels, weights = (node.publishers[topic].published for topic in LATCHED)
    node.publishers["~/mask"].publish = lambda _: told.append((len(labels), len(weights)))
    told: list[tuple[int, int]] = []
    publish(outputs)
    publish(outputs)
    assert told == [(1, 1), (1, 1)]
    outputs.announce("", generation_of(2))
    outputs.announce("", generation_of(1, vocabulary_version=1))  # of a thread that was overtaken
    assert (len(labels), len(weights)) == (1, 2)
    outputs.announce("", generation_of(3, vocabulary_version=1))
    assert (len(labels), len(weights)) == (2, 3)
    outputs.forget()
    outputs.announce("", generation_of(0).after(generation_of(3, vocabulary_version=1)))  # of another model
    assert (len(labels), len(weights)) == (3, 4)
