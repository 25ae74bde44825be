"""The publishers of the cameras, and of the models that they have."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from semla_ros.labels import labels_json, overlay, palette_of
from semla_ros.nodes import messages
from semla_ros.nodes.rclpy_internals import without_events
from semla_ros.results import Frame, Generation, MaskInfo, Segmentation

if TYPE_CHECKING:
    from semla_ros.nodes.parameter_services import ParameterServices
    from semla_ros.pipeline import PerceptionPipeline

# The newest message counts.
IMAGE_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
SENSOR_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


_OVERRIDABLE = (
    *(QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY),
    *(QoSPolicyKind.DEADLINE, QoSPolicyKind.LIVELINESS, QoSPolicyKind.LIVELINESS_LEASE_DURATION),
)


def overridable() -> QoSOverridingOptions:
    """What of a topic's QoS can be set with `qos_overrides` parameters; durations are in nanoseconds there."""
    return QoSOverridingOptions(_OVERRIDABLE)


_IMAGE_TOPICS = {
    "mask": Image,
    "mask/compressed": CompressedImage,
    "mask_info": DiagnosticArray,
    "confidence": Image,
    "overlay": Image,
    "overlay/compressed": CompressedImage,
    "camera_info": CameraInfo,
}
_MODEL_TOPICS = {"labels": String, "adapter_weights": DiagnosticArray}


