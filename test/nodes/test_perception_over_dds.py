"""The node in a process of its own: what goes in over DDS comes out as masks with what explains them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import decode_compressed
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from graph import LATCHED, Graph, PerceptionClient, start_costless, wait_for
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters, SetParametersAtomically
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from semla_ros.labels import colour_of
from semla_ros.nodes.messages import stamp_ns, to_stamp
from semla_ros.results import BASE_MODEL


@pytest.fixture
def masks(graph: Graph, perception: PerceptionClient):
    received: list[Image] = []
    subscription = graph.node.create_subscription(Image, f"{perception.prefix}/mask", received.append, 100)
    wait_for(lambda: subscription.get_publisher_count() == 1, "publisher of the mask")
    time.sleep(0.1)  # the publisher learns of the match a moment later
    yield received
    graph.unsubscribe(subscription)


def answer_to(perception: PerceptionClient, masks: list[Image], message: Image) -> Image:
    """Send an image until its mask comes: the node asks for best effort, so on a busy machine one may be lost."""

    def found() -> Image | None:
        return next((mask for mask in masks if mask.header.stamp == message.header.stamp), None)

    def found_after_sending() -> Image | None:
        perception.send(message)
        end_s = time.monotonic() + 2.0
        while found() is None and time.monotonic() < end_s:
            time.sleep(0.005)
        return found()

    return wait_for(found_after_sending, "mask of an image")


def test_each_mask_carries_the_header_of_its_image(perception: PerceptionClient, masks: list[Image]) -> None:
    for value in range(8):
        image = perception.image(value, size=(5, 7), frame_id=f"camera_{value}")
        mask = answer_to(perception, masks, image)
        assert mask.header == image.header
        assert (mask.width, mask.height, mask.step, mask.encoding) == (7, 5, 7, "mono8")
        assert set(mask.data) == {value % 3}


def test_size_and_encoding_may_change_in_flight(perception: PerceptionClient, masks: list[Image]) -> None:
    for size, encoding in (((4, 4), "rgb8"), ((12, 8), "bgr8"), ((2, 3), "mono8"), ((480, 640), "rgb8")):
        image = perception.image(0, size=size)
        image.encoding = encoding
        if encoding == "mono8":
            image.step, image.data = size[1], image.data[: size[0] * size[1]]
        mask = answer_to(perception, masks, image)
        assert (mask.height, mask.width) == size


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"width": 0, "height": 0, "step": 0, "data": b""}, "0x0"),
        ({"step": 5}, "step 5"),
        ({"encoding": "jpeg2000"}, "unknown encoding 'jpeg2000'"),
        ({"data": b"\0" * 11}, "truncated"),
    ],
    ids=["zero size", "wrong step", "unknown encoding", "truncated"],
)
def test_a_broken_image_is_named_on_diagnostics_and_the_next_one_answered(
    perception: PerceptionClient, masks: list[Image], damage: dict, words: str
) -> None:
    broken = int(perception.values("camera").get("Dropped: broken image", 0))
    message = perception.image()
    for field, value in damage.items():
        setattr(message, field, value)
    perception.send(message)
    status = perception.wait_for_message("camera", words)
    assert status.level in (DiagnosticStatus.WARN, DiagnosticStatus.ERROR)
    wait_for(lambda: int(perception.values("camera")["Dropped: broken image"]) == broken + 1, "one more broken image")
    answer_to(perception, masks, perception.image())


def test_a_late_joiner_hears_labels_and_weights_that_agree_with_the_masks(
    graph: Graph, perception: PerceptionClient, masks: list[Image]
) -> None:
    image = perception.image(scene=77)
    answer_to(perception, masks, image)
    labels = graph.collect(String, f"{perception.prefix}/labels", LATCHED)
    weights = graph.collect(DiagnosticArray, f"{perception.prefix}/adapter_weights", LATCHED)
    wait_for(lambda: labels and weights, "latched messages")
    told = json.loads(labels[-1].data)
    assert [item["name"] for item in told["classes"]] == perception.parameter("classes")
    assert tuple(told["classes"][0]["color"]) == colour_of(told["classes"][0]["name"])
    by_name = {status.name: {item.key: item.value for item in status.values} for status in weights[-1].status}
    assert list(by_name) == ["night", "fog", BASE_MODEL]
    assert sum(float(values["weight"]) for values in by_name.values()) == pytest.approx(1.0)
    assert by_name["fog"]["distance"] == ""  # not known
    assert int(by_name["night"]["scene_stamp_ns"]) == stamp_ns(image.header.stamp)
    assert stamp_ns(weights[-1].header.stamp) == stamp_ns(image.header.stamp)


def test_lazy_outputs_come_with_their_subscribers(graph: Graph, perception: PerceptionClient, masks: list) -> None:
    topics = {
        "confidence": Image, "overlay": Image, "overlay/compressed": CompressedImage,
        "mask/compressed": CompressedImage, "camera_info": CameraInfo,
    }  # fmt: skip
    received = {name: graph.collect(kind, f"{perception.prefix}/{name}") for name, kind in topics.items()}
    info_publisher = graph.node.create_publisher(CameraInfo, f"/{perception.namespace}/camera_info", 1)
    wait_for(lambda: info_publisher.get_subscription_count() == 1, "subscription to camera_info")
    info = CameraInfo(width=16, height=12, binning_x=2, binning_y=2)  # of the sensor; the images are 8x6
    info.k = [10.0, 0.0, 8.0, 0.0, 10.0, 6.0, 0.0, 0.0, 1.0]

    def all_there() -> Image | None:
        info_publisher.publish(info)
        image = perception.image(value=1, scene=90)
        mask = answer_to(perception, masks, image)
        time.sleep(0.05)
        return mask if all(received.values()) else None

    mask = wait_for(all_there, "all lazy outputs")
    confidence = received["confidence"][-1]
    assert (confidence.encoding, set(confidence.data)) == ("mono8", {90})
    ids = decode_compressed(received["mask/compressed"][-1].data)
    assert ids.shape == (6, 8, 3)
    assert set(ids.ravel()) == set(mask.data)
    overlay = np.frombuffer(received["overlay"][-1].data, np.uint8).reshape(6, 8, 3)
    expected = 0.5 * np.array([1, 90, 0]) + 0.5 * np.array(colour_of(perception.parameter("classes")[1]))
    assert np.abs(overlay - expected).max() <= 1
    assert decode_compressed(received["overlay/compressed"][-1].data).shape == (6, 8, 3)
    calibration = received["camera_info"][-1]
    assert (calibration.width, calibration.height, calibration.k[0], calibration.k[2]) == (16, 12, 10.0, 8.0)
    assert calibration.header.frame_id == "cam"


def test_new_classes_change_masks_and_labels_together(
    graph: Graph, perception: PerceptionClient, masks: list[Image]
) -> None:
    labels = graph.collect(String, f"{perception.prefix}/labels", LATCHED)
    wait_for(lambda: labels, "labels")
    version = json.loads(labels[-1].data)["version"]
    assert perception.set_parameters(classes=["road", "cat", "dog", "bicycle", "tree"]).successful
    wait_for(lambda: json.loads(labels[-1].data)["version"] == version + 1, "new labels")
    assert [item["name"] for item in json.loads(labels[-1].data)["classes"]][1] == "cat"
    assert set(answer_to(perception, masks, perception.image(4)).data) == {4}
    many = [f"thing {index}" for index in range(300)]
    assert perception.set_parameters(classes=many).successful
    mask = answer_to(perception, masks, perception.image(255))
    assert (mask.encoding, mask.step) == ("mono16", 16)
    assert json.loads(wait_for(lambda: labels[-1], "labels").data)["unlabelled"] == 65535
    assert perception.set_parameters(classes=["road", "sky", "unicorn"]).successful


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_k": 0}, ["top_k", "at least 1"]),
        ({"top_k": 2, "temperature": -1.0}, ["temperature", "positive"]),
        ({"drift_threshold": 0.5}, ["drift_threshold", "mix_threshold"]),
        ({"classes": ["road", "road"]}, ["different"]),
        ({"overlay_alpha": 2.0}, ["overlay_alpha", "[0, 1]"]),
        ({"distance": "manhattan"}, ["distance", "manhattan"]),
        ({"model": "catseg-l"}, ["read-only", "model"]),
        ({"topk": 2}, ["unknown parameter 'topk'", "top_k"]),
        ({"top_k": "three"}, ["type"]),
        ({"top_k": 2**63 - 1}, ["'top_k' must be at least 1 and at most 2147483647", str(2**63 - 1)]),
        ({"temperature": 0.0}, ["'temperature' must be positive, got 0.0"]),  # a ROS range has closed ends
        ({"min_weight": 1.0}, ["'min_weight' must be in [0, 1), got 1.0"]),
        ({"steady_s": float("inf")}, ["'steady_s' must be at least 0", "got inf"]),
        ({"fade_start": float("nan")}, ["'fade_start' must be positive, got nan"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_change_is_refused_with_the_reason_and_no_effect(
    perception: PerceptionClient, changes: dict, words: list[str]
) -> None:
    names = ("top_k", "temperature", "mix_threshold", "classes", "overlay_alpha", "distance", "model")
    before = [perception.parameter(name) for name in names]
    result = perception.set_parameters(**changes)
    assert not result.successful
    assert all(word.lower() in result.reason.lower() for word in words), result.reason
    assert [perception.parameter(name) for name in names] == before


def test_a_value_out_of_range_is_told_on_diagnostics_too(perception: PerceptionClient) -> None:
    assert not perception.set_parameters(overlay_alpha=1.5).successful
    perception.wait_for_message("node", "change of overlay_alpha refused: 'overlay_alpha' must be in [0, 1], got 1.5")


def test_descriptions_tell_unit_range_and_whether_a_parameter_can_change(
    graph: Graph, perception: PerceptionClient
) -> None:
    names = ["top_k", "min_weight", "mask_scale", "steady_s", "engine", "classes"]
    request = DescribeParameters.Request(names=names)
    found = graph.call(DescribeParameters, f"{perception.prefix}/describe_parameters", request).descriptors
    top_k, min_weight, mask_scale, steady, engine, classes = found
    assert (top_k.integer_range[0].from_value, top_k.integer_range[0].to_value) == (1, 2**31 - 1)
    assert (min_weight.floating_point_range[0].from_value, min_weight.floating_point_range[0].to_value) == (0.0, 1.0)
    assert mask_scale.additional_constraints == "in (0, 1]"
    assert steady.description.endswith(", s")
    assert engine.additional_constraints == "one of auto, torch, onnx, openvino, tensorrt"
    assert not classes.integer_range
    assert [item.read_only for item in found] == [False, False, True, False, True, False]


def test_several_parameters_change_at_once(perception: PerceptionClient) -> None:
    assert perception.parameter("top_k") == 3  # what the pipeline recommends, not the default
    result = perception.set_parameters(top_k=2, temperature=0.2, mix_threshold=0.3, overlay_alpha=0.25)
    assert result.successful, result.reason
    assert [perception.parameter(name) for name in ("top_k", "temperature", "overlay_alpha")] == [2, 0.2, 0.25]
    assert perception.set_parameters(top_k=3, overlay_alpha=0.5).successful


def test_one_by_one_each_parameter_is_taken_or_refused_for_itself(graph: Graph, perception: PerceptionClient) -> None:
    changes = [Parameter("overlay_alpha", value=0.75), Parameter("top_k", value=0), Parameter("temperature", value=0.3)]
    request = SetParameters.Request(parameters=[change.to_parameter_msg() for change in changes])
    results = graph.call(SetParameters, f"{perception.prefix}/set_parameters", request).results
    assert [result.successful for result in results] == [True, False, True]
    assert "top_k" in results[1].reason
    assert [perception.parameter(change.name) for change in changes] == [0.75, 3, 0.3]
    assert perception.set_parameters(overlay_alpha=0.5).successful


def test_a_camera_may_go_and_come_back_as_another_one(
    graph: Graph, perception: PerceptionClient, masks: list[Image]
) -> None:
    topic = f"/{perception.namespace}/image"
    assert perception.set_parameters(diagnostics__stale_after_s=0.2).successful
    for index, (size, encoding, frame_id) in enumerate(
        [((6, 8), "rgb8", "old"), ((10, 4), "bgr8", "new"), ((3, 5), "mono8", "third")]
    ):
        image = perception.image(0, size=size, frame_id=frame_id)
        image.encoding = encoding
        if encoding == "mono8":
            image.step, image.data = size[1], image.data[: size[0] * size[1]]
        camera = graph.node.create_publisher(Image, topic, 10)

        def answered(camera: Any = camera, image: Image = image) -> bool:
            camera.publish(image)
            time.sleep(0.05)
            return bool(masks) and masks[-1].header.frame_id == image.header.frame_id

        wait_for(answered, f"a mask of camera {index}")
        assert (masks[-1].height, masks[-1].width) == size
        graph.destroy(camera)
        status = perception.wait_for_message("camera", "no image on")
        assert status.level == DiagnosticStatus.STALE
    assert perception.set_parameters(diagnostics__stale_after_s=2.0).successful


def test_services_answer_what_was_done_or_why_not(
    graph: Graph, perception: PerceptionClient, masks: list[Image]
) -> None:
    def call(kind: type, name: str, **fields: bool):
        return graph.call(kind, f"{perception.prefix}/{name}", kind.Request(**fields))

    answer_to(perception, masks, perception.image(scene=33))
    wait_for(lambda: perception.values("adaptation")["Mix"].startswith("night"), "an adapted generation")
    assert call(SetBool, "freeze_adaptation", data=True).success
    wait_for(lambda: perception.values("adaptation")["Frozen"] == "yes", "frozen")
    assert call(Trigger, "reset_adaptation").success
    wait_for(lambda: perception.values("adaptation")["Mix"].startswith(BASE_MODEL), "base model")
    assert call(SetBool, "freeze_adaptation", data=False).success
    answer = call(Trigger, "reload_library")
    assert not answer.success
    assert "library '/nowhere' is no folder" in answer.message
    perception.wait_for_message("node", "/nowhere")


def test_a_disabled_node_drops_images_and_says_so(
    graph: Graph, perception: PerceptionClient, masks: list[Image]
) -> None:
    name = f"{perception.prefix}/enable"
    assert graph.call(SetBool, name, SetBool.Request(data=False)).success
    perception.send(perception.image())
    wait_for(lambda: int(perception.values("camera").get("Dropped: disabled", 0)) == 1, "a dropped image")
    assert graph.call(SetBool, name, SetBool.Request(data=True)).success
    answer_to(perception, masks, perception.image())


def test_every_image_received_is_answered_or_dropped_for_a_reason(
    perception: PerceptionClient, masks: list[Image]
) -> None:
    received = int(wait_for(lambda: perception.values("camera"), "diagnostics")["Images received"])
    for _ in range(60):  # faster than they can be answered: some are overtaken, some never leave the middleware
        perception.send(perception.image(size=(240, 320)))
    answer_to(perception, masks, perception.image())

    def adds_up() -> bool:
        values = perception.values("camera")
        dropped = sum(int(value) for key, value in values.items() if key.startswith("Dropped: "))
        return int(values["Images received"]) == int(values["Masks published"]) + dropped > received

    wait_for(adds_up, "a complete account")


def test_stamps_that_jump_back_start_the_scene_anew(
    graph: Graph, perception: PerceptionClient, masks: list[Image]
) -> None:
    weights = graph.collect(DiagnosticArray, f"{perception.prefix}/adapter_weights", LATCHED)
    first = perception.image(scene=55)
    answer_to(perception, masks, first)
    generation = int(wait_for(lambda: perception.values("adaptation"), "diagnostics")["Generation"])
    first.header.stamp = to_stamp(stamp_ns(first.header.stamp) - 10_000_000_000)
    answer_to(perception, masks, first)
    wait_for(lambda: stamp_ns(weights[-1].header.stamp) == stamp_ns(first.header.stamp), "a mix for the old stamp")
    assert int(perception.values("adaptation")["Generation"]) >= generation


def test_a_silent_camera_is_stale(perception: PerceptionClient, masks: list[Image]) -> None:
    assert perception.set_parameters(diagnostics__stale_after_s=0.2).successful
    status = perception.wait_for_message("camera", "no image on /test_perception_over_dds/image for")
    assert status.level == DiagnosticStatus.STALE
    assert perception.set_parameters(diagnostics__stale_after_s=2.0).successful
    answer_to(perception, masks, perception.image())
    wait_for(lambda: perception.status("camera").level != DiagnosticStatus.STALE, "a camera that is back")


def test_an_unknown_parameter_keeps_the_node_up_and_unconfigured(graph: Graph, tmp_path: Path) -> None:
    client = PerceptionClient(graph, "unknown_parameter")
    file = tmp_path / "own.yaml"
    file.write_text("unknown_parameter: {perception: {ros__parameters: {topk: 3}}}", encoding="utf-8")
    process = start_costless(graph, "unknown_parameter", params_files=[file])
    # The node cannot know its hardware id: none of its parameters is taken over when one of them is wrong.
    statuses: dict[str, DiagnosticStatus] = {}
    graph.node.create_subscription(
        DiagnosticArray, "/diagnostics", lambda message: statuses.update({s.message: s for s in message.status}), 10
    )
    found = wait_for(lambda: next((text for text in statuses if "topk" in text), ""), "the unknown parameter")
    assert "did you mean 'top_k'?" in found
    assert statuses[found].level == DiagnosticStatus.ERROR
    assert client.state() == "unconfigured"
    assert not client.transition("configure")
    assert process.stop() == 0, process.output


def test_a_parameter_file_that_turns_a_published_defect_on_is_told_where_that_went(graph: Graph) -> None:
    client = PerceptionClient(graph, "compat")
    process = start_costless(graph, "compat", **{"compat.unsafe_softmax": True})
    client.wait_for_message("node", "parameter 'compat.unsafe_softmax': defects of the published code are no settings")
    assert client.state() == "unconfigured"
    assert process.stop() == 0, process.output


def test_a_node_that_cannot_load_stays_up_and_says_why(graph: Graph) -> None:
    cases = {
        "missing": ({"model": "missing"}, "model 'missing' was not found"),
        "damaged": ({"model": "damaged"}, "an error that nobody expected"),
        "no_bridge": ({"cv_bridge": "always"}, "cv_bridge is set to 'always', but"),
    }
    clients = {name: PerceptionClient(graph, name) for name in cases}
    processes = [start_costless(graph, name, **parameters) for name, (parameters, _) in cases.items()]
    for name, (_, words) in cases.items():
        status = clients[name].wait_for_message("node", words)
        assert status.level == DiagnosticStatus.ERROR
        assert clients[name].state() == "unconfigured"
    assert [process.stop() for process in processes] == [0, 0, 0]


def test_an_error_that_nobody_expected_is_an_answer_and_no_end(graph: Graph) -> None:
    client = PerceptionClient(graph, "fragile")
    process = start_costless(graph, "fragile", model="fragile")
    client.wait_for_state("active")
    refused = client.set_parameters(classes=["road", "sky"])
    assert not refused.successful
    assert "RuntimeError: out of memory" in refused.reason
    assert client.parameter("classes") == ["road", "sky", "unicorn"]
    client.wait_for_message("node", "change of classes refused: RuntimeError: out of memory")
    answer = graph.call(Trigger, f"{client.prefix}/reset_adaptation", Trigger.Request())
    assert not answer.success
    assert "RuntimeError: out of memory" in answer.message
    client.wait_for_message("node", "reset_adaptation failed: RuntimeError: out of memory")
    assert process.output.count("Traceback") == 2
    assert client.set_parameters(top_k=2).successful
    assert process.stop() == 0, process.output


def test_parameters_of_no_known_type_are_refused_and_survived(graph: Graph, perception: PerceptionClient) -> None:
    odd = ParameterMessage(name="top_k", value=ParameterValue(type=99))
    request = SetParametersAtomically.Request(parameters=[odd])
    result = graph.call(SetParametersAtomically, f"{perception.prefix}/set_parameters_atomically", request).result
    assert not result.successful
    assert "99" in result.reason
    results = graph.call(
        SetParameters, f"{perception.prefix}/set_parameters", SetParameters.Request(parameters=[odd])
    ).results
    assert [item.successful for item in results] == [False]
    assert perception.set_parameters(top_k=3).successful
