"""Settings that are read when the node starts, each on a node of its own: transport, size, QoS and simulated time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from graph import RELIABLE, Graph, PerceptionClient, start_costless, wait_for
from rclpy.qos import ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from semla_ros.nodes.messages import compressed_message, to_stamp
from semla_ros.nodes.outputs import SENSOR_QOS


def repeat_until(action: Callable[[], Any], condition: Callable[[], Any], what: str) -> Any:
    """Repeat an action every 0.1 s until the condition holds: best-effort messages may be lost on a busy machine."""
    last_s = -1.0

    def tried() -> Any:
        nonlocal last_s
        if time.monotonic() - last_s > 0.1:
            action()
            last_s = time.monotonic()
        return condition()

    return wait_for(tried, what)


def test_compressed_images_are_answered_and_damaged_ones_named(graph: Graph) -> None:
    client = PerceptionClient(graph, "compressed")
    process = start_costless(graph, "compressed", image_transport="compressed")
    client.wait_for_state("active")
    masks = graph.collect(Image, f"{client.prefix}/mask")
    publisher = graph.node.create_publisher(CompressedImage, "/compressed/image/compressed", RELIABLE)
    wait_for(publisher.get_subscription_count, "a subscription to compressed images")

    header = Header(stamp=to_stamp(5_000_000_000), frame_id="packed")
    picture = compressed_message(header, np.full((6, 8), 2, np.uint8))  # PNG, lossless
    repeat_until(lambda: publisher.publish(picture), lambda: masks, "a mask of a compressed image")
    assert masks[-1].header == header
    assert (masks[-1].width, masks[-1].height, set(masks[-1].data)) == (8, 6, {2})

    damaged = CompressedImage(header=header, format="png", data=picture.data[:20])
    repeat_until(
        lambda: publisher.publish(damaged),
        lambda: int(client.values("camera").get("Dropped: broken image", 0)) > 0,
        "a damaged image that is counted",
    )
    masks.clear()
    repeat_until(lambda: publisher.publish(picture), lambda: masks, "a mask after the damaged one")
    assert process.stop() == 0, process.output


def test_all_published_images_and_the_calibration_shrink_alike(graph: Graph) -> None:
    client = PerceptionClient(graph, "shrunk")
    process = start_costless(graph, "shrunk", mask_scale=0.5)
    client.wait_for_state("active")
    received = {
        name: graph.collect(kind, f"{client.prefix}/{name}")
        for name, kind in (("mask", Image), ("confidence", Image), ("overlay", Image), ("camera_info", CameraInfo))
    }
    publisher = graph.node.create_publisher(CameraInfo, "/shrunk/camera_info", 1)
    wait_for(publisher.get_subscription_count, "a subscription to camera_info")
    info = CameraInfo(width=16, height=12)
    info.k = [10.0, 0.0, 8.0, 0.0, 10.0, 6.0, 0.0, 0.0, 1.0]

    def send() -> None:
        publisher.publish(info)
        client.send(client.image(value=1, size=(12, 16)))

    repeat_until(send, lambda: all(received.values()), "all outputs")
    for name, messages in received.items():
        assert (messages[-1].width, messages[-1].height) == (8, 6), name
    assert set(received["mask"][-1].data) == {1}
    # The centre of the pixel grid stays where it is, and so does the field of view.
    calibration = received["camera_info"][-1]
    assert (calibration.k[0], calibration.k[4]) == (5.0, 5.0)
    assert (calibration.k[2], calibration.k[5]) == (4.0, 3.0)
    info.width = 32
    repeat_until(send, lambda: received["camera_info"][-1].width == 32, "a calibration of another size as it is")
    repeat_until(send, lambda: "the calibration is of 32x12 pixels" in client.status("camera").message, "a warning")
    assert process.stop() == 0, process.output


def test_qos_is_set_from_outside_and_a_setting_for_no_topic_is_refused(graph: Graph) -> None:
    client = PerceptionClient(graph, "qos")
    process = start_costless(
        graph, "qos",
        **{
            "qos_overrides./qos/image.subscription.reliability": "reliable",
            "qos_overrides./qos/perception/mask.publisher.reliability": "best_effort",
        },
    )  # fmt: skip
    client.wait_for_state("active")

    def reliability(infos: list[Any]) -> ReliabilityPolicy | None:
        return infos[0].qos_profile.reliability if infos else None

    node = graph.node
    wait_for(
        lambda: (
            reliability(node.get_subscriptions_info_by_topic("/qos/image")) == ReliabilityPolicy.RELIABLE
            and reliability(node.get_publishers_info_by_topic("/qos/perception/mask")) == ReliabilityPolicy.BEST_EFFORT
            and reliability(node.get_publishers_info_by_topic("/qos/perception/overlay")) == ReliabilityPolicy.RELIABLE
        ),
        "the reliabilities asked for, and the default elsewhere",
    )
    assert process.stop() == 0, process.output

    wrong = PerceptionClient(graph, "qos_wrong")
    process = start_costless(graph, "qos_wrong", **{"qos_overrides./qos_wrong/mosk.publisher.depth": 3})
    wrong.wait_for_message("node", "mosk")
    assert wrong.state() == "inactive"
    assert process.stop() == 0, process.output


def test_ages_go_by_the_simulated_clock_and_start_anew_when_a_recording_loops(graph: Graph) -> None:
    client = PerceptionClient(graph, "simulated")
    process = start_costless(graph, "simulated", use_sim_time=True, **{"diagnostics.hold_s": 5.0})
    clock = graph.node.create_publisher(Clock, "/clock", RELIABLE)
    masks = graph.collect(Image, f"{client.prefix}/mask")
    now_ns = 100_000_000_000

    def tick() -> None:
        nonlocal now_ns
        now_ns += 100_000_000
        clock.publish(Clock(clock=to_stamp(now_ns)))

    repeat_until(tick, lambda: client.values("node").get("Lifecycle state") == "active", "an active node")

    def play() -> None:
        tick()
        image = client.image()
        image.header.stamp = to_stamp(now_ns)
        client.send(image)

    def age_ms() -> float:
        return float(client.values("camera").get("Frame age p50 (ms)") or "nan")

    # By the wall clock a mask with such a stamp would be decades old.
    repeat_until(play, lambda: masks and abs(age_ms()) < 5_000.0, "an age by the simulated clock")
    assert abs(masks[-1].header.stamp.sec - now_ns // 10**9) < 5

    now_ns = 20_000_000_000  # the recording starts over
    masks.clear()
    repeat_until(play, lambda: masks and masks[-1].header.stamp.sec < 90, "masks after the jump back")
    repeat_until(play, lambda: abs(age_ms()) < 5_000.0, "an age after the jump back")
    status = client.status("camera")
    assert status is not None
    assert "no image" not in status.message
    assert "jumped back by" in process.output
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output, process.output


def test_a_camera_that_cannot_be_heard_is_told_apart(graph: Graph) -> None:
    client = PerceptionClient(graph, "silent")
    graph.destroy(client._image)  # nobody is there
    process = start_costless(
        graph, "silent", **{"qos_overrides./silent/image.subscription.reliability": "reliable"}
    )  # fmt: skip
    client.wait_for_message("camera", "nobody publishes there")

    compressed = graph.node.create_publisher(CompressedImage, "/silent/image/compressed", 1)
    client.wait_for_message("camera", "images are published on /silent/image/compressed: set image_transport to")
    graph.destroy(compressed)

    wrong = graph.node.create_publisher(CameraInfo, "/silent/image", 1)
    client.wait_for_message("camera", "what is published there is sensor_msgs/msg/CameraInfo")
    graph.destroy(wrong)

    best_effort = graph.node.create_publisher(Image, "/silent/image", SENSOR_QOS)
    client.wait_for_message("camera", "QoS does not fit")
    graph.destroy(best_effort)

    graph.node.create_publisher(Image, "/silent/image", RELIABLE)
    client.wait_for_message("camera", "a camera is connected, but sends nothing")
    assert process.stop() == 0, process.output


def test_images_without_stamps_are_answered_and_the_scene_is_followed(graph: Graph) -> None:
    client = PerceptionClient(graph, "unstamped")
    process = start_costless(graph, "unstamped")
    client.wait_for_state("active")
    masks = graph.collect(Image, f"{client.prefix}/mask")

    def send() -> None:
        image = client.image(scene=5)
        image.header.stamp = Time()
        client.send(image)

    repeat_until(send, lambda: masks, "a mask")
    assert masks[-1].header.stamp == Time()
    assert client.wait_for_message("camera", "carry no stamp").level == DiagnosticStatus.WARN
    repeat_until(send, lambda: client.values("adaptation").get("Mix", "").startswith("night"), "a mix")
    assert process.stop() == 0, process.output