class Outputs:
    """What is published for each image of each camera, and the latched topics that explain the masks of each model.

    Of an image's outputs, all but the mask and its info are made only while someone has subscribed. Asking a publisher
    costs about a microsecond, less than a matched event for each of them costs the executor at every wake-up.

    Attributes:
        infos: Camera -> its newest calibration.
        info_problems: Camera -> what is wrong with the one that was published last; empty where nothing.
    """

    def __init__(self, node: Node, parameters: ParameterServices) -> None:
        self._node, self._parameters = node, parameters
        self._publishers: dict[tuple[str, str], Any] = {}  # (camera or scope of a model, topic) -> publisher
        self._hardware_id = ""
        self._engines: dict[str, Any] = {}  # scope of a model -> its engine
        self._announced: dict[str, Generation] = {}  # scope of a model -> its latest generation
        self._lock = threading.Lock()
        self._palette_of: tuple[Sequence[str], Any] = ((), None)
        self.infos: dict[str, CameraInfo] = {}
        self.info_problems: dict[str, str] = {}

    def create(self, pipelines: Mapping[str, PerceptionPipeline]) -> None:
        """Create the publishers that are not there yet, and let each pipeline announce its generations."""
        self._hardware_id = self._parameters.hardware_id
        label_info = messages.label_info_message(Header(), ())  # None where vision_msgs is not installed
        model_topics = _MODEL_TOPICS if label_info is None else {**_MODEL_TOPICS, "label_info": type(label_info)}
        for scopes, topics, qos in (
            (self._parameters.cameras, _IMAGE_TOPICS, IMAGE_QOS),
            (pipelines, model_topics, LATCHED_QOS),
        ):
            for scope, (name, kind) in itertools.product(scopes, topics.items()):
                if (scope, name) not in self._publishers:  # they outlive a model that is released
                    topic = f"~/{scope}/{name}" if scope else f"~/{name}"
                    self._publishers[scope, name] = self._publisher(kind, topic, qos)
        for scope, pipeline in pipelines.items():
            pipeline.on_generation.append(partial(self.announce, scope))
            self._engines[scope] = pipeline.engine

    def _publisher(self, kind: Any, topic: str, qos: QoSProfile) -> Any:
        return self._node.create_publisher(
            kind,
            topic,
            copy(qos),  # rclpy writes overrides into the profile it is given
            qos_overriding_options=overridable(),
            event_callbacks=without_events(),
        )

    def wants(self, camera: str, name: str) -> bool:
        """Whether anyone listens to an output of a camera, such as "confidence"."""
        return bool(self._publishers[camera, name].get_subscription_count())

    def publish(self, message: Any, frame: Frame, result: Segmentation) -> None:
        """Publish what is asked for, under the image's own header.

        Args:
            message: The image message.
            frame: The decoded image.
            result: Its segmentation.
        """
        camera, header, config = frame.camera, message.header, self._parameters.settings.node
        wants, publishers = partial(self.wants, camera), self._publishers
        # The mask's labels are out before the mask is, even when this thread is ahead of the one that committed.
        self.announce(camera if (camera, "labels") in publishers else "", result.generation)
        mask = _resized(result.mask, frame, config.mask_scale)
        publishers[camera, "mask"].publish(messages.image_message(header, mask))
        info = _info(result, self._engines[camera if camera in self._engines else ""])
        publishers[camera, "mask_info"].publish(messages.mask_info_message(header, info, self._hardware_id))
        if wants("mask/compressed"):
            publishers[camera, "mask/compressed"].publish(messages.compressed_message(header, mask))
        if result.confidence is not None and wants("confidence"):
            confidence = _resized(result.confidence, frame, config.mask_scale)
            publishers[camera, "confidence"].publish(messages.image_message(header, confidence))
        wants_raw, wants_compressed = wants("overlay"), wants("overlay/compressed")
        if wants_raw or wants_compressed:
            picture = self._overlay(frame.image, mask, result.generation.class_names, config.overlay_alpha)
            if wants_raw:
                publishers[camera, "overlay"].publish(messages.image_message(header, picture))
            if wants_compressed:
                publishers[camera, "overlay/compressed"].publish(messages.compressed_message(header, picture))
        if (calibration := self.infos.get(camera)) is not None and wants("camera_info"):
            height, width = mask.shape
            size = frame.image.shape[1], frame.image.shape[0]
            scaled, self.info_problems[camera] = messages.camera_info_message(
                calibration, header, size, (width, height)
            )
            publishers[camera, "camera_info"].publish(scaled)
        else:
            self.info_problems.pop(camera, None)

    def _overlay(self, image: Any, mask: Any, names: Sequence[str], alpha: float) -> Any:
        if self._palette_of[0] is not names:
            self._palette_of = (names, palette_of(names))
        if image.shape[:2] != mask.shape:
            image = cv2.resize(np.ascontiguousarray(image), mask.shape[::-1], interpolation=cv2.INTER_AREA)
        return overlay(image, mask, self._palette_of[1], alpha)

    def announce(self, scope: str, generation: Generation) -> None:
        """Publish labels and mix of a model's generation, once, and never an older one after a newer one.

        Called both when a generation is committed and before its first mask is published: whichever comes first.
        """
        with self._lock:
            if not self._node.context.ok():  # the process is being ended: publishers are gone
                return
            present = self._announced.get(scope)
            if present is not None and generation.number <= present.number:
                return
            now = self._node.get_clock().now().to_msg()
            if present is None or generation.vocabulary_version != present.vocabulary_version:
                names = generation.class_names
                text = labels_json(names, generation.vocabulary_version)
                self._publishers[scope, "labels"].publish(String(data=text))
                if (label_info := self._publishers.get((scope, "label_info"))) is not None:
                    label_info.publish(messages.label_info_message(Header(stamp=now), names))
            topics = [publisher.topic_name for publisher in self._publishers.values()]
            weights = messages.adapter_weights_message(generation, self._hardware_id, now, topics)
            self._publishers[scope, "adapter_weights"].publish(weights)
            self._announced[scope] = generation

    def calibration(self, camera: str, topic: str) -> tuple[str, str]:
        """What is known of a camera's calibration, and what is wrong with it, empty where nothing.

        Args:
            camera: Name of the camera.
            topic: Full name of the topic that its calibration is expected on.
        """
        if (info := self.infos.get(camera)) is not None:
            return messages.calibration_state(info), self.info_problems.get(camera, "")
        is_missed = self.wants(camera, "camera_info")
        problem = f"someone listens to camera_info, and none is heard on {topic}: remap camera_info to the camera's"
        return f"none heard on {topic}", problem if is_missed else ""

    def forget(self) -> None:
        """Let go of the models; another one counts its generations on."""
        self._engines.clear()

    def destroy(self) -> None:
        """Take the publishers off the node."""
        while self._publishers:
            self._node.destroy_publisher(self._publishers.popitem()[1])


def _info(result: Segmentation, engine: Any) -> MaskInfo:
    generation = result.generation
    return MaskInfo(
        camera=result.camera,
        generation=generation.number,
        vocabulary_version=generation.vocabulary_version,
        mix_id=generation.mix.id,
        engine=engine.name,
        precision=getattr(engine, "precision", ""),
        latency_ms=round(result.latency_ms.get("total", 0.0), 3),
    )


def _resized(mask: Any, frame: Frame, scale: float) -> Any:
    """A mask at a scale of the image's size, by nearest neighbour: an id between two others would be a third class."""
    height, width = (max(1, round(size * scale)) for size in frame.image.shape[:2])
    if scale == 1.0 or mask.shape == (height, width):
        return mask
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
