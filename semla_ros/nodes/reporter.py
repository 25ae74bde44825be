"""What the node says of itself on /diagnostics, and why no image comes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible

from semla_ros.image_codec import ImageDecoder
from semla_ros.nodes.messages import diagnostic_message, to_stamp
from semla_ros.nodes.outputs import Outputs
from semla_ros.nodes.parameter_services import ParameterServices
from semla_ros.nodes.rclpy_internals import lifecycle_state
from semla_ros.results import Status
from semla_ros.serving.frame_loop import FrameLoop
from semla_ros.serving.health import adaptation_report, camera_report, node_report
from semla_ros.serving.model_bank import ModelBank
from semla_ros.serving.troubles import Troubles

CLOCK_SILENT_S = 2.0
_TYPES = {"raw": "sensor_msgs/msg/Image", "compressed": "sensor_msgs/msg/CompressedImage"}


class Reporter:
    """Reports when it is asked to: the node, each camera of an active one, and each model that is loaded."""

    def __init__(
        self,
        node: Node,
        parameters: ParameterServices,
        outputs: Outputs,
        decoders: Mapping[str, ImageDecoder],
        bank: ModelBank,
        frames: FrameLoop,
        troubles: Troubles,
    ) -> None:
        self._node, self._parameters, self._bank = node, parameters, bank
        self._outputs, self._decoders, self._frames, self._troubles = outputs, decoders, frames, troubles
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._clock = node.get_clock()
        self._ros_time = (0, time.monotonic())  # latest time of a clock that may stand still, and when it changed

    def report(self) -> None:
        """Report once. Needs neither the executor nor a clock that goes."""
        now = self._clock.now()
        if now.nanoseconds != self._ros_time[0]:
            self._ros_time = now.nanoseconds, time.monotonic()
        stamp = now.to_msg() if now.nanoseconds else to_stamp(time.time_ns())
        try:
            reports = self._reports()
            self._publisher.publish(diagnostic_message(reports, stamp, self._parameters.hardware_id))
        except Exception as error:  # a model that is being released meanwhile; the next report is a second away
            if self._node.context.ok():
                reason = self._troubles.reason(error)
                self._node.get_logger().warning(f"no diagnostics: {reason}", throttle_duration_sec=5.0)

    def _clock_problem(self) -> str:
        """What is wrong with a simulated clock; empty where nothing is, and for the system's."""
        latest_ns, changed_s = self._ros_time
        silent_s = time.monotonic() - changed_s
        if not self._clock.ros_time_is_active or silent_s < CLOCK_SILENT_S:
            return ""
        if latest_ns:
            return f"/clock stands still for {silent_s:.1f} s: masks go on, the ages of frames mean nothing meanwhile"
        return (
            "use_sim_time is set and nothing is heard on /clock: masks go on, the ages of frames are unknown; "
            "let a player or simulator publish /clock, or set use_sim_time to false"
        )

    def _reports(self) -> list[Status]:
        name, state = self._node.get_fully_qualified_name(), lifecycle_state(self._node)
        settings = self._parameters.settings
        config = settings.node.diagnostics
        hang, clock_problem = self._frames.hang(), self._clock_problem()
        parts = self._bank, self._frames, self._troubles
        reports = [
            node_report(
                name, state, settings, *parts, hang=hang, clock_problem=clock_problem,
                ignored=self._parameters.ignored, passed_over=self._parameters.passed_over,
            )
        ]  # fmt: skip
        is_enabled = self._frames.is_enabled
        for camera, statistics in self._frames.statistics.items() if state == "active" else ():
            topic, decoder = self._node.resolve_topic_name(self._parameters.image_topic(camera)), self._decoders[camera]
            snapshot = statistics.snapshot(time.monotonic(), config.hold_s)
            image = settings.node.image_topics[camera]
            hint = partial(why_silent, self._node, image, topic, settings.node.image_transport)
            info_topic = self._node.resolve_topic_name(self._parameters.info_topic(camera))
            calibration, info_problem = self._outputs.calibration(camera, info_topic)
            problem = "; ".join(filter(None, (*decoder.assumptions, info_problem)))
            reports.append(
                camera_report(
                    name, camera, topic, snapshot, config, read_as=decoder.read_as, is_enabled=is_enabled,
                    problem=problem, hint=hint, hang=hang, calibration=calibration,
                )
            )  # fmt: skip
        for scope, pipeline in self._bank.pipelines.items():
            status = pipeline.status()
            age_s = self._bank.failure_age_s(scope, status.failures)
            reports.append(adaptation_report(name, scope, status, failure_age_s=age_s, hold_s=config.hold_s))
        return reports


def why_silent(node: Node, image: str, topic: str, transport: str) -> str:
    """What to do about a camera topic on which nothing arrives.

    Args:
        node: Subscribed to the topic.
        image: Name of the camera's `image`, before remapping.
        topic: Full name of the topic.
        transport: "raw" or "compressed".
    """
    publishers = node.get_publishers_info_by_topic(topic)
    kinds = sorted({publisher.topic_type for publisher in publishers})
    if _TYPES[transport] not in kinds:
        if hint := _where_images_are(node, image, topic, transport):
            return hint
        if not kinds:
            return "nobody publishes there: check that the camera runs, its topic name and ROS_DOMAIN_ID"
        return (
            f"what is published there is {', '.join(kinds)}, not {_TYPES[transport]}: remap '{image}' to another topic"
        )
    this = node.get_name(), node.get_namespace()
    own = [
        item for item in node.get_subscriptions_info_by_topic(topic) if (item.node_name, item.node_namespace) == this
    ]
    for publisher in publishers:
        for subscription in own:
            compatibility, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
            if compatibility == QoSCompatibility.ERROR:
                return (
                    f"the camera's QoS does not fit ({reason.strip('; ')}): change qos_overrides, or the camera's QoS"
                )
    return "a camera is connected, but sends nothing: check the camera"


def _where_images_are(node: Node, image: str, topic: str, transport: str) -> str:
    """How to hear the images that are published under a name near the topic; empty where none are.

    Names what the node would then subscribe to, so that nobody who follows it is sent on.
    """
    base, compressed = node.resolve_topic_name(image), f"{image}/compressed"
    is_remapped = node.resolve_topic_name(compressed) != node.resolve_topic_name(compressed, only_expand=True)

    def remap(name: str, target: str) -> str:
        return f"remap '{name}' to {target}"

    ways = []
    for stem in dict.fromkeys((base, *(name.removesuffix("/compressed") for name in (base, topic)))):
        step, packed = "" if stem == base else remap(image, stem), f"{stem}/compressed"
        ways += [("raw", stem, step), ("compressed", packed, remap(compressed, packed) if is_remapped else step)]
    ways += [("raw", topic, remap(image, topic))]
    ways += [("compressed", name, remap(compressed, name)) for name in (base, topic)]
    for kind, name, step in sorted(ways, key=lambda way: way[0] != transport):
        if any(publisher.topic_type == _TYPES[kind] for publisher in node.get_publishers_info_by_topic(name)):
            steps = filter(None, (f"set image_transport to '{kind}'" if kind != transport else "", step))
            return f"images are published on {name}: {' and '.join(steps)}"
    return ""
