"""Where the node listens for images and calibrations, as image_transport and image_pipeline have it."""

from __future__ import annotations

from typing import Any

import pytest
from graph import Graph, PerceptionClient, start_costless, wait_for
from rclpy.node import NodeNameNonExistentError

IMAGE, COMPRESSED, INFO = (f"sensor_msgs/msg/{name}" for name in ("Image", "CompressedImage", "CameraInfo"))
# Remappings, parameters -> the image topic of each camera, and that of its calibration.
CASES: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, str]]] = {
    "nothing said": ({}, {}, {"image": "camera_info"}),
    "a driver's topic": ({"image": "/c/image_raw"}, {}, {"/c/image_raw": "/c/camera_info"}),
    "at the root": ({"image": "/image"}, {}, {"/image": "/camera_info"}),
    "a calibration of its own": (
        {"image": "/c/image_raw", "camera_info": "/d/info"}, {}, {"/c/image_raw": "/d/info"},
    ),
    "the calibration alone": ({"camera_info": "/d/info"}, {}, {"image": "/d/info"}),
    "the calibration where it is without a rule, by a rule": (
        {"image": "/c/image_raw", "camera_info": "camera_info"}, {}, {"/c/image_raw": "camera_info"},
    ),
    "a rule for another node": (
        {"image": "/c/image_raw", "camera:camera_info": "/d/info", "camera:image": "/d/image"}, {},
        {"/c/image_raw": "/c/camera_info"},
    ),
    "compressed images where they are without a rule, by a rule": (
        {"image": "/c/image_raw", "perception:image/compressed": "image/compressed"},
        {"image_transport": "compressed"}, {"image/compressed": "camera_info"},
    ),
    "compressed": (
        {"image": "/c/image_raw"}, {"image_transport": "compressed"}, {"/c/image_raw/compressed": "/c/camera_info"},
    ),
    "a compressed topic": (
        {"image/compressed": "/c/jpeg/compressed"}, {"image_transport": "compressed"},
        {"/c/jpeg/compressed": "/c/camera_info"},
    ),
    "a compressed topic of another name": (
        {"image/compressed": "/c/jpeg"}, {"image_transport": "compressed"}, {"/c/jpeg": "/c/camera_info"},
    ),
    "several": (
        {}, {"cameras": "[front, left/wide]"},
        {"front/image": "front/camera_info", "left/wide/image": "left/wide/camera_info"},
    ),
    "several, remapped": (
        {"front/image": "/f/image_raw", "left/camera_info": "/l/info"}, {"cameras": "[front, left]"},
        {"/f/image_raw": "/f/camera_info", "left/image": "/l/info"},
    ),
    "several that name their topics": (
        {"right/camera_info": "/r/info"}, {"cameras": "[front=/f/image_raw, left=cams/left, right=/r/rgb, rear]"},
        {"/f/image_raw": "/f/camera_info", "cams/left": "cams/camera_info", "/r/rgb": "/r/info",
         "rear/image": "rear/camera_info"},
    ),
    "several that name their topics, compressed": (
        {}, {"cameras": "[front=/f/image_raw]", "image_transport": "compressed"},
        {"/f/image_raw/compressed": "/f/camera_info"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_node_listens_to_the_images_and_to_the_calibration_beside_them(graph: Graph, case: str) -> None:
    remappings, parameters, expected = CASES[case]
    namespace = f"topics_{list(CASES).index(case)}"
    client = PerceptionClient(graph, namespace)
    process = start_costless(graph, namespace, remappings, **parameters)
    client.wait_for_state("active")

    def full(topics: Any) -> set[str]:
        return {topic if topic.startswith("/") else f"/{namespace}/{topic}" for topic in topics}

    def heard(*kinds: str) -> set[str]:
        try:
            topics = graph.node.get_subscriber_names_and_types_by_node("perception", f"/{namespace}")
        except NodeNameNonExistentError:  # its topics may be known before it is
            return set()
        return {topic for topic, types in topics if set(types) & set(kinds)}

    wait_for(lambda: heard(IMAGE, COMPRESSED) == full(expected), f"subscriptions to {full(expected)}")
    told = {client.values(name)["Calibration"] for name in client.names() if name.startswith("camera")}
    assert told == {f"none heard on {topic}" for topic in full(expected.values())}
    wait_for(lambda: heard(INFO) == full(expected.values()), f"subscriptions to {full(expected.values())}")
    assert process.stop() == 0, process.output
