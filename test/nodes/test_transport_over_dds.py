"""Raw and compressed images, whatever `image` is remapped to; a hint sends nobody in a circle."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from graph import RELIABLE, Graph, PerceptionClient, start_costless, wait_for
from rclpy.duration import Duration
from rclpy.qos import LivelinessPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from semla_ros.nodes.messages import byte_array, compressed_message, image_message, to_stamp

HEADER = Header(stamp=to_stamp(5_000_000_000), frame_id="camera")
BEST_EFFORT = ReliabilityPolicy.BEST_EFFORT
PIXELS = np.full((6, 8), 2, np.uint8)
RAW = (Image, lambda: image_message(HEADER, PIXELS))
PACKED = (CompressedImage, lambda: compressed_message(HEADER, PIXELS))
STEP = re.compile(r"set image_transport to '(\w+)'|remap '([^']+)' to (\S+?)(?: and |$|;)")


class Camera:
    """Publishes one message again and again, as long as it is asked to."""

    def __init__(self, graph: Graph, topic: str, kind: tuple[Any, Callable[[], Any]]) -> None:
        self._publisher = graph.node.create_publisher(kind[0], topic, RELIABLE)
        self._message = kind[1]()
        self._timer = graph.node.create_timer(0.1, lambda: self._publisher.publish(self._message))

    def stop(self, graph: Graph) -> None:
        self._timer.cancel()
        graph.destroy(self._publisher)


@pytest.mark.parametrize(
    ("name", "transport", "image", "published"),
    [
        ("packed_only", "raw", "image_raw", {"image_raw/compressed": PACKED}),
        ("raw_only", "compressed", "image_raw", {"image_raw": RAW}),
        ("full_name", "raw", "image_raw/compressed", {"image_raw/compressed": PACKED}),
        ("name_twice", "compressed", "image_raw/compressed", {"image_raw/compressed": PACKED}),
        ("both", "compressed", "image_raw/compressed", {"image_raw/compressed": PACKED, "image_raw": RAW}),
        ("other_packed", "compressed", "jpeg", {"jpeg": PACKED}),
        ("other_raw", "raw", "jpeg", {"jpeg": PACKED}),
    ],
)
def test_who_follows_the_hint_gets_masks(
    graph: Graph, name: str, transport: str, image: str, published: dict[str, Any]
) -> None:
    cameras = [Camera(graph, f"/{name}/{topic}", kind) for topic, kind in published.items()]
    client = PerceptionClient(graph, name)
    graph.destroy(client._image)
    settings, remappings = {"image_transport": transport}, {"image": f"/{name}/{image}"}
    process = start_costless(graph, name, remappings, **settings)
    hint = client.wait_for_message("camera", "images are published on").message
    assert process.stop() == 0, process.output

    for kind, source, target in STEP.findall(hint):
        if kind:
            settings["image_transport"] = kind
        else:
            remappings[source] = target
    assert (settings, remappings) != ({"image_transport": transport}, {"image": f"/{name}/{image}"}), hint
    masks = graph.collect(Image, f"{client.prefix}/mask")
    process = start_costless(graph, name, remappings, **settings)
    wait_for(lambda: masks, f"a mask after following '{hint}'")
    assert set(masks[-1].data) == {2}
    assert process.stop() == 0, process.output
    for camera in cameras:
        camera.stop(graph)


@pytest.mark.parametrize(
    ("name", "remappings", "topic"),
    [
        ("follows", {"image": "/follows/front/image_raw"}, "/follows/front/image_raw/compressed"),
        ("stays", {}, "/stays/image/compressed"),
        ("own", {"image": "/own/elsewhere", "image/compressed": "/own/jpeg"}, "/own/jpeg"),
    ],
)
def test_compressed_images_follow_image_and_a_remapping_of_their_own(
    graph: Graph, name: str, remappings: dict[str, str], topic: str
) -> None:
    client = PerceptionClient(graph, name)
    masks = graph.collect(Image, f"{client.prefix}/mask")
    camera = Camera(graph, topic, PACKED)
    process = start_costless(graph, name, remappings, image_transport="compressed")
    wait_for(lambda: masks, f"a mask of an image on {topic}")
    wait_for(lambda: client.values("camera").get("Topic") == topic, f"a report that names {topic}")
    assert process.stop() == 0, process.output
    camera.stop(graph)


def test_what_a_driver_left_open_is_read_and_said_and_a_setting_settles_it(graph: Graph) -> None:
    client = PerceptionClient(graph, "open")
    masks = graph.collect(Image, f"{client.prefix}/mask")
    message = image_message(HEADER, np.full((6, 8, 3), (9, 0, 1), np.uint8))
    message.encoding = "8UC3"
    camera = Camera(graph, "/open/image", (Image, lambda: message))
    process = start_costless(graph, "open")
    wait_for(lambda: masks, "a mask of an image of 8UC3")
    assert set(masks[-1].data) == {1}  # red comes last: bgr8
    client.wait_for_message("camera", "encoding '8UC3' is read as bgr8; set assume_encoding")
    wait_for(lambda: client.values("camera").get("Read as") == "bgr8", "a report of it")
    assert process.output.count("'8UC3' is read as") == 1
    assert process.stop() == 0, process.output

    masks.clear()
    process = start_costless(graph, "open", assume_encoding="rgb8")
    wait_for(lambda: masks, "a mask of an image of 8UC3 that is rgb8")
    assert set(masks[-1].data) == {0}  # 9 modulo 3 classes
    wait_for(lambda: client.values("camera").get("Read as") == "rgb8", "a report of it")
    assert "8UC3" not in client.status("camera").message
    assert process.stop() == 0, process.output
    camera.stop(graph)


def test_a_webcam_whose_frames_are_padded_or_damaged_fills_no_terminal(graph: Graph) -> None:
    client = PerceptionClient(graph, "webcam")
    masks = graph.collect(Image, f"{client.prefix}/mask")
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    stray = CompressedImage(
        header=HEADER, format="jpeg", data=byte_array(jpeg[:-2] + bytes(900) + jpeg[-2:] + bytes(4000))
    )
    camera = Camera(graph, "/webcam/image/compressed", (CompressedImage, lambda: stray))
    process = start_costless(graph, "webcam", image_transport="compressed")
    wait_for(lambda: len(masks) > 5, "masks of frames with bytes before and behind the end mark")
    assert process.output.count("end mark") == 1, process.output
    camera.stop(graph)
    closed = CompressedImage(header=HEADER, format="jpeg", data=byte_array(jpeg[: len(jpeg) // 2] + b"\xff\xd9"))
    camera = Camera(graph, "/webcam/image/compressed", (CompressedImage, lambda: closed))
    client.wait_for_message("camera", "damaged (Corrupt JPEG data: premature end of data segment)")
    assert process.stop() == 0, process.output
    assert "\nCorrupt JPEG" not in process.output
    camera.stop(graph)


def test_images_that_the_middleware_loses_are_told_with_what_helps(graph: Graph) -> None:
    client = PerceptionClient(graph, "lossy")
    graph.destroy(client._image)
    process = start_costless(graph, "lossy")
    sender = graph.node.create_publisher(Image, "/lossy/image", QoSProfile(depth=1, reliability=BEST_EFFORT))
    wait_for(sender.get_subscription_count, "a subscription")
    image = image_message(HEADER, np.zeros((100, 100, 3), np.uint8))

    def has_lost() -> bool:
        os.kill(process.pid, signal.SIGSTOP)  # a quick machine keeps up with any burst
        for _ in range(60):  # more than waits for a reader; of images too large for shared memory Kilted tells nothing
            sender.publish(image)
        os.kill(process.pid, signal.SIGCONT)
        return int(client.values("camera").get("Images lost on the way", "0")) > 0

    wait_for(has_lost, "images that are lost")
    client.wait_for_message("camera", "lost on the way: on one machine give the camera's process")
    assert process.stop() == 0, process.output
    graph.destroy(sender)


def test_deadline_and_liveliness_are_told_where_they_are_asked_for(graph: Graph) -> None:
    client = PerceptionClient(graph, "prompt")
    graph.destroy(client._image)
    start = "qos_overrides./prompt/image.subscription."
    asked = {f"{start}deadline": 50_000_000, f"{start}liveliness_lease_duration": 300_000_000}
    process = start_costless(graph, "prompt", **asked, **{f"{start}liveliness": "manual_by_topic"})
    lease = {"liveliness_lease_duration": Duration(seconds=0.2), "liveliness": LivelinessPolicy.MANUAL_BY_TOPIC}
    profile = QoSProfile(depth=1, reliability=BEST_EFFORT, deadline=Duration(seconds=0.05), **lease)
    sender = graph.node.create_publisher(Image, "/prompt/image", profile)
    wait_for(sender.get_subscription_count, "a subscription")
    masks = graph.collect(Image, f"{client.prefix}/mask")

    def is_answered() -> bool:
        sender.publish(RAW[1]())
        return bool(masks)

    wait_for(is_answered, "a mask")  # and then nothing more
    client.wait_for_message("camera", "times no image came within the deadline")
    client.wait_for_message("camera", "no publisher of the images asserts its liveliness any more")
    assert process.stop() == 0, process.output
    graph.destroy(sender)
