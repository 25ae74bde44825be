"""Class names with a colour each: what gives the numbers in a mask their meaning."""

from __future__ import annotations

import colorsys
import hashlib
import json
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from semla_ros.results import ImageArray, MaskArray

# The customary classes and colours (RGB) of street scenes, in their customary order.
STREET_COLOURS: dict[str, tuple[int, int, int]] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}


def colour_of(name: str) -> tuple[int, int, int]:
    """RGB of a class: the customary one of street scenes, else one that depends on nothing but the name."""
    known = STREET_COLOURS.get(name.strip().lower())
    if known is not None:
        return known
    digest = hashlib.sha256(name.encode()).digest()
    hue, saturation, value = digest[0] / 256, 0.5 + digest[1] / 512, 0.6 + digest[2] / 640
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def palette_of(names: Sequence[str]) -> NDArray[np.uint8]:
    """Colours of a vocabulary, shape (T, 3), RGB."""
    return np.array([colour_of(name) for name in names], np.uint8).reshape(-1, 3)


def unlabelled_of(names: Sequence[str]) -> int:
    """The mask value that means "no class": 255, or 65535 where the mask has 16 bits."""
    return 255 if len(names) <= 254 else 65535


def labels_json(names: Sequence[str], version: int) -> str:
    """The label map as published: id, name and colour of each class, and the version that grows with every change."""
    classes = [
        {"id": index, "name": name, "color": list(colour_of(name))}  # ROS habit spells it so
        for index, name in enumerate(names)
    ]
    encoding = "mono8" if len(names) <= 254 else "mono16"
    return json.dumps(
        {"version": version, "encoding": encoding, "unlabelled": unlabelled_of(names), "classes": classes},
        ensure_ascii=False,
    )


def overlay(image: ImageArray, mask: MaskArray, palette: NDArray[np.uint8], alpha: float = 0.5) -> ImageArray:
    """Lay the class colours over an image; pixels without a class stay as they are.

    Args:
        image: RGB, shape (H, W, 3), uint8.
        mask: Class index per pixel, shape (H, W).
        palette: RGB per class, shape (T, 3), see `palette_of`.
        alpha: Opacity of the colours, 0..1.

    Returns:
        RGB, shape (H, W, 3), uint8.
    """
    has_class = mask < len(palette)
    colours = palette[np.where(has_class, mask, 0)]
    blended = cv2.addWeighted(np.ascontiguousarray(image), 1.0 - alpha, colours, alpha, 0.0)
    if not has_class.all():
        blended[~has_class] = image[~has_class]
    return blended  # type: ignore[no-any-return]
