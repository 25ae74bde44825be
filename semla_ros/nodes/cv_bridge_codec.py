"""Decode images with cv_bridge where it is there and safe, and with the codec of this package everywhere else."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import numpy as np

from semla_ros.errors import ConfigError, ImageError
from semla_ros.image_codec import ImageDecoder, is_tight
from semla_ros.results import ImageArray

logger = logging.getLogger(__name__)

# Decoded here in any case: cv_bridge has no conversion for them, or only in some distributions.
_NOT_FOR_CV_BRIDGE = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")


def why_unsafe() -> str:
    """Why cv_bridge must not be imported in this process; empty where nothing speaks against it."""
    if importlib.util.find_spec("cv_bridge") is None:
        return "cv_bridge is not installed"
    if int(np.__version__.split(".")[0]) >= 2:
        # Built against numpy 1, its compiled part ends the process with a segmentation fault on the first image.
        return f"cv_bridge crashes with numpy {np.__version__}; it needs numpy 1"
    if importlib.util.find_spec("cv_bridge.boost") is None:
        return "the compiled module cv_bridge.boost is missing"
    return ""


def choose_decoder(setting: str, max_pixels: int, assume_encoding: str = "", bits: int = 0) -> tuple[ImageDecoder, str]:
    """What decodes the image messages of a camera by the `cv_bridge` parameter.

    Args:
        setting: "auto", "never" or "always".
        max_pixels: Of one picture, as the rest; see `ImageDecoder`.
        assume_encoding: Likewise.
        bits: Likewise.

    Returns:
        It, a `CvBridgeDecoder` or the built-in one, and its name for reports.

    Raises:
        ConfigError: "always", but it is not installed or would crash; or no such encoding.
    """
    reason = "" if setting == "never" else why_unsafe()
    if reason and setting == "always":
        raise ConfigError(f"cv_bridge is set to 'always', but {reason}; set it to 'auto' or 'never'")
    if reason:
        logger.debug("images are decoded without cv_bridge: %s", reason)
    is_built_in = bool(reason) or setting == "never"
    decoder = (ImageDecoder if is_built_in else CvBridgeDecoder)(max_pixels, assume_encoding, bits)
    return decoder, "built in" if is_built_in else "cv_bridge"


class CvBridgeDecoder(ImageDecoder):
    """As the built-in one, by cv_bridge where it may."""

    def __init__(self, max_pixels: int, assume_encoding: str = "", bits: int = 0) -> None:
        from cv_bridge import CvBridge

        super().__init__(max_pixels, assume_encoding, bits)
        self._bridge = CvBridge()

    def __call__(self, message: Any) -> ImageArray:
        """RGB of a `sensor_msgs/Image` or `CompressedImage`, shape (H, W, 3), uint8.

        Raises:
            ImageError: The message cannot be decoded.
        """
        if not _suits_cv_bridge(message) or message.width * message.height > self.max_pixels:
            return super().__call__(message)
        try:
            image = np.ascontiguousarray(self._bridge.imgmsg_to_cv2(message, desired_encoding="rgb8"))
        except Exception as error:  # CvBridgeError, cv2.error, KeyError, depending on what is wrong
            raise ImageError(
                f"{message.encoding} image of {message.width}x{message.height} pixels with step {message.step}: "
                f"cv_bridge says {error}"
            ) from None
        self.encoding = message.encoding
        return image


def _suits_cv_bridge(message: Any) -> bool:
    """It ignores padding in some cases and reads past the end of short data, so it gets only what is plain."""
    if not hasattr(message, "encoding") or message.encoding in _NOT_FOR_CV_BRIDGE:
        return False
    return is_tight(
        encoding=message.encoding,
        width=message.width,
        height=message.height,
        step=message.step,
        size=len(message.data),
    )
