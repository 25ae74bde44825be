"""A camera in a process of its own: `python -m bench.transport_camera NODE_PID IMAGES RATE_HZ HEIGHT WIDTH`."""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import psutil
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from semla_ros.nodes.messages import image_message, to_stamp
from semla_ros.nodes.outputs import IMAGE_QOS, SENSOR_QOS
from semla_ros.serving.memory import keep_large_blocks

START_S, QUIET_S = 60.0, 3.0
WARM_UP = 10  # images before the count


class Camera:
    """Publishes best effort, as cameras do, and hears what the node says of it."""

    def __init__(self, height: int, width: int) -> None:
        rclpy.init(args=[])
        self.node = rclpy.create_node("bench_camera", use_global_arguments=False)
        self._publisher = self.node.create_publisher(Image, "image", SENSOR_QOS)
        self.node.create_subscription(Image, "perception/mask", self._on_mask, IMAGE_QOS)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        self._message = image_message(Header(frame_id="bench"), pixels)
        self.masks = 0
        self.values: dict[str, str] = {}

    def _on_mask(self, _: object) -> None:
        self.masks += 1

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "/perception: camera":
                self.values = {item.key: item.value for item in status.values}

    def send(self) -> None:
        """Publish one image."""
        self._message.header.stamp = to_stamp(time.time_ns())
        self._publisher.publish(self._message)

    def listen_until(self, end_s: float) -> None:
        """Serve callbacks until a time of `time.monotonic`."""
        while (left_s := end_s - time.monotonic()) > 0:
            rclpy.spin_once(self.node, timeout_sec=left_s)

    def counts(self) -> tuple[int, int, int, int]:
        """Images received, answered and overtaken by the node, and masks that arrived here."""
        keys = ("Images received", "Masks published", "Dropped: overtaken")
        received, answered, overtaken = (int(self.values.get(key, 0)) for key in keys)
        return received, answered, overtaken, self.masks

    def settled_counts(self) -> tuple[int, int, int, int]:
        """The counts once they no longer change."""
        before = None
        while before != (before := self.counts()):
            self.listen_until(time.monotonic() + QUIET_S)
        return before


def main() -> None:
    """Send the images and print what became of them as JSON."""
    parser = argparse.ArgumentParser()
    for name, kind in (("pid", int), ("images", int), ("rate_hz", float), ("height", int), ("width", int)):
        parser.add_argument(name, type=kind)
    options = parser.parse_args()
    keep_large_blocks()
    camera = Camera(options.height, options.width)
    end_s = time.monotonic() + START_S
    for _ in range(WARM_UP):
        while not camera.masks and time.monotonic() < end_s:
            camera.send()
            camera.listen_until(time.monotonic() + 0.2)
        camera.send()
        camera.listen_until(time.monotonic() + 1 / options.rate_hz)
    before = camera.settled_counts()
    process = psutil.Process(options.pid)
    cpu_s = sum(process.cpu_times()[:2])
    start_s = time.monotonic()
    for index in range(options.images):
        camera.send()
        camera.listen_until(start_s + (index + 1) / options.rate_hz)
    sent_s = time.monotonic() - start_s
    cpu_s = sum(process.cpu_times()[:2]) - cpu_s
    received, answered, overtaken, masks = (
        after - earlier for after, earlier in zip(camera.settled_counts(), before, strict=True)
    )
    figures = {
        "sent": options.images,
        "received": received,
        "answered": answered,
        "overtaken": overtaken,
        "masks_heard": masks,
        "sent_hz": options.images / sent_s,
        "node_cpu_ms_per_image": 1000 * cpu_s / max(received, 1),
    }
    print(json.dumps(figures))
    camera.node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main()
