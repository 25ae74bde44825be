"""How each thing on the street is drawn: a few flat polygons with class, colour and orientation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from semla_ros.lab.world.camera import NEAR_M, Point, level_quad, side_quad, upright_quad
from semla_ros.lab.world.canvas import DOWN, FRONT, LEFT, NONE, RIGHT, ROUND, UP, Canvas, Windows, linear, shaded
from semla_ros.lab.world.cities import CityStyle, Colour
from semla_ros.lab.world.classes import BUILDING, BUS, CAR, PERSON, POLE, SIGN, VEGETATION
from semla_ros.lab.world.street import Item, Street

_GLASS: Colour = (38, 46, 54)
_TYRE: Colour = (24, 24, 26)
_DARK = (0.0, 0.0, 0.0)

Span = tuple[float, float]


@dataclass(frozen=True)
class Lamps:
    """How bright what shines by itself is, in linear light."""

    street: float  # street lamps
    vehicle: float  # headlights; tail lights are dimmer
    windows: float
    sun_shift: tuple[float, float]  # sideways and along shift of a shadow per metre of height
    shadows: bool


class ObjectPainter:
    """Draws the items of one street onto a canvas."""

    def __init__(self, canvas: Canvas, city: CityStyle, street: Street, lamps: Lamps) -> None:
        self._canvas = canvas
        self._camera = canvas.camera
        self._city = city
        self._street = street
        self._lamps = lamps
        # Thin things never fall under about two pixels of a 256 pixel wide picture while they are near.
        self._least_width_px = 2.1 * canvas.camera.width / 256
        self._drawn: dict[str, Callable[[Item, float], None]] = {
            "building": self._building, "tree": self._tree, "hedge": self._hedge, "car": self._car, "van": self._car,
            "rickshaw": self._rickshaw, "bus": self._bus, "person": self._person, "sign": self._sign,
            "pole": self._pole, "lamp": self._pole, "pillar": self._pillar,
        }  # fmt: skip

    def draw(self, item: Item) -> None:
        """Draw one item; crossings and junctions belong to the ground."""
        z = item.along_m - self._camera.position_m
        if z + item.length_m < NEAR_M:
            return
        if (draw := self._drawn.get(item.kind)) is not None:
            draw(item, z)

    # ------------------------------------------------------------------ shapes
    def _side_facing(self, x: float) -> int:
        """Orientation of a wall across the street's axis, as the camera sees it."""
        return LEFT if x > self._camera.x_m else RIGHT

    def _upright(self, x: Span, y: Span, z: float, label: int, colour: Colour, **paint: Any) -> None:
        """Rectangle that faces the camera; `paint` as for `Canvas.polygon`."""
        if z >= NEAR_M:
            self._canvas.polygon(upright_quad(x, x, y, z), label, colour, FRONT, **paint)

    def _along(self, x: float, z: Span, y: Span, label: int, colour: Colour, **paint: Any) -> None:
        """Rectangle along the street."""
        self._canvas.polygon(side_quad((x, x), y, z, z), label, colour, self._side_facing(x), **paint)

    def _box(self, x: float, width: float, z: Span, y: Span, label: int, colour: Colour) -> None:
        """Far to near: top where it is below the eye, the side in view, the near end."""
        left, right = x - width / 2, x + width / 2
        if y[1] < self._camera.height_m:
            self._canvas.polygon(level_quad((left, right), y[1], z), label, colour, UP)
        if left > self._eye_x(z[0]):
            self._along(left, z, y, label, colour)
        elif right < self._eye_x(z[0]):
            self._along(right, z, y, label, colour)
        self._upright((left, right), y, z[0], label, colour)

    def _eye_x(self, z: float) -> float:
        """Sideways place straight ahead of the camera at depth `z`, in street coordinates."""
        return self._camera.x_m - 0.5 * self._camera.bend_per_m * z * z

    def _base(self, x: float) -> float:
        return self._city.kerb_m if abs(x) > self._street.half_width_m else 0.0

    def _pixels(self, size_m: float, z: float) -> float:
        return size_m * self._camera.focal_px / max(z, NEAR_M)

    def _cast(self, x: float, width: float, z0: float, z1: float, height: float) -> None:
        """Sun shadow of an upright box on the ground."""
        if not self._lamps.shadows:
            return
        dx, dz = self._lamps.sun_shift[0] * height, self._lamps.sun_shift[1] * height
        left, right = x - width / 2, x + width / 2
        z0 = max(z0, 0.1)
        if abs(dx) > abs(dz):
            start, edge = (right, left) if dx < 0 else (left, right)
            self._canvas.ground_shadow(
                [(start, 0, z0), (edge + dx, 0, z0 + dz), (edge + dx, 0, z1 + dz), (start, 0, z1)]
            )
        else:
            start_z, end_z = (z1, z0) if dz < 0 else (z0, z1)
            self._canvas.ground_shadow(
                [(left, 0, start_z), (left + dx, 0, end_z + dz), (right + dx, 0, end_z + dz), (right, 0, start_z)]
            )

    # ------------------------------------------------------------------ things
    def _building(self, item: Item, z: float) -> None:
        side = 1.0 if item.x_m > 0 else -1.0
        z0, z1 = z, z + item.length_m
        outer = item.x_m + side * item.width_m
        if z1 < NEAR_M:
            return
        city, v = self._city, item.variant
        top = item.height_m
        base = city.kerb_m
        share = (
            city.window_share[0] * (0.85 + 0.3 * (v & 7) / 7),
            city.window_share[1] * (0.85 + 0.3 * (v >> 3 & 7) / 7),
        )
        period = (city.window_period_m[0] * (0.8 + 0.5 * (v >> 6 & 7) / 7), city.window_period_m[1])
        lit = 0.12 + 0.3 * (v >> 9 & 7) / 7

        def windows(along_z: bool) -> Windows:
            origin = (item.along_m % 4096.0) if along_z else item.x_m
            return Windows(
                along_z,
                origin,
                base,
                top - 0.5,
                period,
                share,
                linear(city.glass),
                lit * self._lamps.windows,
                v + (0 if along_z else 77),
            )

        gable = city.roof == "gable"
        ridge_x, ridge_y = item.x_m + side * item.width_m / 2, top + item.width_m * 0.32
        if gable:
            roof = side_quad((item.x_m - side * 0.3, ridge_x), (top, ridge_y), (z0, z1), (z0, z1))
            self._canvas.polygon(roof, BUILDING, item.second_colour, UP, grain=0.16)
            if z0 > NEAR_M:
                end: list[Point] = [(item.x_m, top, z0), (outer, top, z0), (ridge_x, ridge_y, z0)]
                self._canvas.polygon(end, BUILDING, shaded(item.colour, 0.95), FRONT, grain=0.1)
        self._upright(
            (min(item.x_m, outer), max(item.x_m, outer)), (0.0, top), z0, BUILDING, item.colour, windows=windows(False)
        )
        self._along(item.x_m, (z0, z1), (0.0, top), BUILDING, item.colour, grain=0.1, windows=windows(True))
        if not gable and z0 < 60:
            self._along(item.x_m - side * 0.12, (z0, z1), (top - 0.35, top), BUILDING, shaded(item.colour, 0.8))
        if z0 < 45:  # the ground floor: a plinth, and a door or shop fronts
            floor = (0.34, 0.42, 0.62)[v % 3]
            self._along(item.x_m - side * 0.02, (z0, z1), (0.0, base + 0.5), BUILDING, shaded(item.colour, floor + 0.3))
            at = z0 + 1.0
            step = 3.2 + (v >> 5 & 3)
            while at + 1.2 < z1 and (v & 1 or at < z0 + 4):
                width = 1.1 if not v & 1 else step * 0.7
                self._along(
                    item.x_m - side * 0.03,
                    (at, min(at + width, z1 - 0.2)),
                    (base, base + 2.3),
                    BUILDING,
                    shaded((96, 84, 72) if not v & 1 else _GLASS, 0.7 + 0.1 * (v >> 4 & 7)),
                )
                at += step
        if abs(item.x_m) < 25:
            self._cast(item.x_m + side * item.width_m / 2, item.width_m, z0, z1, top)

    def _crown(self, x: float, y: float, z: float, radius_x: float, radius_y: float, colour: Colour, key: int) -> None:
        corners = 14
        outline: list[Point] = []
        for i in range(corners):
            angle = 2 * math.pi * i / corners
            wobble = 0.82 + 0.3 * (((key * 31 + i * 7919) * 2654435761 >> 7) % 256) / 255
            outline.append((x + radius_x * wobble * math.cos(angle), y + radius_y * wobble * math.sin(angle), z))
        self._canvas.polygon(outline, VEGETATION, colour, ROUND, grain=0.42)

    def _tree(self, item: Item, z: float) -> None:
        if z < 1.2:
            return
        v, height = item.variant, item.height_m
        trunk = max(
            0.13 + 0.012 * height, 0.7 * self._least_width_px / self._camera.pixels_per_metre(z) if z < 25 else 0
        )
        conifer = self._city.name == "alpine" and v % 3 != 0
        x, base = item.x_m, self._base(item.x_m)
        bottom = base + height * (0.08 if conifer else 0.3)
        self._upright(
            (x - trunk, x + trunk), (base, bottom + 0.25 * height), z, VEGETATION, item.second_colour, grain=0.3
        )
        if conifer:
            for step in range(4):
                low = bottom + (height - bottom) * step / 4.6
                half = item.width_m * 0.85 * (1 - step / 4.6)
                tier: list[Point] = [(x - half, low, z), (x + half, low, z), (x, low + (height - bottom) * 0.42, z)]
                self._canvas.polygon(tier, VEGETATION, shaded(item.colour, 0.8 + 0.1 * step), ROUND, grain=0.35)
        else:
            crown_y, radius_y = (bottom + height) / 2 + 0.1, (height - bottom) / 2
            radius = item.width_m
            if self._pixels(radius, z) < 7:
                self._crown(x, crown_y, z, radius, radius_y, item.colour, v)
            else:
                lobes = (
                    (0.0, 0.0, 1.0, 0.74),
                    (-0.45, -0.25, 0.62, 0.9),
                    (0.45, -0.2, 0.6, 1.04),
                    (-0.2, 0.35, 0.6, 1.16),
                    (0.28, 0.42, 0.5, 1.26),
                    (0.05, -0.5, 0.45, 0.68),
                )
                for index, (dx, dy, size, light) in enumerate(lobes):
                    self._crown(
                        x + dx * radius,
                        crown_y + dy * radius_y,
                        z - 0.02 * index,
                        radius * size,
                        radius_y * size,
                        shaded(item.colour, light),
                        v + index,
                    )
        self._cast(x, item.width_m * 1.4, z - 0.8, z + 0.8, height)

    def _hedge(self, item: Item, z: float) -> None:
        z0, z1, colour = max(z, NEAR_M), z + item.length_m, item.colour
        half, height = item.width_m / 2, item.height_m + 0.1
        side = 1.0 if item.x_m > 0 else -1.0
        left, right, front = item.x_m - half, item.x_m + half, item.x_m - side * half
        if height < self._camera.height_m:
            top = level_quad((left, right), height, (z0, z1))
            self._canvas.polygon(top, VEGETATION, shaded(colour, 1.15), UP, grain=0.4)
        self._along(front, (z0, z1), (0.0, height), VEGETATION, colour, grain=0.42)
        self._upright((left, right), (0.0, height), z, VEGETATION, shaded(colour, 0.9), grain=0.42)
        self._cast(item.x_m, 2 * half, z0, z1, height)

    def _light(self, x: float, y: float, z: float, size: float, label: int, front: bool) -> None:
        power = self._lamps.vehicle
        glow = (power, power * 0.95, power * 0.82) if front else (0.3 * power + 0.02, 0.012 * power, 0.01 * power)
        self._canvas.ellipse(
            (x, y, z), size * 1.25, size * 0.8, label, (228, 226, 214) if front else (150, 22, 20), glow=glow, corners=8
        )

    def _wheels(self, x: float, z0: float, length: float, radius: float, label: int) -> None:
        if self._pixels(radius, z0 + length * 0.3) < 1.2:
            return
        for share in (0.2, 0.8):
            middle = z0 + share * length
            if middle - radius < NEAR_M:
                continue
            wheel: list[Point] = [
                (x, radius + radius * math.sin(a * math.pi / 4), middle + radius * math.cos(a * math.pi / 4))
                for a in range(8)
            ]
            self._canvas.polygon(wheel, label, _TYRE, self._side_facing(x), grain=0.02)

    def _car(self, item: Item, z: float) -> None:
        x, width, length, height = item.x_m, item.width_m, item.length_m, item.height_m
        z0, z1 = z, z + length
        left, right = x - width / 2, x + width / 2
        colour = item.colour
        tall = item.kind == "van"
        clearance = 0.2
        belt = 0.92 if not tall else 1.1
        self._canvas.ground_shadow(level_quad((left - 0.1, right + 0.1), 0, (z0, z1)), 0.9)
        self._cast(x, width, z0, z1, height)
        tyre = 0.2
        for edge in (left + tyre / 2, right - tyre / 2):
            self._upright((edge - tyre / 2, edge + tyre / 2), (0.0, 0.5), z0 + 0.15, CAR, _TYRE)
        self._box(x, width, (z0, z1), (clearance, belt), CAR, colour)
        side_x = left if left > self._eye_x(z0) else right if right < self._eye_x(z0) else None
        # The cabin stands back from both ends; its long hood is in front.
        hood, boot = (0.28, 0.04 if item.variant & 1 else 0.16) if not tall else (0.12, 0.01)
        near_share, far_share = (hood, boot) if item.towards_camera else (boot, hood)
        c0, c1 = z0 + near_share * length, z1 - far_share * length
        slope = 0.45 if not tall else 0.15
        inset = 0.12
        if side_x is not None:
            inner = side_x + (inset if side_x == left else -inset)
            cabin = side_quad((side_x, inner), (belt, height), (c0, c1), (c0 + slope, c1 - slope))
            self._canvas.polygon(cabin, CAR, colour, self._side_facing(side_x))
            if self._pixels(height - belt, z0) > 2.5:
                low, high = belt + 0.06, height - 0.1
                lean = slope * 0.9
                middle = (c0 + c1) / 2
                for a, b, lean_a, lean_b in (
                    (c0 + 0.2, middle - 0.06, lean, 0.0),
                    (middle + 0.06, c1 - 0.2, 0.0, lean),
                ):
                    if tall and a > middle:
                        continue
                    pane = side_quad((side_x, inner), (low, high), (a, b), (a + lean_a, b - lean_b))
                    self._canvas.polygon(pane, CAR, _GLASS, self._side_facing(side_x), grain=0.02)
            self._wheels(side_x, z0, length, 0.32, CAR)
        if height < self._camera.height_m:
            roof = level_quad((left + inset, right - inset), height, (c0 + slope, c1 - slope))
            self._canvas.polygon(roof, CAR, colour, UP)
        if c0 > NEAR_M:
            rear = upright_quad((left, right), (left + inset, right - inset), (belt, height), c0, slope)
            self._canvas.polygon(rear, CAR, colour, FRONT)
            pane = upright_quad(
                (left + 0.16, right - 0.16), (left + 0.26, right - 0.26), (belt + 0.04, height - 0.09), c0, slope
            )
            self._canvas.polygon(pane, CAR, _GLASS, FRONT, grain=0.02)
        if z0 > NEAR_M and self._pixels(width, z0) > 4:
            self._upright((left + 0.04, right - 0.04), (clearance, clearance + 0.18), z0, CAR, (44, 44, 46))
            if self._pixels(width, z0) > 10:
                self._upright((x - 0.26, x + 0.26), (0.44, 0.56), z0, CAR, (216, 214, 200))
                if item.towards_camera:
                    self._upright((x - 0.45, x + 0.45), (0.6, 0.72), z0, CAR, (34, 34, 36))
            for edge in (left + 0.24, right - 0.24):
                self._light(edge, 0.7 if not tall else 0.85, z0, 0.14, CAR, item.towards_camera)

    def _rickshaw(self, item: Item, z: float) -> None:
        x, width, height = item.x_m, item.width_m, item.height_m
        z0, z1 = z, z + item.length_m
        self._canvas.ground_shadow(level_quad((x - width / 2, x + width / 2), 0, (z0, z1)))
        for edge in (x - width / 2 + 0.08, x + width / 2 - 0.08):
            self._upright((edge - 0.07, edge + 0.07), (0.0, 0.45), z0 + 0.3, CAR, _TYRE)
        self._box(x, width, (z0, z1), (0.25, 0.95), CAR, item.colour)
        self._box(x, width * 0.94, (z0 + 0.25, z1 - 0.2), (0.95, height), CAR, item.second_colour)
        if z0 > NEAR_M:
            self._upright((x - width * 0.38, x + width * 0.38), (1.05, height - 0.18), z0 + 0.24, CAR, _GLASS)
            self._light(x - width * 0.34, 0.7, z0, 0.11, CAR, item.towards_camera)
            self._light(x + width * 0.34, 0.7, z0, 0.11, CAR, item.towards_camera)

    def _bus(self, item: Item, z: float) -> None:
        x, width, length, height = item.x_m, item.width_m, item.length_m, item.height_m
        z0, z1 = z, z + length
        left, right = x - width / 2, x + width / 2
        colour, trim = item.colour, item.second_colour
        self._canvas.ground_shadow(level_quad((left - 0.2, right + 0.2), 0, (z0, z1)))
        self._cast(x, width, z0, z1, height)
        for edge in (left + 0.16, right - 0.16):
            self._upright((edge - 0.14, edge + 0.14), (0.0, 0.6), z0 + 0.3, BUS, _TYRE)
        self._box(x, width, (z0, z1), (0.28, height), BUS, colour)
        glow = 0.22 * self._lamps.windows
        lit = (glow, glow * 0.86, glow * 0.6)
        side_x = left if left > self._eye_x(z0) else right if right < self._eye_x(z0) else None
        low, high = height * 0.46, height * 0.8
        if side_x is not None:
            self._along(side_x, (z0, z1), (0.28, 0.62), BUS, trim if item.variant & 1 else shaded(colour, 0.7))
            panes = 6 if self._pixels(height, max(z0, NEAR_M)) > 12 else 1
            pitch = (length - 0.8) / panes
            for pane in range(panes - 1, -1, -1):
                a = z0 + 0.4 + pane * pitch
                along = (a, a + pitch * 0.92)
                corners = side_quad((side_x, side_x), (low, high), along, along)
                self._canvas.polygon(corners, BUS, _GLASS, self._side_facing(side_x), grain=0.03, glow=lit)
            self._wheels(side_x, z0, length, 0.48, BUS)
        if z0 > NEAR_M:
            front, sign = item.towards_camera, 0.32 * width
            sill, dim = low - (0.35 if front else 0.0), (glow * 0.5, glow * 0.43, glow * 0.3)
            self._upright((left + 0.12, right - 0.12), (sill, high), z0, BUS, _GLASS, grain=0.03, glow=dim)
            shine = (0.5 * self._lamps.windows, 0.28 * self._lamps.windows, 0.02) if front else _DARK
            self._upright((x - sign, x + sign), (height * 0.85, height * 0.95), z0, BUS, (26, 26, 24), glow=shine)
            self._upright((left + 0.05, right - 0.05), (0.28, 0.5), z0, BUS, shaded(trim, 0.6))
            for edge in (left + 0.3, right - 0.3):
                self._light(edge, 0.72, z0, 0.17, BUS, front)

    def _person(self, item: Item, z: float) -> None:
        if z < 1.0:
            return
        x, height, v = item.x_m, item.height_m, item.variant
        base = self._base(x)
        half = max(item.width_m / 2, 0.75 * self._least_width_px / self._camera.pixels_per_metre(z) if z < 25 else 0.0)
        skin = ((214, 168, 140), (166, 116, 84), (104, 72, 54), (190, 142, 112))[v & 3]
        hair = ((40, 32, 28), (88, 64, 44), (120, 116, 110), (22, 20, 22))[v >> 2 & 3]
        shirt, trousers = item.colour, item.second_colour
        hip, neck, stride = base + 0.48 * height, base + 0.83 * height, 0.1 + 0.3 * (v >> 4 & 7) / 7
        detailed = self._pixels(height, z) > 14
        self._cast(x, item.width_m, z - 0.1, z + 0.1, height)
        self._canvas.ground_shadow(level_quad((x - half, x + half), 0, (z - 0.25, z + 0.25)), 0.6)
        if detailed:
            for sign in (-1, 1):
                foot = x + sign * stride * half * 1.6
                thigh = (x - (0.9 if sign < 0 else 0.05) * half, x + (0.9 if sign > 0 else 0.05) * half)
                leg = upright_quad((foot - half * 0.3, foot + half * 0.36), thigh, (base, hip + 0.05), z)
                self._canvas.polygon(leg, PERSON, shaded(trousers, 0.85 if sign < 0 else 1.0), FRONT)
                swing = sign * stride * half * 0.9
                arm: list[Point] = [
                    (x + sign * half * 0.75, neck - 0.03, z),
                    (x + sign * half * 1.05, neck - 0.1, z),
                    (x + sign * half * 1.15 + swing, hip, z),
                    (x + sign * half * 0.8 + swing, hip, z),
                ]
                self._canvas.polygon(arm, PERSON, shaded(shirt, 0.8), FRONT)
        else:
            self._upright((x - half * 0.72, x + half * 0.72), (base, hip), z, PERSON, trousers)
        torso: list[Point] = [
            (x - half * 0.72, hip - 0.08, z),
            (x + half * 0.72, hip - 0.08, z),
            (x + half * 0.92, neck - 0.06, z),
            (x + half * 0.45, neck, z),
            (x - half * 0.45, neck, z),
            (x - half * 0.92, neck - 0.06, z),
        ]
        self._canvas.polygon(torso, PERSON, shirt, FRONT)
        head = max(0.078 * height, 0.32 * half)
        self._canvas.ellipse(
            (x, base + height - head, z), head * 0.85, head * 1.1, PERSON, hair if v >> 7 & 1 else skin, corners=9
        )
        if detailed and not v >> 7 & 1:
            self._canvas.ellipse((x, base + height - head * 0.45, z), head * 0.85, head * 0.6, PERSON, hair, corners=8)
        if detailed and v >> 8 & 3 == 0:  # a bag
            self._upright((x + half * 0.7, x + half * 1.35), (hip - 0.15, hip + 0.3), z, PERSON, shaded(trousers, 0.6))

    def _post(self, x: float, radius: float, y: Span, z: float, colour: Colour) -> None:
        half = max(radius, 0.5 * self._least_width_px / self._camera.pixels_per_metre(z) if z < 22 else 0.0)
        self._upright((x - half, x + half), y, z, POLE, colour)
        if self._pixels(half, z) > 2:
            self._upright((x + half * 0.2, x + half), y, z, POLE, shaded(colour, 0.72))

    def _sign(self, item: Item, z: float) -> None:
        if z < 1.0:
            return
        x, v = item.x_m, item.variant
        indoor = self._city.indoor
        size = item.width_m / 2
        y = (self._city.ceiling_m - 0.5 - size * 0.5) if indoor else item.height_m
        if indoor:
            x = math.copysign(abs(x) * 0.55, x)
            self._post(x, 0.03, (y, self._city.ceiling_m), z, item.colour)
        else:
            self._post(x, 0.05, (self._base(x), y + size), z, item.colour)
            self._cast(x, 0.12, z - 0.06, z + 0.06, y)
        z -= 0.05
        kind = v % 7
        if indoor:
            green = 0.12 + 0.25 * self._lamps.street
            face, glow = (30, 120, 66) if v & 1 else (40, 70, 150), (0.02, green * 0.5, 0.12 * green)
            self._upright((x - size, x + size), (y - size * 0.5, y + size * 0.5), z, SIGN, face, glow=glow)
            self._upright(
                (x - size * 0.6, x + size * 0.2), (y - size * 0.12, y + size * 0.14), z, SIGN, (230, 232, 226)
            )
            return
        if not item.towards_camera and v & 8:  # the back of a sign for the other direction
            self._canvas.ellipse((x, y, z + 0.1), size, size, SIGN, (146, 148, 150))
            return
        red: Colour = (186, 30, 34)
        white: Colour = (228, 228, 222)
        blue: Colour = (30, 78, 160)
        if kind in (0, 1):
            self._canvas.ellipse((x, y, z), size, size, SIGN, red, corners=14)
            self._canvas.ellipse((x, y, z), size * 0.7, size * 0.7, SIGN, white, corners=12)
            self._upright((x - size * 0.3, x + size * 0.3), (y - size * 0.3, y + size * 0.3), z, SIGN, (40, 40, 42))
        elif kind in (2, 3):
            for factor, colour in ((1.15, red), (0.74, white)):
                triangle: list[Point] = [
                    (x - size * factor, y - size * 0.6 * factor, z),
                    (x + size * factor, y - size * 0.6 * factor, z),
                    (x, y + size * 1.1 * factor, z),
                ]
                self._canvas.polygon(triangle, SIGN, colour, FRONT, grain=0.03)
            self._upright((x - size * 0.1, x + size * 0.1), (y - size * 0.3, y + size * 0.3), z, SIGN, (40, 40, 42))
        elif kind == 4:
            self._canvas.ellipse((x, y, z), size, size, SIGN, blue, corners=14)
            self._upright((x - size * 0.14, x + size * 0.14), (y - size * 0.6, y + size * 0.6), z, SIGN, white)
        elif kind == 5:
            for factor, colour in ((1.2, white), (0.9, (214, 168, 30))):
                diamond: list[Point] = [
                    (x - size * factor, y, z),
                    (x, y - size * factor, z),
                    (x + size * factor, y, z),
                    (x, y + size * factor, z),
                ]
                self._canvas.polygon(diamond, SIGN, colour, FRONT, grain=0.03)
        else:
            wide = size * (1.0 if v & 16 else 1.9)
            face = (blue, (24, 104, 70), (214, 168, 30))[v >> 5 & 1 if v & 128 else 2 * (v >> 6 & 1)]
            self._upright((x - wide, x + wide), (y - size, y + size * 0.6), z, SIGN, face, grain=0.03)
            self._upright(
                (x - wide * 0.7, x + wide * 0.5), (y - size * 0.1, y + size * 0.2), z, SIGN, white, grain=0.03
            )
            self._upright(
                (x - wide * 0.7, x + wide * 0.2), (y - size * 0.6, y - size * 0.35), z, SIGN, white, grain=0.03
            )

    def _pole(self, item: Item, z: float) -> None:
        if z < 0.9:
            return
        x, base = item.x_m, self._base(item.x_m)
        self._post(x, item.width_m / 2, (base, item.height_m), z, item.colour)
        self._cast(x, item.width_m, z - 0.1, z + 0.1, item.height_m)
        if item.kind != "lamp":
            return
        reach = -math.copysign(1.7, x)
        thick = max(0.06, 0.3 * self._least_width_px / self._camera.pixels_per_metre(z) if z < 30 else 0.0)
        self._upright(
            (min(x, x + reach), max(x, x + reach)), (item.height_m - thick, item.height_m + thick), z, POLE, item.colour
        )
        power = self._lamps.street
        red, green, blue = linear(item.second_colour)
        head: list[Point] = [
            (x + reach * s, item.height_m + dy, z)
            for s, dy in ((0.75, -0.14), (1.25, -0.14), (1.2, 0.08), (0.78, 0.08))
        ]
        self._canvas.polygon(head, POLE, (196, 194, 186), FRONT, glow=(red * power, green * power, blue * power))

    def _pillar(self, item: Item, z: float) -> None:
        self._box(item.x_m, item.width_m, (max(z, 0.2), z + item.length_m), (0.0, item.height_m), POLE, item.colour)
        self._box(
            item.x_m, item.width_m + 0.02, (max(z, 0.2), z + item.length_m), (0.35, 1.15), POLE, item.second_colour
        )


