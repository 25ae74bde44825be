"""Masks per second through the ROS 2 node, against the pipeline alone in one process, in turns."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.children import Children
from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import SemlaError
from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.lab.world.drive import demo_drive
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import Frame

IN_FLIGHT = 2  # one in the model, one waiting: the node never runs dry
TURNS = 4  # of each kind, so that whatever else the machine does meets both alike
START_S = 120.0
LOST_S = 5.0  # best-effort images may get lost; after so long without a mask the next one is sent


def measure(model: str, library: str, seconds: float = 20.0, size: tuple[int, int] = (480, 640)) -> dict[str, object]:
    """Figures for `node`: both run the same images, the same weights, with adaptation on, in turns."""
    drive = demo_drive(7)
    images = [drive.render(0.1 * index, width=size[1], height=size[0]).image for index in range(4)]
    environment = isolated_environment(free_domain())
    os.environ.update(environment)
    parameters = {"model": model, "library": library, "device": "cpu"}
    command = [sys.executable, "-m", "semla_ros.nodes.perception", "--ros-args"]
    command += [item for key, value in parameters.items() if value for item in ("-p", f"{key}:={value}")]
    inference = InferenceConfig(device="cpu")
    pipeline = PerceptionPipeline.load(SemlaConfig(model=model, library=library, inference=inference))
    alone = masks = 0
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        children.start("perception node", command, environment, Path(folder) / "perception.log")
        feeder = Feeder(images)
        try:
            pipeline.start()
            feeder.wait_for_first_mask(children)
            for run in (lambda turn_s: _count_frames(pipeline, images, turn_s), feeder.count_masks):
                run(min(2.0, seconds))
            for _ in range(TURNS):
                alone += _count_frames(pipeline, images, seconds / TURNS)
                masks += feeder.count_masks(seconds / TURNS)
            children.check()
        finally:
            feeder.close()
            pipeline.close()
    return {
        "image": list(size),
        "pipeline_hz": alone / seconds,
        "node_hz": masks / seconds,
        "throughput_ratio": masks / alone,
    }


def _count_frames(pipeline: PerceptionPipeline, images: list[np.ndarray], seconds: float) -> int:
    """Frames that the pipeline alone answers in so many seconds."""
    count, end_s = 0, time.monotonic() + seconds
    while time.monotonic() < end_s or not count:
        frame = Frame(image=images[count % len(images)], stamp_ns=time.time_ns())
        pipeline.offer(frame)
        pipeline.segment(frame, want_confidence=False)
        count += 1
    return count


class Feeder:
    """Keeps so many images with the node. A mask tells that all images before its own are done with, too."""

    def __init__(self, images: list[np.ndarray]) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Image
        from std_msgs.msg import Header

        from semla_ros.nodes.messages import image_message, to_stamp
        from semla_ros.nodes.outputs import IMAGE_QOS, SENSOR_QOS

        self._messages = [image_message(Header(frame_id="bench"), image) for image in images]
        self._to_stamp = to_stamp
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)
        self._node = rclpy.create_node("bench_feeder", context=self._context, use_global_arguments=False)
        self._publisher = self._node.create_publisher(Image, "image", SENSOR_QOS)
        self._node.create_subscription(Image, "perception/mask", self._on_mask, IMAGE_QOS)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._sent = self._received = self._waiting = 0
        self._turn_of: dict[tuple[int, int], int] = {}  # stamp -> number of the image
        self._is_feeding = False
        self._last_mask_s = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def wait_for_first_mask(self, children: Children) -> None:
        """Send an image now and then until the node answers."""
        end_s = time.monotonic() + START_S
        while not self._received:
            children.check()
            if time.monotonic() > end_s:
                raise SemlaError(f"the perception node sent no mask within {START_S:.0f} s")
            self._send()
            time.sleep(0.2)

    def count_masks(self, seconds: float) -> int:
        """Masks that come back in so many seconds."""
        before, end_s = self._received, time.monotonic() + seconds
        self._is_feeding, self._last_mask_s = True, time.monotonic()
        self._executor.create_task(self._fill_up)
        while (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(0.1, left_s))
            if time.monotonic() - self._last_mask_s > LOST_S:
                self._last_mask_s = time.monotonic()
                self._executor.create_task(self._send)
        self._is_feeding = False
        return self._received - before

    def close(self) -> None:
        """Leave the graph."""
        import rclpy

        self._stopping.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _spin(self) -> None:
        while not self._stopping.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def _on_mask(self, mask: Any) -> None:
        self._received += 1
        self._last_mask_s = time.monotonic()
        number = self._turn_of.pop((mask.header.stamp.sec, mask.header.stamp.nanosec), self._sent)
        self._waiting = self._sent - number
        if self._is_feeding:
            self._fill_up()

    def _fill_up(self) -> None:
        while self._waiting < IN_FLIGHT:
            self._send()

    def _send(self) -> None:
        message = self._messages[self._sent % len(self._messages)]
        message.header.stamp = self._to_stamp(time.time_ns())
        self._sent += 1
        self._waiting += 1
        self._turn_of[message.header.stamp.sec, message.header.stamp.nanosec] = self._sent
        self._publisher.publish(message)
