"""Hear what nodes say on /diagnostics, for programs that are no nodes themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor

from semla_ros.results import Level, Status


def listen(timeout_s: float) -> Iterator[dict[str, Status]]:
    """Give all statuses heard so far, by name, each time a message comes in.

    Args:
        timeout_s: Stop this many seconds after the start.

    Yields:
        Name -> latest status; the same dict each time, updated.
    """
    context = Context()
    rclpy.init(args=[], context=context)
    node = rclpy.create_node("semla_status", context=context, use_global_arguments=False, enable_rosout=False)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    heard: dict[str, Status] = {}
    messages: list[DiagnosticArray] = []
    node.create_subscription(DiagnosticArray, "/diagnostics", messages.append, 50)
    end_s = time.monotonic() + timeout_s
    try:
        while (left_s := end_s - time.monotonic()) > 0:
            executor.spin_once(timeout_sec=left_s)
            if messages:
                heard.update({status.name: status for status in statuses_of(messages.pop())})
                yield heard
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


def statuses_of(message: DiagnosticArray) -> list[Status]:
    """The statuses of a diagnostic message, without ROS."""
    return [
        Status(
            name=status.name,
            level=Level(min(status.level[0], Level.STALE)),
            message=status.message,
            values={item.key: item.value for item in status.values},
            hardware_id=status.hardware_id,
        )
        for status in message.status
    ]
