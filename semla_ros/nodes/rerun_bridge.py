"""A perception node's images, masks and mixes, handed on as plain values while it runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from semla_ros.errors import ImageError
from semla_ros.image_codec import ImageDecoder
from semla_ros.nodes import messages
from semla_ros.nodes.diagnostics_listener import statuses_of
from semla_ros.results import Generation, ImageArray, MaskArray

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
LIVE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)  # a viewer must never slow a node down
LOOK_EVERY_S = 1.0


class Sink(Protocol):
    """Where it goes; see `lab/report/rerun_log.py`."""

    def classes(self, names: Sequence[str]) -> None:
        """Of the masks that follow."""

    def time(self, seconds: float) -> None:
        """Of what follows."""

    def image(self, camera: str, pixels: ImageArray) -> None:
        """What a camera saw."""

    def mask(self, camera: str, mask: MaskArray) -> None:
        """What was made of it."""

    def mix(self, shares: Mapping[str, float]) -> None:
        """What the model is fused from."""


class RerunBridge:
    """Listens to a node and hands on what it hears, each with the time of its stamp.

    Args:
        node_name: Full name of the node, such as `/perception`; it need not run yet.
        sink: Gets it, in the thread that calls `spin`.

    Attributes:
        shown: Topics that are listened to.
        sent: Topic -> messages handed on.
    """

    def __init__(self, node_name: str, sink: Sink) -> None:
        self.node_name = "/" + node_name.strip("/")
        self.sent: Counter[str] = Counter()
        self._sink, self._decode = sink, ImageDecoder()
        self._context = Context()
        rclpy.init(args=[], context=self._context)
        self._node: Node = rclpy.create_node(
            "semla_rerun", context=self._context, use_global_arguments=False, enable_rosout=False
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self.shown: set[str] = set()
        self._cameras: set[str] = set()  # that the node has masks of; "" where it has one without a name
        self._node.create_timer(LOOK_EVERY_S, self.look_for_topics)
        self.look_for_topics()

    def spin(self, timeout_s: float = 0.05) -> None:
        """Hand on what came in; to be called again and again from one thread."""
        self._executor.spin_once(timeout_sec=timeout_s)

    def look_for_topics(self) -> None:
        """Listen to the node's topics that are not listened to yet."""
        namespace, _, name = self.node_name.rpartition("/")
        if (name, namespace or "/") not in self._node.get_node_names_and_namespaces():
            return
        taken = dict(self._node.get_subscriber_names_and_types_by_node(name, namespace or "/"))
        given = dict(self._node.get_publisher_names_and_types_by_node(name, namespace or "/"))
        for topic, types in taken.items():
            kind = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}.get(types[0])
            if kind is not None:
                self._listen(kind, topic, self._show_image, LIVE)
        for topic in given:
            inside = topic.removeprefix(f"{self.node_name}/")
            if topic == inside:
                continue
            if inside == "mask" or inside.endswith("/mask"):
                self._cameras.add(inside.removesuffix("mask").strip("/"))
                self._listen(Image, topic, self._show_mask, LIVE)
            elif inside.rpartition("/")[2] == "adapter_weights":
                self._listen(DiagnosticArray, topic, self._show_mix, LATCHED)
            elif inside.rpartition("/")[2] == "labels":
                self._listen(String, topic, self._show_labels, LATCHED)

    def _listen(self, kind: Any, topic: str, show: Any, qos: QoSProfile) -> None:
        if topic not in self.shown:
            self.shown.add(topic)
            self._node.create_subscription(kind, topic, partial(self._pass_on, topic, show), qos)

    def _pass_on(self, topic: str, show: Any, message: Any) -> None:
        show(topic, message)
        self.sent[topic] += 1

    def _show_image(self, topic: str, message: Any) -> None:
        try:
            pixels = self._decode(message)
        except ImageError:  # the node says so on /diagnostics
            return
        self._sink.time(messages.stamp_ns(message.header.stamp) / 1e9)
        self._sink.image(self._shown_as(self._camera_of_image(topic)), pixels)

    def _show_mask(self, topic: str, message: Image) -> None:
        kind = np.uint16 if message.encoding == "mono16" else np.uint8
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        mask = rows.view(np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<"))[:, : message.width]
        self._sink.time(messages.stamp_ns(message.header.stamp) / 1e9)
        camera = topic.removeprefix(self.node_name).removesuffix("mask").strip("/")
        self._sink.mask(self._shown_as(camera), mask.astype(np.uint16) if kind is np.uint16 else mask.astype(np.uint8))

    def _show_mix(self, _topic: str, message: DiagnosticArray) -> None:
        self._sink.time(messages.stamp_ns(message.header.stamp) / 1e9)
        self._sink.mix(Generation.from_statuses(statuses_of(message)).mix.shares())

    def _show_labels(self, _topic: str, message: String) -> None:
        self._sink.classes([item["name"] for item in json.loads(message.data)["classes"]])

    def _camera_of_image(self, topic: str) -> str:
        """The camera whose images come on a topic: the only one, or the one that it names."""
        named = [camera for camera in self._cameras if camera and f"/{camera}/" in topic]
        return max(named, key=len, default=next(iter(self._cameras)) if len(self._cameras) == 1 else topic.strip("/"))

    @staticmethod
    def _shown_as(camera: str) -> str:
        return camera.replace("/", "-") or "camera"

    def close(self) -> None:
        """Leave the ROS graph."""
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)
