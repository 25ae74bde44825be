"""`semla view` against a running node, through a real WebSocket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from graph import Graph, PerceptionClient, wait_for
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import String
from websocket_client import Viewer

from semla_ros.cli import main

pytest.importorskip("foxglove", reason="needs foxglove: the extra view")

from semla_ros.nodes.view_bridge import Definitions, ViewBridge


@pytest.fixture(scope="module")
def bridge(graph: Graph, perception: PerceptionClient) -> Iterator[ViewBridge]:
    with ViewBridge(perception.prefix, port=0) as bridge:
        ends = threading.Event()

        def spin() -> None:
            while not ends.is_set():
                bridge.spin()

        thread = threading.Thread(target=spin)
        thread.start()
        yield bridge
        ends.set()
        thread.join()


@pytest.fixture
def viewer(bridge: ViewBridge) -> Iterator[Viewer]:
    viewer = Viewer(bridge.port)
    yield viewer
    viewer.close()


def test_a_viewer_is_offered_inputs_outputs_and_diagnostics(perception: PerceptionClient, viewer: Viewer) -> None:
    for name in ("mask", "overlay", "confidence", "labels", "adapter_weights", "mask/compressed"):
        assert viewer.wait_for_topic(f"{perception.prefix}/{name}")["encoding"] == "cdr"
    assert viewer.wait_for_topic(f"/{perception.namespace}/image")["schemaName"] == "sensor_msgs/msg/Image"
    assert "diagnostic_msgs/DiagnosticStatus[] status" in viewer.wait_for_topic("/diagnostics")["schema"]


def test_a_mask_reaches_the_viewer_as_the_node_published_it(
    graph: Graph, perception: PerceptionClient, bridge: ViewBridge, viewer: Viewer
) -> None:
    topic = f"{perception.prefix}/mask"
    published = graph.collect(Image, topic)
    viewer.subscribe(topic)
    wait_for(lambda: bridge.shown[topic].subscription, "the bridge's subscription")
    wait_for(lambda: graph.node.count_subscribers(topic) >= 2, "both subscriptions")
    seen = []

    def look() -> None:
        seen.append(deserialize_message(viewer.message_of(topic), Image))

    thread = threading.Thread(target=look)
    thread.start()
    while thread.is_alive():
        perception.send(perception.image(40))
        thread.join(0.1)
    message = seen[0]
    wait_for(lambda: any(item.header.stamp == message.header.stamp for item in published), "the same mask in ROS")
    original = next(item for item in published if item.header.stamp == message.header.stamp)
    assert message == original


def test_every_viewer_hears_what_is_latched(perception: PerceptionClient, bridge: ViewBridge) -> None:
    topic = f"{perception.prefix}/labels"
    viewers = []
    for _ in range(2):
        viewer = Viewer(bridge.port)
        viewers.append(viewer)
        viewer.subscribe(topic)
        labels = json.loads(deserialize_message(viewer.message_of(topic), String).data)
        assert labels["classes"]
    for viewer in viewers:
        viewer.close()
    wait_for(lambda: bridge.shown[topic].subscription is None, "no subscription without viewers")


def test_what_nobody_looks_at_is_not_subscribed_to(
    graph: Graph, perception: PerceptionClient, bridge: ViewBridge, viewer: Viewer
) -> None:
    topic = f"{perception.prefix}/overlay"
    viewer.wait_for_topic(topic)
    assert graph.node.count_subscribers(topic) == 0
    viewer.subscribe(topic)
    wait_for(lambda: graph.node.count_subscribers(topic) == 1, "a subscription while it is looked at")
    viewer.close()
    wait_for(lambda: graph.node.count_subscribers(topic) == 0, "none afterwards")


def test_a_port_in_use_is_one_line_and_status_2(bridge: ViewBridge, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "--port", str(bridge.port), "--duration", "0"]) == 2
    error = capsys.readouterr().err
    assert f"cannot serve on 127.0.0.1:{bridge.port}" in error
    assert len(error.strip().splitlines()) == 1


def test_the_command_says_where_to_look(graph: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "--port", "0", "--duration", "0.1"]) == 0
    told = capsys.readouterr().out
    assert "ws://127.0.0.1:" in told
    assert "foxglove_layout.json" in told


@pytest.mark.parametrize(("option", "value", "words"), [
    ("--topics", "(", "'(' is no regular expression"), ("--port", "70000", "--port must be 0 to 65535"),
])  # fmt: skip
def test_bad_input_is_one_line_and_status_2(
    option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", option, value]) == 2
    assert words in capsys.readouterr().err


def test_an_unknown_type_has_no_definition_and_label_info_has() -> None:
    definitions = Definitions()
    assert definitions.schema("nobody_msgs/msg/Nothing") is None
    schema = definitions.schema("vision_msgs/msg/LabelInfo")
    assert schema is not None
    assert b"uint16 class_id" in schema.data
