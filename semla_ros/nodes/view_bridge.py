"""A perception node's topics over a WebSocket, as Foxglove reads them.

Messages pass as they are, in the ROS serialization, so the topics have the same names and types as with Foxglove's own
bridge and one layout fits both. A topic is subscribed to only while a viewer looks at it: what the node makes only on
demand, such as the overlay, costs nothing while nobody watches.
"""

from __future__ import annotations

import importlib
import queue
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import foxglove
import rclpy
from foxglove import Channel, Schema
from foxglove.websocket import ServerListener
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

from semla_ros.errors import ConfigError

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# A viewer must never slow a node down, so what is not latched may get lost.
LIVE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
DIAGNOSTICS = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
BACKLOG = 32  # messages kept for a slow viewer; each may be an image of several MB
LOOK_EVERY_S = 1.0
# Of vision_msgs, which the message definitions of rosbags leave out.
_EXTRA_DEFINITIONS = {
    "vision_msgs/msg/LabelInfo": "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n",
    "vision_msgs/msg/VisionClass": "uint16 class_id\nstring class_name\n",
}


class Definitions:
    """Message definitions in the form that a recording or a viewer needs: a type with all that it is made of."""

    def __init__(self) -> None:
        self._store = get_typestore(Stores.ROS2_JAZZY)
        for name, text in _EXTRA_DEFINITIONS.items():
            self._store.register(get_types_from_msg(text, name))

    def schema(self, type_name: str) -> Schema | None:
        """The definition of `package/msg/Name`; None where it is not known."""
        try:
            text, _ = self._store.generate_msgdef(type_name, ros_version=2)
        except (TypesysError, KeyError):
            return None
        return Schema(name=type_name, encoding="ros2msg", data=text.encode())


@dataclass
class Shown:
    """A topic that viewers can choose.

    Attributes:
        type_name: `package/msg/Name`.
        channel: What viewers subscribe to.
        viewers: How many do.
        subscription: The subscription in ROS, while there are viewers.
        latched: The newest message of a latched topic, for the next viewer.
    """

    type_name: str
    channel: Channel
    viewers: int = 0
    subscription: Any = None
    is_latched: bool = False
    latched: bytes | None = field(default=None, repr=False)


class _Listener(ServerListener):
    """Passes viewers' choices on to the thread that owns the ROS node."""

    def __init__(self) -> None:
        self.changes: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    def on_subscribe(self, client: Any, channel: Any) -> None:
        del client
        self.changes.put((channel.topic, +1))

    def on_unsubscribe(self, client: Any, channel: Any) -> None:
        del client
        self.changes.put((channel.topic, -1))


class ViewBridge:
    """Serves what a node takes in and puts out.

    Args:
        node_name: Full name of the node, such as `/perception`; it need not run yet.
        host: Address to listen on.
        port: Port to listen on; 0 = any that is free.
        pattern: Regular expression; topics that it matches from the start are shown, too.

    Raises:
        ConfigError: The pattern is none, or the address cannot be listened on.
    """

    def __init__(self, node_name: str, host: str = "127.0.0.1", port: int = 8765, pattern: str | None = None) -> None:
        self.node_name = "/" + node_name.strip("/")
        try:
            self._pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            raise ConfigError(f"'{pattern}' is no regular expression: {error}") from None
        self.shown: dict[str, Shown] = {}
        self.sent: Counter[str] = Counter()
        self._definitions = Definitions()
        self._listener = _Listener()
        self._foxglove = foxglove.Context()
        try:
            self._server = foxglove.start_server(
                name=f"semla_ros {self.node_name}",
                host=host,
                port=port,
                server_listener=self._listener,
                supported_encodings=["cdr"],
                context=self._foxglove,
                message_backlog_size=BACKLOG,
            )
        except (RuntimeError, OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"cannot serve on {host}:{port}: {error}; choose another --port or --host") from None
        self.host, self.port = host, self._server.port
        self._context = Context()
        rclpy.init(args=[], context=self._context)
        self._node: Node = rclpy.create_node(
            "semla_view", context=self._context, use_global_arguments=False, enable_rosout=False
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._node.create_timer(LOOK_EVERY_S, self.look_for_topics)
        self.look_for_topics()

    @property
    def app_url(self) -> str:
        """Link that opens Foxglove in a browser on this server."""
        return self._server.app_url() or ""

    def spin(self, timeout_s: float = 0.05) -> None:
        """Pass on what came in, and follow the viewers' choices; to be called again and again from one thread."""
        self._executor.spin_once(timeout_sec=timeout_s)
        while not self._listener.changes.empty():
            self._follow(*self._listener.changes.get())

    def look_for_topics(self) -> None:
        """Offer the node's topics that are not offered yet."""
        for topic, types in sorted(self._topics_of_the_node().items()):
            if topic in self.shown or not types:
                continue
            schema = self._definitions.schema(types[0])
            if schema is not None and _message_class(types[0]) is not None:
                channel = Channel(topic, schema=schema, message_encoding="cdr", context=self._foxglove)
                self.shown[topic] = Shown(types[0], channel)

    def _topics_of_the_node(self) -> dict[str, list[str]]:
        """Topic -> type names: the node's outputs and inputs, /diagnostics, and those that the pattern names."""
        namespace, _, name = self.node_name.rpartition("/")
        topics = dict(self._node.get_topic_names_and_types())
        chosen = {"/diagnostics"} if "/diagnostics" in topics else set()
        if (name, namespace or "/") in self._node.get_node_names_and_namespaces():
            inputs = dict(self._node.get_subscriber_names_and_types_by_node(name, namespace or "/"))
            # Remapped images have any name, but the type of an image.
            chosen |= {topic for topic, types in inputs.items() if types[0].startswith("sensor_msgs/")}
            topics |= inputs
        chosen |= {topic for topic in topics if topic.startswith(f"{self.node_name}/")}
        if self._pattern is not None:
            chosen |= {topic for topic in topics if self._pattern.match(topic)}
        return {topic: topics[topic] for topic in chosen if topic in topics}

    def _follow(self, topic: str, change: int) -> None:
        shown = self.shown[topic]
        shown.viewers += change
        if shown.viewers > 0 and shown.subscription is None:
            self._subscribe(topic, shown)
        elif shown.viewers <= 0 and shown.subscription is not None:
            self._node.destroy_subscription(shown.subscription)
            shown.subscription, shown.latched = None, None
        elif change > 0 and shown.latched is not None:
            shown.channel.log(shown.latched)  # the others hear it again, which changes nothing

    def _subscribe(self, topic: str, shown: Shown) -> None:
        offers = [offer.qos_profile for offer in self._node.get_publishers_info_by_topic(topic)]
        shown.is_latched = bool(offers) and all(
            offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers
        )
        profile = LATCHED if shown.is_latched else DIAGNOSTICS if topic == "/diagnostics" else LIVE

        def pass_on(data: bytes) -> None:
            shown.channel.log(data)
            self.sent[topic] += 1
            if shown.is_latched:
                shown.latched = data

        shown.subscription = self._node.create_subscription(
            _message_class(shown.type_name), topic, pass_on, profile, raw=True
        )

    def close(self) -> None:
        """Disconnect the viewers and leave the ROS graph."""
        self._server.stop()
        for shown in self.shown.values():
            shown.channel.close()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def __enter__(self) -> ViewBridge:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()


def _message_class(type_name: str) -> Any:
    """The class of `package/msg/Name`; None where it is not installed."""
    package, _, name = type_name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError):
        return None
