"""Settings that are read when the node starts, each on a node of its own: transport, size, QoS and simulated time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time
from costless_node import OWN_CLASSES
from diagnostic_msgs.msg import DiagnosticStatus
from graph import RELIABLE, Graph, PerceptionClient, start_costless, wait_for
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
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


def test_qos_is_set_from_outside_and_a_setting_for_no_topic_is_told(graph: Graph) -> None:
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
    prefix = "qos_overrides./qos_wrong"
    names = (f"{prefix}/perception/mosk.publisher.depth", f"{prefix}/image.subscription.depht", f"{prefix}/x.y.depth")
    process = start_costless(graph, "qos_wrong", **dict.fromkeys(names, 3))
    status = wrong.wait_for_message("node", f"'{prefix}/x.y'")
    assert f"'{names[0][:-6]}' (did you mean '{prefix}/perception/mask.publisher'?)" in status.message
    assert f"'{names[1]}' (did you mean '{prefix}/image.subscription.depth'?)" in status.message
    assert status.level == DiagnosticStatus.WARN
    assert wrong.state() == "active"
    assert process.stop() == 0, process.output


@pytest.mark.parametrize(
    ("setting", "value", "words", "state"),
    [
        ("image.subscription.reliability", "sure", "policy `reliability`: `sure`", "inactive"),
        (
            "image.subscription.deadline",
            0.1,
            "'0.1' of type 'DOUBLE', expecting type 'INTEGER'",
            "inactive",
        ),
        (
            "perception/mask.publisher.depth",
            "five",
            "'five' of type 'STRING', expecting",
            "unconfigured",
        ),
    ],
)
def test_a_qos_setting_that_no_topic_can_have_is_told_and_expected(
    graph: Graph, setting: str, value: object, words: str, state: str
) -> None:
    namespace = f"qos_{setting.rpartition('.')[2]}"
    client = PerceptionClient(graph, namespace)
    process = start_costless(graph, namespace, **{f"qos_overrides./{namespace}/{setting}": value})
    status = client.wait_for_message("node", words)
    assert "failed: qos_overrides.*: " in status.message
    assert client.state() == state
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output


def test_parameters_set_for_every_node_are_passed_over_and_told(graph: Graph, tmp_path: Path) -> None:
    file = tmp_path / "vehicle.yaml"
    file.write_text("/**: {ros__parameters: {wheel_radius: 0.3, topk: 3, top_k: 2, geometry: {track: 1.4}}}", "utf-8")
    client = PerceptionClient(graph, "foreign")
    process = start_costless(graph, "foreign", params_files=[file], steer_ratio=15.2)
    client.wait_for_state("active")
    assert client.values("node")["Ignored parameters"] == "geometry.track, steer_ratio, topk, wheel_radius"
    assert client.status("node").level == DiagnosticStatus.OK
    assert "'topk', set for every node, is no parameter of this one; did you mean 'top_k'?" in process.output
    assert "'wheel_radius', set for every node, is no parameter of this one; ignored" in process.output
    assert client.parameter("top_k") == 2
    assert process.stop() == 0, process.output


def test_a_parameter_file_that_is_for_other_nodes_alone_is_told(graph: Graph, tmp_path: Path) -> None:
    others, ours = tmp_path / "others.yaml", tmp_path / "ours.yaml"
    others.write_text("/van/perception: {ros__parameters: {top_k: 2}}\ncamera: {ros__parameters: {top_k: 4}}", "utf-8")
    ours.write_text("/van/perception: {ros__parameters: {top_k: 7}}\n/*/*: {ros__parameters: {steady_s: 3.0}}", "utf-8")
    client = PerceptionClient(graph, "elsewhere")
    process = start_costless(graph, "elsewhere", params_files=[others, ours])
    client.wait_for_state("active")
    told = client.status("node")
    assert told.level == DiagnosticStatus.WARN
    assert f"{others} sets nothing for /elsewhere/perception: it is for /camera, /van/perception" in told.message
    assert str(ours) not in told.message
    assert f"{others} sets nothing for" in process.output
    assert client.parameter("steady_s") == 3.0
    assert process.stop() == 0, process.output


def test_a_deleted_parameter_is_as_if_it_had_never_been_given(graph: Graph) -> None:
    client = PerceptionClient(graph, "deleted")
    process = start_costless(graph, "deleted", top_k=2, steady_s=3.0, **{"diagnostics.max_age_ms": 77.0})
    client.wait_for_state("active")
    assert client.set_parameters(classes=["a", "b"]).successful

    def deleted(*names: str) -> list[str]:
        """Reasons of refusals, as `ros2 param delete` shows them."""
        request = SetParameters.Request(parameters=[ParameterMessage(name=name) for name in names])
        results = graph.call(SetParameters, f"{client.prefix}/set_parameters", request).results
        return [result.reason for result in results if not result.successful]

    assert deleted("top_k", "steady_s", "diagnostics.max_age_ms", "classes") == []
    assert client.parameter("top_k") == 3  # as the library has it
    assert client.parameter("steady_s") == 10.0
    assert client.parameter("diagnostics.max_age_ms") == 1000.0
    assert client.parameter("classes") == list(OWN_CLASSES)
    assert client.set_parameters(top_k=4, temperature=0.5).successful
    assert deleted("top_k") == []
    for name in ("deactivate", "cleanup", "configure", "activate"):
        assert client.transition(name)
    assert (client.parameter("top_k"), client.parameter("temperature")) == (3, 0.5)
    for name in ("model", "use_sim_time", "qos_overrides./deleted/image.subscription.depth"):
        assert deleted(name) == [f"'{name}' cannot be deleted while the node runs: start the node without it"]
    assert deleted("topk") == ["unknown parameter 'topk'; did you mean 'top_k'?"]
    assert client.parameter("model") == client.dump()["model"]
    assert process.stop() == 0, process.output


def test_a_dump_of_the_parameters_starts_a_node_with_other_topics_and_transport(graph: Graph, tmp_path: Path) -> None:
    client = PerceptionClient(graph, "dumped")
    process = start_costless(graph, "dumped", top_k=2, **{"qos_overrides./dumped/image.subscription.depth": 3})
    client.wait_for_state("active")
    dump = tmp_path / "dump.yaml"
    parameters = client.dump()
    del parameters["diagnostics.hardware_id"]
    assert "qos_overrides./dumped/perception/mask.publisher.depth" in parameters
    assert parameters["cameras"] == []
    dump.write_text(yaml.safe_dump({"/**/perception": {"ros__parameters": parameters}}), "utf-8")
    assert process.stop() == 0, process.output

    again = PerceptionClient(graph, "redumped")
    graph.destroy(again._image)
    remappings = {"image": "/redumped/front/image_raw"}
    process = start_costless(graph, "redumped", remappings, [dump], image_transport="compressed")
    again.wait_for_state("active")
    told = again.wait_for_message("node", "/dumped/")
    assert told.level == DiagnosticStatus.WARN
    topic = "/redumped/front/image_raw/compressed"
    wait_for(lambda: graph.node.get_subscriptions_info_by_topic(topic), "a subscription to the other topic")
    assert again.parameter("top_k") == 2
    kept = {name: value for name, value in again.dump().items() if name in parameters}
    assert {name for name, value in kept.items() if value != parameters[name]} == {"image_transport"}
    assert process.stop() == 0, process.output


@pytest.mark.parametrize("order", [1, -1])
def test_what_fits_only_together_is_set_by_param_load_in_every_order(graph: Graph, order: int) -> None:
    name = f"order_{order % 3}"
    client = PerceptionClient(graph, name)
    process = start_costless(graph, name, autostart=False)
    client.wait_for_state("unconfigured")

    def load(**values: Any) -> list[bool]:
        items = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()][::order]
        request = SetParameters.Request(parameters=items)
        results = graph.call(SetParameters, f"{client.prefix}/set_parameters", request).results
        return [result.successful for result in results][::order]

    assert load(fade_start=3.0, fade_end=4.0, top_k=2) == [True] * 3
    assert load(fade_start=0.5, fade_end=0.6, model="other", top_k=3) == [True, True, False, True]
    assert load(top_k=0, temperature=0.2) == [False, True]  # each on its own where they do not all fit
    found = [client.parameter(name) for name in ("fade_start", "fade_end", "top_k", "temperature")]
    assert found == [0.5, 0.6, 3, 0.2]
    assert process.stop() == 0, process.output


@pytest.mark.parametrize("is_given", [True, False], ids=["given at the start", "never given"])
@pytest.mark.parametrize("empty", ["strings", "no type", "one empty string"])
def test_classes_go_back_to_the_models_own(graph: Graph, is_given: bool, empty: str) -> None:
    name = f"{'given' if is_given else 'never'}_{empty.replace(' ', '_')}"
    client = PerceptionClient(graph, name)
    process = start_costless(graph, name, autostart=False, **({"classes": "[cat, dog]"} if is_given else {}))
    client.wait_for_state("unconfigured")
    assert client.parameter("classes") == (["cat", "dog"] if is_given else [])
    assert client.transition("configure")
    assert client.parameter("classes") == (["cat", "dog"] if is_given else list(OWN_CLASSES))
    assert client.set_parameters(classes=["tree"]).successful
    kinds = {"strings": Parameter.Type.STRING_ARRAY, "no type": Parameter.Type.BOOL_ARRAY}
    unset = Parameter("classes", kinds.get(empty), []) if empty in kinds else Parameter("classes", value=[""])
    request = SetParameters.Request(parameters=[unset.to_parameter_msg()])
    assert graph.call(SetParameters, f"{client.prefix}/set_parameters", request).results[0].successful
    assert client.parameter("classes") == list(OWN_CLASSES)
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
