"""Records every topic of a DDS domain, as `ros2 bag record -a` does: `python recorder.py FOLDER`, ended by SIGINT."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from semla_ros.lab.bags.reader import TYPES
from semla_ros.lab.bags.writer import BagWriter

LOOK_S = 0.1


class Recorder(Node):
    """Subscribes to what it finds, with the quality that its publishers offer."""

    def __init__(self, bag: BagWriter) -> None:
        super().__init__("recorder")
        self._bag = bag
        self._known: set[str] = set()
        self.create_timer(LOOK_S, self._look)

    def _look(self) -> None:
        for topic, types in self.get_topic_names_and_types():
            publishers = self.get_publishers_info_by_topic(topic)
            if topic in self._known or types[0] not in TYPES.types or not publishers:
                continue
            self._known.add(topic)
            package, _, name = types[0].split("/")
            offered = [publisher.qos_profile for publisher in publishers]
            is_latched = all(qos.durability == DurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
            is_reliable = all(qos.reliability == ReliabilityPolicy.RELIABLE for qos in offered)
            qos = QoSProfile(
                depth=200,
                reliability=ReliabilityPolicy.RELIABLE if is_reliable else ReliabilityPolicy.BEST_EFFORT,
                durability=DurabilityPolicy.TRANSIENT_LOCAL if is_latched else DurabilityPolicy.VOLATILE,
            )
            kind = getattr(importlib.import_module(f"{package}.msg"), name)
            self.create_subscription(kind, topic, partial(self._write, topic, types[0]), qos, raw=True)
            print(f"recording {topic}", flush=True)

    def _write(self, topic: str, msgtype: str, data: Any) -> None:
        self._bag.write(topic, msgtype, bytes(data), self.get_clock().now().nanoseconds)


def main() -> None:
    rclpy.init()
    with BagWriter(Path(sys.argv[1])) as bag:
        node = Recorder(bag)
        try:
            rclpy.spin(node)
        except (KeyboardInterrupt, ExternalShutdownException):
            node.destroy_node()


if __name__ == "__main__":
    main()
