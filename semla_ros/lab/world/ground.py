"""Road, kerbs, sidewalks, verges, lane marks, crossings, junctions and the far skyline."""

from __future__ import annotations

import math

import numpy as np

from semla_ros.lab.world.camera import NEAR_M, Point, level_quad, side_quad, upright_quad
from semla_ros.lab.world.canvas import FRONT, LEFT, RIGHT, UP, Canvas, shaded
from semla_ros.lab.world.cities import CityStyle, Colour
from semla_ros.lab.world.classes import BUILDING, ROAD, SIDEWALK, TERRAIN, VEGETATION
from semla_ros.lab.world.street import Item, Street

_DEPTHS = (NEAR_M, 1.1, 1.7, 2.6, 4.0, 6.0, 9.0, 13.0, 19.0, 28.0, 42.0, 65.0, 100.0, 160.0, 260.0, 420.0)


def draw_skyline(canvas: Canvas, street: Street, seed: int, urban: bool) -> None:
    """Distant hills or buildings on the horizon, behind everything."""
    rng = np.random.default_rng([seed, 71])
    z = 420.0
    camera = canvas.camera
    half = 0.75 * camera.width / camera.focal_px * z
    if urban:
        x = -half
        while x < half:
            width = float(rng.uniform(12, 40))
            height = float(rng.uniform(8, 60))
            grey = int(rng.integers(110, 165))
            colour = (grey, grey, min(255, grey + 6))
            corners = upright_quad((x, x + width), (x, x + width), (-3, height), z)
            canvas.polygon(corners, BUILDING, colour, FRONT, grain=0.05)
            x += width * float(rng.uniform(0.8, 1.6))
    else:
        steps = 28
        level = float(rng.uniform(5, 30))
        phases = rng.uniform(0, 2 * math.pi, 3)
        ridge: list[Point] = []
        for i in range(steps + 1):
            t = i / steps
            y = level * (
                1
                + 0.5 * math.sin(5 * t + phases[0])
                + 0.25 * math.sin(13 * t + phases[1])
                + 0.1 * math.sin(37 * t + phases[2])
            )
            ridge.append((-half + 2 * half * t, y, z))
        canvas.polygon([(-half, -3, z), *ridge, (half, -3, z)], VEGETATION, street.hills, FRONT, grain=0.2)


def draw_ground(
    canvas: Canvas,
    city: CityStyle,
    street: Street,
    items: list[Item],
    *,
    enclosed_from_z: float | None,
    wall_x_m: float,
) -> None:
    """Everything underfoot, then what is painted on it.

    Args:
        canvas: Where to draw.
        city: Colours and paint.
        street: Widths.
        items: Junctions and crossings among them are drawn.
        enclosed_from_z: Depth from which a tunnel or garage encloses the road, None in the open.
        wall_x_m: Distance of its walls from the middle of the street.
    """
    kerb, walk0 = street.half_width_m, street.half_width_m + street.verge_m
    walk1 = walk0 + street.sidewalk_m
    high = city.kerb_m
    enclosed = enclosed_from_z is not None
    start = enclosed_from_z if enclosed_from_z is not None else 1e9
    yard_label, yard = (SIDEWALK, shaded(city.sidewalk, 0.92)) if city.paved_yard else (TERRAIN, city.grass)
    if start > 1.0:
        _strip(canvas, -400.0, 400.0, 0.0, TERRAIN, city.grass, 0.26)
        for side in (-1.0, 1.0):
            if city.paved_yard:
                _strip(canvas, side * walk1, side * (street.facade_m + 14.0), high, yard_label, yard, 0.1)
            _strip(canvas, side * walk0, side * walk1, high, SIDEWALK, city.sidewalk, 0.12)
            if street.verge_m > 0.05:
                _strip(canvas, side * kerb, side * walk0, high, TERRAIN, city.grass, 0.28)
        _strip(canvas, -kerb, kerb, 0.0, ROAD, city.road, 0.11)
        for item in items:
            if item.kind == "junction":
                z = item.along_m - canvas.camera.position_m
                _flat(canvas, -70.0, 70.0, z, item.length_m, 0.0, ROAD, city.road, 0.11)
    if enclosed:
        # Chords of a bend leave slits between floor and wall: let the floor reach beyond the wall.
        _strip(canvas, -wall_x_m - 4.0, wall_x_m + 4.0, 0.0, SIDEWALK, shaded(city.sidewalk, 0.8), 0.1, start)
        for side in (-1.0, 1.0):
            _strip(canvas, side * kerb, side * wall_x_m, high, SIDEWALK, city.sidewalk, 0.1, start)
        _strip(canvas, -kerb, kerb, 0.0, ROAD, shaded(city.road, 0.95), 0.11, start)
    _kerbs(canvas, city, street, items)
    _marks(canvas, city, street)
    for item in items:
        if item.kind == "crossing":
            z = item.along_m - canvas.camera.position_m
            if not enclosed or z < start:
                _zebra(canvas, city, kerb, z, item.length_m)


