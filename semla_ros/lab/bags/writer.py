"""Writes rosbag2 recordings without ROS: images, masks, labels, weights and diagnostics on the node's message types."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from semla_ros.errors import BagError
from semla_ros.lab.bags.metadata import OWN_KEY, OWN_OUTPUT
from semla_ros.lab.bags.reader import TYPES
from semla_ros.results import ImageArray, Status

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
STRING = "std_msgs/msg/String"
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"

NANOSECONDS = 1_000_000_000
SEGMENT_TOPIC = "/scene/segment"  # its strings name the stretches of a recording
START_NS = 1_750_000_000 * NANOSECONDS  # of recordings of what has no time of its own
BAG_VERSION: Literal[8] = 8  # metadata version of ROS 2 Jazzy, which older and newer distributions read
_ENDLESS = QosTime(9223372036, 854775807)


class BagWriter:
    """A new bag. Use it as a context manager; after an error or an interrupt it is closed readable, too.

    Args:
        path: Folder to make.
        storage: "mcap" or "sqlite3".
        compression: "none"; "chunk" (mcap's own, readable everywhere); "message" or "file" (rosbag2's zstd).
        is_own_output: Mark it as a bag of answers, which nothing takes for a recording of cameras.

    Raises:
        BagError: The folder exists, or storage and compression do not go together.
    """

    def __init__(
        self,
        path: Path,
        *,
        storage: Literal["mcap", "sqlite3"] = "mcap",
        compression: Literal["none", "chunk", "message", "file"] = "none",
        is_own_output: bool = False,
    ) -> None:
        if path.exists():
            raise BagError(f"bag {path}: it exists already; remove it or choose another folder")
        if storage == "sqlite3" and compression == "chunk":
            raise BagError(f"bag {path}: sqlite3 has no chunks to compress; use 'message' or 'file'")
        self.path = path
        plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
        self._writer = Writer(path, version=BAG_VERSION, storage_plugin=plugin)
        mode = {"chunk": CompressionMode.STORAGE, "message": CompressionMode.MESSAGE, "file": CompressionMode.FILE}
        if compression != "none":
            self._writer.set_compression(mode[compression], CompressionFormat.ZSTD)
        if is_own_output:
            self._writer.set_custom_data(OWN_KEY, OWN_OUTPUT)
        self._connections: dict[str, Connection] = {}
        try:
            self._writer.open()
        except OSError as error:
            raise BagError(f"bag {path}: cannot be written ({error.strerror})") from None

    def image(
        self,
        topic: str,
        image: NDArray[np.uint8] | NDArray[np.uint16],
        stamp_ns: int,
        frame_id: str = "",
        *,
        log_ns: int | None = None,
    ) -> None:
        """Write a raw image: (H, W, 3) uint8 as rgb8, (H, W) uint8 as mono8, (H, W) uint16 as mono16.

        Args:
            topic: Where.
            image: The pixels.
            stamp_ns: Stamp of its header.
            frame_id: Frame of its header.
            log_ns: Recording time; None = the stamp.
        """
        encoding = "rgb8" if image.ndim == 3 else {1: "mono8", 2: "mono16"}[image.dtype.itemsize]
        message = _new(
            IMAGE,
            header=_header(stamp_ns, frame_id),
            height=image.shape[0],
            width=image.shape[1],
            encoding=encoding,
            is_bigendian=int(sys.byteorder == "big"),
            step=image.shape[1] * image.dtype.itemsize * (3 if image.ndim == 3 else 1),
            data=np.ascontiguousarray(image).reshape(-1).view(np.uint8),
        )
        self.write(topic, IMAGE, message, stamp_ns if log_ns is None else log_ns)

    def compressed_image(
        self,
        topic: str,
        image: ImageArray,
        stamp_ns: int,
        frame_id: str = "",
        *,
        format: Literal["jpeg", "png"] = "jpeg",
        log_ns: int | None = None,
    ) -> None:
        """Write an RGB (H, W, 3) or single-channel (H, W) image as JPEG or PNG."""
        channels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
        is_encoded, data = cv2.imencode(".jpg" if format == "jpeg" else ".png", channels)
        if not is_encoded:
            raise BagError(f"bag {self.path}: image of shape {image.shape} on {topic} cannot be encoded as {format}")
        message = _new(COMPRESSED_IMAGE, header=_header(stamp_ns, frame_id), format=format, data=data.reshape(-1))
        self.write(topic, COMPRESSED_IMAGE, message, stamp_ns if log_ns is None else log_ns)

    def camera_info(
        self, topic: str, stamp_ns: int, frame_id: str, *, width: int, height: int, matrix: NDArray[np.float64]
    ) -> None:
        """Write the calibration of a camera without distortion, whose intrinsic matrix is (3, 3)."""
        region = _new("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
        message = _new(
            CAMERA_INFO,
            header=_header(stamp_ns, frame_id),
            height=height,
            width=width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=matrix.reshape(-1),
            r=np.eye(3).reshape(-1),
            p=np.hstack([matrix, np.zeros((3, 1))]).reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=region,
        )
        self.write(topic, CAMERA_INFO, message, stamp_ns)

    def string(self, topic: str, text: str, log_ns: int) -> None:
        """Write a std_msgs/String on a latched topic."""
        self.write(topic, STRING, _new(STRING, data=text), log_ns, is_latched=True)

    def diagnostics(
        self,
        topic: str,
        statuses: Sequence[Status],
        stamp_ns: int,
        *,
        is_latched: bool = False,
        log_ns: int | None = None,
    ) -> None:
        """Write a diagnostic message."""
        entries = [
            _new(
                "diagnostic_msgs/msg/DiagnosticStatus",
                level=int(status.level),
                name=status.name,
                message=status.message,
                hardware_id=status.hardware_id,
                values=[
                    _new("diagnostic_msgs/msg/KeyValue", key=key, value=value) for key, value in status.values.items()
                ],
            )
            for status in statuses
        ]
        message = _new(DIAGNOSTICS, header=_header(stamp_ns, ""), status=entries)
        self.write(topic, DIAGNOSTICS, message, stamp_ns if log_ns is None else log_ns, is_latched=is_latched)

    def write(self, topic: str, msgtype: str, message: Any, log_ns: int, *, is_latched: bool = False) -> None:
        """Write any message of the rosbags type store, or its serialized bytes."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, msgtype, typestore=TYPES, offered_qos_profiles=[_qos(is_latched)]
            )
        is_serialized = isinstance(message, (bytes, memoryview))
        data = message if is_serialized else TYPES.serialize_cdr(message, msgtype)
        self._writer.write(self._connections[topic], log_ns, data)

    def close(self) -> None:
        """Finish the bag."""
        if self._writer.storage is not None:
            self._writer.close()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except OSError as at_the_end:
            error = at_the_end
            raise
        finally:
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                error.filename = str(self.path)  # a write that fails names nothing


def _new(msgtype: str, **fields: Any) -> Any:
    return TYPES.types[msgtype](**fields)


def _header(stamp_ns: int, frame_id: str) -> Any:
    stamp = _new("builtin_interfaces/msg/Time", sec=stamp_ns // NANOSECONDS, nanosec=stamp_ns % NANOSECONDS)
    return _new("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def _qos(is_latched: bool) -> Qos:
    """Reliable, as a player can then serve reliable and best-effort subscribers; latched topics arrive late-joining."""
    return Qos(
        QosHistory.KEEP_LAST,
        1 if is_latched else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if is_latched else QosDurability.VOLATILE,
        _ENDLESS,
        _ENDLESS,
        QosLiveliness.AUTOMATIC,
        _ENDLESS,
        False,
    )
