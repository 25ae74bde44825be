"""Listens to camera and perception node, as any other node of the graph would, and fills the demo's recording."""

from __future__ import annotations

import json
import threading
import time
from types import TracebackType
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from semla_ros.errors import SemlaError
from semla_ros.image_codec import decode
from semla_ros.lab.bags.label_map import raw_mask
from semla_ros.lab.demo.recording import DiagnosticsSnapshot, Recording
from semla_ros.nodes.messages import stamp_ns, statuses_of
from semla_ros.results import Generation, ImageArray

PERCEPTION = "perception"
_LEVELS = {
    DiagnosticStatus.OK: "OK",
    DiagnosticStatus.WARN: "WARN",
    DiagnosticStatus.ERROR: "ERROR",
    DiagnosticStatus.STALE: "STALE",
}
_SEVERITY = ("OK", "STALE", "WARN", "ERROR")
_EVERY_MESSAGE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class DemoMonitor(Node):
    """Subscriptions only; see `Recording` for what becomes of the messages.

    The camera starts once it has counted the subscriptions to its images, so this one waits until no mask can be lost:
    two nodes find each other's topics in the order in which they were made, and labels come after masks on both sides.
    """

    def __init__(self, recording: Recording, context: Context) -> None:
        super().__init__("demo_monitor", context=context, use_global_arguments=False)
        self._recording = recording
        self._listens_to_images = False
        for message_type, topic, callback, qos in (
            # The executor looks at what has arrived in this order: what explains a message comes before it.
            (String, "segment", self._on_segment, _LATCHED),
            (Image, "ground_truth", self._on_truth, _EVERY_MESSAGE),
            (DiagnosticArray, f"{PERCEPTION}/adapter_weights", self._on_mix, _LATCHED),
            (Image, f"{PERCEPTION}/mask", self._on_mask, _EVERY_MESSAGE),
            (String, f"{PERCEPTION}/labels", self._on_labels, _LATCHED),
            (DiagnosticArray, "/diagnostics", self._on_diagnostics, _EVERY_MESSAGE),
        ):
            self.create_subscription(message_type, topic, callback, qos)

    def _on_image(self, message: Image) -> None:
        header = message.header
        self._recording.add_image(stamp_ns(header.stamp), header.frame_id, _rgb(message), time.monotonic())

    def _on_truth(self, message: Image) -> None:
        self._recording.add_truth(stamp_ns(message.header.stamp), raw_mask(message))

    def _on_segment(self, message: String) -> None:
        told = json.loads(message.data)
        if told["finished"]:
            self._recording.drive_ended = True
        else:
            self._recording.add_segment(int(told["stamp_ns"]), str(told["segment"]))
        self._recording.frames_sent = int(told["frames_sent"])

    def _on_mask(self, message: Image) -> None:
        header, now_s = message.header, time.monotonic()
        self._recording.add_mask(stamp_ns(header.stamp), header.frame_id, raw_mask(message), now_s)

    def _on_labels(self, message: String) -> None:
        classes = json.loads(message.data)["classes"]
        self._recording.class_names = tuple(item["name"] for item in sorted(classes, key=lambda item: item["id"]))
        if not self._listens_to_images:
            self._listens_to_images = True
            self.create_subscription(Image, "image", self._on_image, _EVERY_MESSAGE)

    def _on_mix(self, message: DiagnosticArray) -> None:
        self._recording.add_generation(Generation.from_statuses(statuses_of(message)))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        statuses = [status for status in message.status if status.name.startswith(f"{PERCEPTION}: ")]
        if statuses:
            self._recording.add_diagnostics(diagnostics_snapshot(statuses), time.monotonic())


def diagnostics_snapshot(statuses: list[Any]) -> DiagnosticsSnapshot:
    """Join the statuses of one node."""
    worst = max(statuses, key=lambda status: _SEVERITY.index(_LEVELS[status.level]))
    values = {
        f"{status.name.split(': ', 1)[1]}: {item.key}": item.value for status in statuses for item in status.values
    }
    return DiagnosticsSnapshot(_LEVELS[worst.level], worst.message, values)


def _rgb(message: Image) -> ImageArray:
    return np.ascontiguousarray(
        decode(
            encoding=message.encoding,
            width=message.width,
            height=message.height,
            step=message.step,
            data=memoryview(message.data),
            is_bigendian=bool(message.is_bigendian),
        )
    )


class Monitor:
    """Runs a `DemoMonitor` in a thread with a ROS context of its own; use it as a context manager.

    Args:
        recording: Filled from the thread.
        domain: DDS domain id to join.
    """

    def __init__(self, recording: Recording, domain: int) -> None:
        self._context = Context()
        rclpy.init(args=[], context=self._context, domain_id=domain)
        self._node = DemoMonitor(recording, self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._spin, name="semla-demo-monitor", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what stopped the thread, if anything did."""
        if self._problem is not None:
            raise SemlaError(f"the demo's monitor stopped: {self._problem}") from self._problem

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown(timeout_sec=5.0)
        self._thread.join(5.0)
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass
        except BaseException as error:  # told by `check`, in the thread that can do something about it
            self._problem = error

    def __enter__(self) -> Monitor:
        """Return the running monitor."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the graph."""
        self.close()