def _strip(
    canvas: Canvas, x0: float, x1: float, y: float, label: int, colour: Colour, grain: float, start: float = NEAR_M
) -> None:
    """A band of ground along the street, following its bend."""
    depths = [max(start, NEAR_M), *(z for z in _DEPTHS if z > max(start, NEAR_M))]
    left, right = min(x0, x1), max(x0, x1)
    corners: list[Point] = [(left, y, z) for z in depths] + [(right, y, z) for z in reversed(depths)]
    canvas.polygon(corners, label, colour, UP, grain=grain)


def _flat(
    canvas: Canvas, x0: float, x1: float, z: float, length: float, y: float, label: int, colour: Colour, grain: float
) -> None:
    if z + length > NEAR_M:
        canvas.polygon(level_quad((x0, x1), y, (z, z + length)), label, colour, UP, grain=grain)


def _kerbs(canvas: Canvas, city: CityStyle, street: Street, items: list[Item]) -> None:
    if city.kerb_m <= 0:
        return
    gaps = sorted(
        (item.along_m - canvas.camera.position_m, item.along_m - canvas.camera.position_m + item.length_m)
        for item in items
        if item.kind == "junction"
    )
    for side in (-1, 1):
        x = side * street.half_width_m
        at = NEAR_M
        for gap0, gap1 in [*gaps, (80.0, 81.0)]:
            while at < min(gap0, 80.0) - 0.1:
                end = min(gap0, at * 1.6 + 2.0)
                face = side_quad((x, x), (0, city.kerb_m), (at, end), (at, end))
                canvas.polygon(face, SIDEWALK, (172, 170, 164), LEFT if side > 0 else RIGHT, grain=0.08)
                at = end
            at = max(at, gap1)


def _marks(canvas: Canvas, city: CityStyle, street: Street) -> None:
    position = canvas.camera.position_m
    worn = tuple(int(r + (m - r) * (0.35 + 0.6 * city.marks)) for r, m in zip(city.road, (226, 224, 214), strict=True))
    paint: Colour = (worn[0], worn[1], worn[2])
    yellow = city.name == "downtown"
    period, dash = 9.0, 4.0
    first = math.floor((position + NEAR_M) / period)
    for index in range(first, first + 10):
        z = index * period - position
        if city.marks > 0.2:
            for lane in range(-street.lanes + 1, street.lanes):
                if lane == 0 and street.lanes > 1:
                    continue
                x = lane * street.lane_width_m
                _flat(canvas, x - 0.08, x + 0.08, z, dash, 0.0, ROAD, paint, 0.08)
        if street.parking_m > 0 and city.marks > 0.5:
            for side in (-1, 1):
                x = side * street.lanes * street.lane_width_m
                _flat(canvas, x - 0.05, x + 0.05, z, dash * 0.5, 0.0, ROAD, paint, 0.08)
        # Repairs and manhole covers: the road is not one colour.
        patch = (index * 2654435761) % 1021
        if patch % 3 == 0:
            x = (patch / 1021 - 0.5) * 1.6 * street.half_width_m
            colour = shaded(city.road, 0.72 + 0.5 * (patch % 2))
            _flat(canvas, x - 0.6, x + 0.7, z + 4.5, 1.5 + patch % 5, 0.0, ROAD, colour, 0.14)
    if street.lanes > 1:
        solid: Colour = (206, 166, 60) if yellow else paint
        for x in (-0.18, 0.18):
            _strip(canvas, x - 0.06, x + 0.06, 0.0, ROAD, solid, 0.08)


def _zebra(canvas: Canvas, city: CityStyle, kerb: float, z: float, length: float) -> None:
    paint: Colour = tuple(
        int(r + (m - r) * (0.4 + 0.55 * city.marks)) for r, m in zip(city.road, (230, 228, 220), strict=True)
    )  # type: ignore[assignment]
    x = -kerb + 0.3
    while x < kerb - 0.5:
        _flat(canvas, x, x + 0.5, z, length, 0.0, ROAD, paint, 0.1)
        x += 1.0
