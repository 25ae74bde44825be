"""The eleven classes of the procedural world and their colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semla_ros.labels import palette_of

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

PALETTE: NDArray[np.uint8] = palette_of(CLASS_NAMES)  # (11, 3) RGB, index = class
