"""The eleven classes of the procedural world and their colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASS_NAMES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "vegetation",
    "terrain",
    "sky",
    "pole",
    "traffic sign",
    "person",
    "car",
    "bus",
)

ROAD, SIDEWALK, BUILDING, VEGETATION, TERRAIN, SKY, POLE, SIGN, PERSON, CAR, BUS = range(11)

PALETTE: NDArray[np.uint8] = np.array(
    [
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (153, 153, 153),
        (220, 220, 0),
        (220, 20, 60),
        (0, 0, 142),
        (0, 60, 100),
    ],
    np.uint8,
)  # (11, 3) RGB, index = class; the customary street-scene colours
