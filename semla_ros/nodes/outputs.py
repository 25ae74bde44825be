"""The publishers of one camera, and of the model that cameras share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from copy import copy
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from semla_ros.labels import labels_json, overlay, palette_of
from semla_ros.nodes import messages
from semla_ros.results import Frame, Generation, Segmentation

IMAGE_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)
SENSOR_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


def overridable() -> QoSOverridingOptions:
    """History, depth and reliability of a topic can be set with `qos_overrides` parameters."""
    return QoSOverridingOptions.with_default_policies()


def without_events() -> PublisherEventCallbacks:
    """No events on publishers: the executor would look at each of them at every wake-up.

    A subscriber that asks for more than is offered is told so on its own side.
    """
    return PublisherEventCallbacks(use_default_callbacks=False)


def private_topic(camera: str, name: str) -> str:
    """`~/mask`, or `~/front/mask` for a named camera."""
    return f"~/{camera}/{name}" if camera else f"~/{name}"


class CameraOutputs:
    """What is published for each image of one camera.

    All but the mask is made only while someone has subscribed. Asking the publisher costs about a microsecond, less
    than a matched event for each of them costs the executor at every wake-up.

    Args:
        node: The node.
        camera: Name of the camera; empty for the only one.
        scale: Size of what is published relative to the image, (0, 1].
    """

    def __init__(self, node: Node, camera: str, scale: float) -> None:
        self._node = node
        self._scale = scale
        self._palette_of: tuple[Sequence[str], Any] = ((), None)

        def publisher(message_type: Any, name: str) -> Any:
            return node.create_publisher(
                message_type,
                private_topic(camera, name),
                copy(IMAGE_QOS),  # rclpy writes overrides into the profile it is given
                qos_overriding_options=overridable(),
                event_callbacks=without_events(),
            )

        self._mask = publisher(Image, "mask")
        self._mask_compressed = publisher(CompressedImage, "mask/compressed")
        self._confidence = publisher(Image, "confidence")
        self._overlay = publisher(Image, "overlay")
        self._overlay_compressed = publisher(CompressedImage, "overlay/compressed")
        self._camera_info = publisher(CameraInfo, "camera_info")

    @property
    def want_confidence(self) -> bool:
        """Whether anyone listens to the confidence."""
        return bool(self._confidence.get_subscription_count())

    def publish(
        self, header: Header, frame: Frame, result: Segmentation, info: CameraInfo | None, overlay_alpha: float
    ) -> None:
        """Publish what is asked for, under the image's own header.

        Args:
            header: Header of the source message.
            frame: The decoded image.
            result: Its segmentation.
            info: Calibration of the camera, if known.
            overlay_alpha: Opacity of the class colours, 0..1.
        """
        mask = self._resized(result.mask, frame)
        self._mask.publish(messages.image_message(header, mask))
        if self._mask_compressed.get_subscription_count():
            self._mask_compressed.publish(messages.compressed_message(header, mask))
        if result.confidence is not None and self.want_confidence:
            self._confidence.publish(messages.image_message(header, self._resized(result.confidence, frame)))
        wants_raw = self._overlay.get_subscription_count()
        wants_compressed = self._overlay_compressed.get_subscription_count()
        if wants_raw or wants_compressed:
            names = result.generation.class_names
            if self._palette_of[0] is not names:
                self._palette_of = (names, palette_of(names))
            height, width = mask.shape
            image = frame.image
            if image.shape[:2] != mask.shape:
                image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
            picture = overlay(image, mask, self._palette_of[1], overlay_alpha)
            if wants_raw:
                self._overlay.publish(messages.image_message(header, picture))
            if wants_compressed:
                self._overlay_compressed.publish(messages.compressed_message(header, picture))
        if info is not None and self._camera_info.get_subscription_count():
            height, width = mask.shape
            self._camera_info.publish(messages.rescaled_camera_info(info, header, width, height))

    def _resized(self, mask: Any, frame: Frame) -> Any:
        """Nearest neighbour: a class id between two others would be a third class."""
        height, width = (max(1, round(size * self._scale)) for size in frame.image.shape[:2])
        if self._scale == 1.0 or mask.shape == (height, width):
            return mask
        return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)

    def destroy(self) -> None:
        """Take the publishers off the node."""
        for publisher in (
            self._mask, self._mask_compressed, self._confidence, self._overlay, self._overlay_compressed,
            self._camera_info,
        ):  # fmt: skip
            self._node.destroy_publisher(publisher)


class ModelOutputs:
    """The latched topics that explain the masks of one model: labels and adapter weights.

    Args:
        node: The node.
        scope: Camera that the model belongs to; empty where all cameras share it.
        hardware_id: Written into each status.
    """

    def __init__(self, node: Node, scope: str, hardware_id: str) -> None:
        self._node = node
        self._hardware_id = hardware_id
        self._lock = threading.Lock()
        self._announced: Generation | None = None
        latched = {
            "qos_overriding_options": overridable(),
            "event_callbacks": without_events(),
        }
        self._labels = node.create_publisher(String, private_topic(scope, "labels"), copy(LATCHED_QOS), **latched)
        self._weights = node.create_publisher(
            DiagnosticArray, private_topic(scope, "adapter_weights"), copy(LATCHED_QOS), **latched
        )
        label_info = messages.label_info_message(Header(), ())
        self._label_info = None
        if label_info is not None:
            self._label_info = node.create_publisher(
                type(label_info), private_topic(scope, "label_info"), copy(LATCHED_QOS), **latched
            )

    def announce(self, generation: Generation) -> None:
        """Publish a generation's labels and mix, once, and never an older one after a newer one.

        Called both when a generation is committed and before its first mask is published: whichever comes first.
        """
        with self._lock:
            if not self._node.context.ok():  # the process is being ended: publishers are gone
                return
            present = self._announced
            if present is not None and generation.number <= present.number:
                return
            now = self._node.get_clock().now().to_msg()
            if present is None or generation.vocabulary_version != present.vocabulary_version:
                text = labels_json(generation.class_names, generation.vocabulary_version)
                self._labels.publish(String(data=text))
                if self._label_info is not None:
                    header = Header(stamp=now)
                    self._label_info.publish(messages.label_info_message(header, generation.class_names))
            self._weights.publish(messages.adapter_weights_message(generation, self._hardware_id, now))
            self._announced = generation

    def forget(self) -> None:
        """Announce whatever comes next: another model counts its generations from 0."""
        with self._lock:
            self._announced = None

    def destroy(self) -> None:
        """Take the publishers off the node."""
        for publisher in (self._labels, self._weights, self._label_info):
            if publisher is not None:
                self._node.destroy_publisher(publisher)
