"""The node's end of a bond, as `bondpy` has it: nav2's lifecycle manager takes a node without one for dead.

An active node says so every `Bond.BEAT_S`; what the manager says back is not needed. A node that is deactivated takes
its leave; one that is killed falls silent.
"""

from __future__ import annotations

import uuid
from typing import Any

from rclpy.node import Node

from semla_ros.nodes.rclpy_internals import without_events


class Bond:
    """Sends heartbeats on the topic `bond`, under the node's name, while somebody listens.

    Args:
        node: The node.
        make: The message of a heartbeat, `bond.msg.Status` of an optional package.
    """

    BEAT_S = 0.25  # as nav2's own nodes
    TIMEOUT_S = 4.0  # without a heartbeat for so long the other end counts as dead

    def __init__(self, node: Node, make: Any) -> None:
        self._node, self._make, self._instance, self._is_active = node, make, "", False
        self._publisher = node.create_publisher(make, "bond", 5, event_callbacks=without_events())

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
        if not self._publisher.get_subscription_count():
            return
        message = self._make(
            id=self._node.get_name(),
            instance_id=self._instance,
            active=self._is_active,
            heartbeat_timeout=self.TIMEOUT_S,
            heartbeat_period=self.BEAT_S,
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)
