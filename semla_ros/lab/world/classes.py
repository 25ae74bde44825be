"""The eleven classes of the procedural world."""

from __future__ import annotations

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