def draw_enclosure(
    canvas: Canvas,
    *,
    half_width: float,
    ceiling: float,
    from_z: float,
    lamp_glow: tuple[float, float, float],
    lamp_spacing: float,
    lamp_offset: float,
    walls: Colour,
    portal: bool,
    lamp_rows: tuple[float, ...],
) -> None:
    """Walls and ceiling of a tunnel or garage from `from_z` on; the portal is its concrete face.

    The enclosure ends in darkness (still class building) far ahead.
    """
    far = 180.0
    start = max(from_z, NEAR_M * 0.5)
    if portal:
        for left, right, low, high in (
            (-90.0, -half_width, 0.0, 13.0),
            (half_width, 90.0, 0.0, 13.0),
            (-half_width, half_width, ceiling, 13.0),
        ):
            face = upright_quad((left, right), (left, right), (low, high), start)
            canvas.polygon(face, BUILDING, (146, 142, 134), FRONT, grain=0.15)
    beyond = (-half_width - 40, half_width + 40)
    end = upright_quad(beyond, beyond, (-1.0, ceiling + 1), far)
    inside_eye = canvas.camera.bend_per_m
    canvas.polygon(end, BUILDING, (50, 48, 46), FRONT, grain=0.05)
    depths = [far, 110.0, 70.0, 45.0, 30.0, 20.0, 13.0, 8.0, 5.0, 3.0, 1.8, start] if inside_eye else [far, start]
    depths = [z for z in depths if z > start] + [start]
    for z1, z0 in pairwise(depths):
        top = level_quad((-half_width, half_width), ceiling, (z0, z1))
        canvas.polygon(top, BUILDING, shaded(walls, 0.72), DOWN, grain=0.12)
        for x, facing in ((-half_width, RIGHT), (half_width, LEFT)):
            wall = side_quad((x, x), (0, ceiling), (z0, z1), (z0, z1))
            canvas.polygon(wall, BUILDING, walls, facing, grain=0.14)
            stripe = side_quad((x, x), (0.9, 1.15), (z0, z1), (z0, z1))
            canvas.polygon(stripe, BUILDING, shaded(walls, 0.62), facing, grain=0.08)
    first = math.ceil((start - lamp_offset) / lamp_spacing)
    for index in range(math.floor((110.0 - lamp_offset) / lamp_spacing), first - 1, -1):
        z = index * lamp_spacing + lamp_offset
        for row in lamp_rows:
            x = row * half_width
            strip = level_quad((x - 0.16, x + 0.16), ceiling - 0.04, (z, z + 1.5))
            canvas.polygon(strip, BUILDING, (226, 222, 206), NONE, grain=0.0, glow=lamp_glow)
