"""The process of the node `perception`: arguments, memory, signals, and an end in time whatever hangs."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from semla_ros.nodes.perception_node import PerceptionNode
from semla_ros.nodes.rclpy_internals import destroy, starting
from semla_ros.resources import share_folder
from semla_ros.serving.dds_profile import shared_memory_problem
from semla_ros.serving.memory import keep_large_blocks
from semla_ros.serving.process_end import EndGuard

logger = logging.getLogger("semla_ros.nodes.perception_node")  # the node's: what it forwards to ROS has one name
HELP = """\
usage: perception [--help] [--ros-args ...]

The lifecycle node 'perception': camera images in, semantic masks out, by a model that adapts to the scene.
'ros2 launch semla_ros perception.launch.py --show-args' has the usual arguments by name.

  perception --ros-args -r image:=/camera/image_raw
  perception --ros-args -r __ns:=/robot1 --params-file perception.yaml --log-level debug
  perception --ros-args -p cameras:="[front, left]" -p image_transport:=compressed -p top_k:=3

Parameters, with default, unit and range:  {share}/config/perception.yaml
Topics and services of a running node:     ros2 node info /perception
What it is doing and what is wrong:        semla status, or /diagnostics
"""


def spin(make: Callable[[], PerceptionNode], arguments: Sequence[str] | None = None) -> None:
    """Make the node and serve until the process is told to end, then end every thread; to be called in the main thread.

    Whatever hangs, also while the node is made, the process ends within 5 s of SIGINT or SIGTERM.

    Args:
        make: Makes the node, in the default context.
        arguments: As for `rclpy.init`.

    Raises:
        ConfigError: ROS refuses the command line or the environment.
    """
    nodes: list[PerceptionNode] = []
    is_made = threading.Event()

    def shut_down() -> None:
        is_made.wait()  # in a context that has ended, what is half made could be neither finished nor taken down
        rclpy.get_default_context().try_shutdown()  # rclpy.try_shutdown also undoes handlers, in the main thread alone

    guard = EndGuard(
        shut_down,
        doing=lambda: nodes[0].doing() if nodes else "the node is being made",
        is_changing=lambda: bool(nodes) and nodes[0].is_changing,
    )
    try:
        with starting():
            # rclpy's own handlers would end the context at any time, and do nothing where the main thread hangs.
            rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
            nodes.append(make())
    finally:
        is_made.set()
    _serve(nodes[0])
    guard.ended()


def _serve(node: PerceptionNode) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while node.context.ok():
            try:
                executor.spin()
            except (KeyboardInterrupt, ExternalShutdownException):
                break
            except Exception as error:  # of a callback, rclpy's own among them, as at a /clock below 0
                if node.context.ok():  # else the signal came while a callback was publishing
                    node.refused(error)
                    time.sleep(0.01)
    finally:
        gc.freeze()  # to look through all that a process holds takes seconds, and it is about to end
        node.close()
        executor.shutdown(timeout_sec=5.0)
        destroy(node)
        rclpy.try_shutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node, or say what it is where that is asked for before `--ros-args`; raises as `spin`."""
    arguments = sys.argv if arguments is None else list(arguments)
    if {"-h", "--help"} & {*itertools.takewhile(lambda argument: argument != "--ros-args", arguments)}:
        print(HELP.format(share=share_folder()))
        return 0
    keep_large_blocks()
    memory_problem = shared_memory_problem(os.environ)  # before the node has its share of it

    def make() -> PerceptionNode:
        node = PerceptionNode(arguments=arguments)
        if memory_problem:
            logger.warning(memory_problem)
        return node

    spin(make, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
