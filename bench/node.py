"""Masks per second through the ROS 2 node, against the pipeline alone in one process."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from bench.random_world import random_image
from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.demo.isolation import free_domain, isolated_environment
from semla_ros.demo.processes import Children
from semla_ros.errors import SemlaError
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import Frame

IN_FLIGHT = 2  # one in the model, one waiting: the node never runs dry, and none is dropped
START_S = 120.0
LOST_S = 5.0  # best-effort images may get lost; after so long without a mask the next one is sent


def measure(model: str, library: str, seconds: float = 20.0, size: tuple[int, int] = (480, 640)) -> dict[str, object]:
    """Figures for `node`: both run the same images, the same weights, with adaptation on."""
    images = [random_image(*size, seed=seed) for seed in range(4)]
    alone_hz = _pipeline_rate(model, library, images, seconds)
    node_hz = _node_rate(model, library, images, seconds)
    return {
        "image": list(size),
        "pipeline_hz": alone_hz,
        "node_hz": node_hz,
        "throughput_ratio": node_hz / alone_hz,
    }


def _pipeline_rate(model: str, library: str, images: list[np.ndarray], seconds: float) -> float:
    config = SemlaConfig(model=model, library=library, inference=InferenceConfig(device="cpu"))
    pipeline = PerceptionPipeline.load(config)
    pipeline.start()

    def run(duration_s: float) -> float:
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < duration_s or not count:
            frame = Frame(image=images[count % len(images)], stamp_ns=time.monotonic_ns())
            pipeline.offer(frame)
            pipeline.segment(frame, want_confidence=False)
            count += 1
        return count / spent

    run(min(2.0, seconds))
    rate_hz = run(seconds)
    pipeline.close()
    return rate_hz


def _node_rate(model: str, library: str, images: list[np.ndarray], seconds: float) -> float:
    environment = isolated_environment(free_domain())
    os.environ.update(environment)
    parameters = {"model": model, "library": library, "device": "cpu"}
    command = [sys.executable, "-m", "semla_ros.nodes.perception_node", "--ros-args"]
    command += [item for key, value in parameters.items() if value for item in ("-p", f"{key}:={value}")]
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        children.start("perception node", command, environment, Path(folder) / "perception.log")
        feeder = Feeder(images)
        try:
            feeder.wait_for_first_mask(children)
            feeder.count_masks(min(2.0, seconds))
            return feeder.count_masks(seconds) / seconds
        finally:
            feeder.close()


class Feeder:
    """Sends the next image whenever a mask comes back."""

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
        self._sent = self._received = 0
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
        for _ in range(IN_FLIGHT):
            self._send()
        while (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(0.1, left_s))
            if time.monotonic() - self._last_mask_s > LOST_S:
                self._send()
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

    def _on_mask(self, _: object) -> None:
        self._received += 1
        self._last_mask_s = time.monotonic()
        self._send()

    def _send(self) -> None:
        message = self._messages[self._sent % len(self._messages)]
        message.header.stamp = self._to_stamp(time.time_ns())
        self._sent += 1
        self._publisher.publish(message)
