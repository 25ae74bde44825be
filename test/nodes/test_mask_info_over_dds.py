"""Each mask is explained under its own header, by numbers that never come back with another meaning."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from graph import Graph, PerceptionClient, start_costless, wait_for
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from semla_ros.nodes.diagnostics_listener import statuses_of
from semla_ros.results import MaskInfo

MASKS = 200
DEEP = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
DEEP_LATCHED = QoSProfile(
    depth=1000, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


def test_every_mask_is_explained_while_classes_mixes_and_life_cycle_change(graph: Graph) -> None:
    client = PerceptionClient(graph, "explained")
    depths = {f"qos_overrides./explained/perception/{topic}.publisher.depth": 1000 for topic in ("mask", "mask_info")}
    process = start_costless(graph, "explained", **depths)
    client.wait_for_state("active")
    masks = graph.collect(Image, f"{client.prefix}/mask", DEEP)
    infos = graph.collect(DiagnosticArray, f"{client.prefix}/mask_info", DEEP)
    labels = graph.collect(String, f"{client.prefix}/labels", DEEP_LATCHED)
    weights = graph.collect(DiagnosticArray, f"{client.prefix}/adapter_weights", DEEP_LATCHED)
    wait_for(lambda: labels and weights, "latched topics")
    done = threading.Event()

    def camera() -> None:
        number = 0
        while not done.wait(0.02):
            number += 1
            client._image.publish(client.image(number % 250, scene=number // 10 % 2 * 100 + number // 10 % 99))

    sending = threading.Thread(target=camera)
    sending.start()
    try:
        for round_ in range(1000):
            count = 2 + round_ % 5
            assert client.set_parameters(classes=[f"class {index}" for index in range(count)]).successful
            if round_ % 10 == 9:
                for name in ("deactivate", "cleanup", "configure", "activate"):
                    assert client.transition(name)
            if len(masks) >= MASKS and round_ > 20:
                break
            time.sleep(0.1)
    finally:
        done.set()
        sending.join()
    time.sleep(1.0)  # what is under way
    assert process.stop() == 0, process.output

    def key(message: Any) -> tuple[int, int, str]:
        return message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id

    told = {key(message): MaskInfo.from_status(statuses_of(message)[0]) for message in infos}
    explained = [(mask, told[key(mask)]) for mask in masks if key(mask) in told]
    assert len(explained) >= max(
        MASKS, 0.98 * len(masks)
    )  # publishers that vanish in a cleanup take the last one along
    classes: dict[int, list[str]] = {}
    for message in labels:
        content = json.loads(message.data)
        names = [item["name"] for item in content["classes"]]
        assert classes.setdefault(content["version"], names) == names, "a version with two meanings"
    mixes: dict[int, set[str]] = {}
    for message in weights:
        for status in statuses_of(message):
            mixes.setdefault(int(status.values["generation"]), set()).add(status.values["mix_id"])
    assert all(len(ids) == 1 for ids in mixes.values())
    checked = 0
    for mask, info in explained:
        assert (info.camera, info.engine, info.precision) == ("", "costless", "fp32")
        if info.vocabulary_version in classes and info.generation in mixes:
            assert max(mask.data) < len(classes[info.vocabulary_version])
            assert mixes[info.generation] == {info.mix_id}
            checked += 1
    assert checked >= 0.9 * len(explained)  # of latched messages the node keeps the last one
    numbers = [info.generation for _, info in explained]
    assert numbers == sorted(numbers)
    assert len({info.mix_id for _, info in explained}) == 2
