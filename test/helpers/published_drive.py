"""Publishes four frames, their truths and masks, labels, a mix and diagnostics, as camera and perception node do."""

import json
import time

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from semla_ros.labels import labels_json
from semla_ros.nodes.messages import adapter_weights_message, image_message, to_stamp
from semla_ros.results import AdapterMix, Generation

START_NS = 1_700_000_000_000_000_000
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def status(name: str, level: bytes, message: str, **values: int) -> DiagnosticStatus:
    pairs = [KeyValue(key=key.replace("__", ": ").replace("_", " "), value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(name=name, level=level, message=message, values=pairs)


def wait_for_subscriptions(*publishers: Publisher) -> None:
    end = time.monotonic() + 20
    while min(publisher.get_subscription_count() for publisher in publishers) == 0 and time.monotonic() < end:
        time.sleep(0.05)


def main() -> None:
    rclpy.init()
    node = rclpy.create_node("published_drive")
    image, truth, mask = (
        node.create_publisher(Image, name, 5) for name in ("image", "ground_truth", "perception/mask")
    )
    segment = node.create_publisher(String, "segment", LATCHED)
    labels = node.create_publisher(String, "perception/labels", LATCHED)
    weights = node.create_publisher(DiagnosticArray, "perception/adapter_weights", LATCHED)
    diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
    wait_for_subscriptions(truth, mask, segment, labels, weights, diagnostics)
    time.sleep(0.5)
    assert image.get_subscription_count() == 0, "the drive would start before masks can be heard"
    labels.publish(String(data=labels_json(("road", "car"), 0)))
    wait_for_subscriptions(image)
    mix = AdapterMix(names=("night",), weights=np.array([0.75]), distances=np.array([0.2]), base_weight=0.25)
    generation = Generation(
        number=3, mix=mix, class_names=("road", "car"), vocabulary_version=0, scene_stamp_ns=START_NS, reason="drift"
    )
    weights.publish(adapter_weights_message(generation, "host", to_stamp(START_NS)))
    diagnostics.publish(
        DiagnosticArray(
            status=[
                status("perception: node", DiagnosticStatus.OK, "active"),
                status(
                    "perception: camera", DiagnosticStatus.WARN, "2 of 9 images were broken", Images_received=9,
                    Dropped__overtaken=3,
                ),
                status("battery: voltage", DiagnosticStatus.ERROR, "empty"),
            ]
        )
    )  # fmt: skip
    for index in range(4):
        stamp = START_NS + index * 10**8
        header = Header(stamp=to_stamp(stamp), frame_id="camera_link")
        told = {
            "segment": "clear" if index < 2 else "night",
            "stamp_ns": stamp,
            "finished": False,
            "frames_sent": index + 1,
        }
        segment.publish(String(data=json.dumps(told)))
        truth.publish(image_message(header, np.full((6, 8), index, np.uint8)))
        image.publish(image_message(header, np.full((6, 8, 3), (index, 10 * index, 100 * index), np.uint8)))
        time.sleep(0.1)
        mask.publish(image_message(header, np.full((6, 8), 10 + index, np.uint8)))
        time.sleep(0.1)
    segment.publish(String(data=json.dumps({"segment": "", "finished": True, "frames_sent": 4})))
    time.sleep(1.0)
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main()
