"""ROS messages from arrays and results, made the way that is fast in rclpy."""

from __future__ import annotations

import array
import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from semla_ros.results import Frame, Generation, ImageArray, MaskInfo, Status

_ENCODING_OF = {("uint8", 2): "mono8", ("uint16", 2): "mono16", ("uint8", 3): "rgb8"}
_PNG_SPEED = [cv2.IMWRITE_PNG_COMPRESSION, 1]  # id masks shrink well at the fastest setting
_JPEG_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 85]


def stamp_ns(stamp: Time) -> int:
    """Nanoseconds of a message stamp."""
    return int(stamp.sec * 1_000_000_000 + stamp.nanosec)


def to_stamp(nanoseconds: int) -> Time:
    """Message stamp of nanoseconds."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


def byte_array(data: NDArray[Any] | bytes) -> array.array[int]:
    """Bytes in the one container that rclpy takes over without looking at each byte."""
    result = array.array("B")
    result.frombytes((np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else memoryview(data)).cast("B"))
    return result


def image_message(header: Header, pixels: NDArray[Any]) -> Image:
    """An image message.

    Args:
        header: Header of the source.
        pixels: (H, W) uint8 or uint16 -> mono8 or mono16; (H, W, 3) uint8 RGB -> rgb8.

    Returns:
        The message; its data is a copy.
    """
    message = Image()
    message.header = header
    message.height, message.width = pixels.shape[:2]
    message.encoding = _ENCODING_OF[pixels.dtype.name, pixels.ndim]
    message.step = pixels.dtype.itemsize * int(np.prod(pixels.shape[1:]))
    message.is_bigendian = int(sys.byteorder == "big")
    message.data = byte_array(pixels)
    return message


def compressed_message(header: Header, pixels: NDArray[Any]) -> CompressedImage:
    """A compressed image message: PNG for ids (H, W), which must stay what they are, JPEG for pictures (H, W, 3)."""
    message = CompressedImage()
    message.header = header
    if pixels.ndim == 2:
        encoding = _ENCODING_OF[pixels.dtype.name, 2]
        message.format = f"{encoding}; png compressed {encoding}"
        _, encoded = cv2.imencode(".png", pixels, _PNG_SPEED)
    else:
        message.format = "rgb8; jpeg compressed bgr8"
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _JPEG_QUALITY)
    message.data = byte_array(encoded)
    return message


def camera_info_message(
    source: CameraInfo, header: Header, image_size: tuple[int, int], mask_size: tuple[int, int]
) -> tuple[CameraInfo, str]:
    """A camera's calibration for a mask of its image, under the image's header.

    By REP 104, K and P are those of the full sensor, of which the image is the region of interest, binned. Where the
    mask has another size, its calibration is that of a camera without either. Distortion and rectification hold for
    any size.

    Args:
        source: The calibration as it came.
        header: Of the image.
        image_size: Width and height in pixels.
        mask_size: Likewise.

    Returns:
        The calibration, and what is wrong with it, empty where nothing: one of another size is passed on unchanged.
    """
    info, roi = copy.copy(source), source.roi
    info.header = header
    if not source.width and not source.height and not source.k[0]:  # a camera that is not calibrated
        return info, ""
    window = np.array([roi.width or source.width, roi.height or source.height], float)
    binning = np.maximum([source.binning_x, source.binning_y], 1)
    if (abs(window / binning - image_size) >= 1).any():
        width, height = window / binning
        return info, (
            f"the calibration is of {width:g}x{height:g} pixels, the images have {image_size[0]}x{image_size[1]}: it "
            "is passed on as it is; let the camera driver publish that of its images"
        )
    if mask_size == image_size:
        return info, ""
    scale_x, scale_y = np.array(mask_size) / image_size / binning
    to_mask = np.array([[scale_x, 0, -scale_x * roi.x_offset], [0, scale_y, -scale_y * roi.y_offset], [0, 0, 1]])
    info.width, info.height = mask_size
    info.k = (to_mask @ source.k.reshape(3, 3)).reshape(-1)
    info.p = (to_mask @ source.p.reshape(3, 4)).reshape(-1)
    info.binning_x = info.binning_y = 0
    info.roi = RegionOfInterest(do_rectify=roi.do_rectify)
    return info, ""


def calibration_state(info: CameraInfo) -> str:
    """A camera's calibration in words."""
    model = info.distortion_model or "no distortion model"
    what = f"{info.width}x{info.height}, {model}, frame '{info.header.frame_id}'"
    return what if info.k[0] else f"not calibrated ({what})"


def diagnostic_message(reports: Iterable[Status], now: Time, hardware_id: str) -> DiagnosticArray:
    """Statuses as one message; those without a hardware id get the one given."""
    message = DiagnosticArray()
    message.header.stamp = now
    message.status = [
        DiagnosticStatus(
            level=bytes([report.level]),
            name=report.name,
            message=report.message,
            hardware_id=report.hardware_id or hardware_id,
            values=[KeyValue(key=key, value=value) for key, value in report.values.items()],
        )
        for report in reports
    ]
    return message


def adapter_weights_message(
    generation: Generation, hardware_id: str, now: Time, topics: Iterable[str] = ()
) -> DiagnosticArray:
    """The mix of one generation: a status per adapter, heaviest first, and one for the base model's part.

    The header's stamp is that of the scene that the mix was retrieved for, or now for a mix without a scene. The last
    status also names the node's `topics`, so that a recording tells its masks from what cameras saw.
    """
    scene_ns = generation.scene_stamp_ns
    stamp = now if scene_ns is None else to_stamp(scene_ns)
    message = diagnostic_message(generation.statuses(), stamp, hardware_id)
    message.status[-1].values = [*message.status[-1].values, KeyValue(key="topics", value=" ".join(topics))]
    return message


def mask_info_message(header: Header, info: MaskInfo, hardware_id: str) -> DiagnosticArray:
    """What explains a mask, under the mask's own header."""
    message = diagnostic_message([info.status()], header.stamp, hardware_id)
    message.header = header
    return message


def label_info_message(header: Header, names: Sequence[str]) -> Any:
    """`vision_msgs/LabelInfo` of a vocabulary; None where vision_msgs is not installed."""
    try:
        from vision_msgs.msg import LabelInfo, VisionClass
    except ImportError:
        return None
    message = LabelInfo()
    message.header = header
    message.class_map = [VisionClass(class_id=index, class_name=name) for index, name in enumerate(names)]
    return message


def make_frame(decoders: Mapping[str, Callable[[Any], ImageArray]], camera: str, message: Any) -> Frame:
    """The pipeline's frame of a camera's image message; its decoder makes RGB of it, and raises `ImageError`."""
    header, image = message.header, decoders[camera](message)
    return Frame(image=image, stamp_ns=stamp_ns(header.stamp), camera=camera, frame_id=header.frame_id)
