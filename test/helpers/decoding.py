"""Single messages, decoded by a decoder of their own."""

from __future__ import annotations

from typing import Any

from semla_ros.image_codec import ImageDecoder
from semla_ros.results import ImageArray


def decode(
    *, encoding: str, width: int, height: int, step: int, data: Any, is_bigendian: bool = False, **settings: int
) -> ImageArray:
    """The fields of one `sensor_msgs/Image`; `settings` are those of `ImageDecoder`."""
    return ImageDecoder(**settings).decode(encoding, width, height, step, data, is_bigendian)


def decode_compressed(data: Any, image_format: str = "", **settings: int) -> ImageArray:
    """The fields of one `sensor_msgs/CompressedImage`."""
    return ImageDecoder(**settings).decode_compressed(data, image_format)
