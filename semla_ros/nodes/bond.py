"""The node's end of a bond, as `bondpy` has it: nav2's lifecycle manager takes a node without one for dead.

Where the messages of package `bond` are installed, an active node says so every `BEAT_S`; what the manager says back is
not needed. A node that is deactivated takes its leave; one that is killed falls silent.
"""

from __future__ import annotations

import uuid
from typing import Any

from rclpy.node import Node

from semla_ros.nodes.rclpy_internals import without_events

BEAT_S = 0.25  # as nav2's own nodes
TIMEOUT_S = 4.0  # without a heartbeat for so long the other end counts as dead


class Bond:
    """Sends heartbeats on the topic `bond`, under the node's name, while somebody listens.

    Args:
        node: The node.
    """

    def __init__(self, node: Node) -> None:
        self._node, self._instance, self._is_active = node, "", False
        self._make, self._publisher = None, None
        try:
            from bond.msg import Status
        except ImportError:
            return
        self._make = Status
        self._publisher = node.create_publisher(Status, "bond", 5, event_callbacks=without_events())

    def start(self) -> None:
        """Begin a new life: one that has ended cannot be taken up again."""
        self._instance, self._is_active = str(uuid.uuid4()), True

    def stop(self) -> None:
        """Take leave."""
        was_active, self._is_active = self._is_active, False
        if was_active:
            self._send()

    def beat(self) -> None:
        """Send one heartbeat."""
        if self._is_active:
            self._send()

    def _send(self) -> None:
        if self._make is None or self._publisher is None or not self._publisher.get_subscription_count():
            return
        message: Any = self._make(
            id=self._node.get_name(),
            instance_id=self._instance,
            active=self._is_active,
            heartbeat_timeout=TIMEOUT_S,
            heartbeat_period=BEAT_S,
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)
