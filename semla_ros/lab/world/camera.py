"""Pinhole camera in a street: x to the right of the road's centre, y up from the road, z ahead of the camera (metres).

Pitch shifts the horizon rather than turning the image plane (a shift lens), so that uprights stay upright and each
plane's inverse depth stays affine in the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from semla_ros.lab.world.cities import CityStyle

Point = tuple[float, float, float]  # x, y, z in metres
Pixel = tuple[float, float]  # u to the right, v down; the centre of the first pixel is (0.5, 0.5)

NEAR_M = 0.7  # nothing nearer than this is drawn


def view(city: CityStyle, width: int, height: int) -> tuple[float, float]:
    """Focal length and row of the horizon of a city's image of that size, pixels."""
    focal_px = city.focal * width
    return focal_px, height / 2 - focal_px * math.tan(math.radians(city.pitch_deg))


@dataclass(frozen=True)
class Camera:
    """One view of one street."""

    width: int
    height: int
    focal_px: float
    horizon_px: float  # row of the horizon
    height_m: float
    x_m: float  # sideways place in the street
    position_m: float  # how far along the street
    bend_per_m: float  # curvature of the street, 1/m; positive bends to the right

    def project(self, point: Point) -> Pixel:
        """Image place of a point with z > 0."""
        x, y, z = point
        u = self.width / 2 + self.focal_px * (x - self.x_m + 0.5 * self.bend_per_m * z * z) / z
        return u, self.horizon_px + self.focal_px * (self.height_m - y) / z

    def pixels_per_metre(self, z: float) -> float:
        """Scale of the image at depth `z`."""
        return self.focal_px / z


def upright_quad(
    low: tuple[float, float], high: tuple[float, float], y: tuple[float, float], z: float, lean: float = 0.0
) -> list[Point]:
    """Four corners across the street: from x `low` at height y[0] to x `high` at y[1], which leans back by `lean`."""
    return [(low[0], y[0], z), (low[1], y[0], z), (high[1], y[1], z + lean), (high[0], y[1], z + lean)]


def side_quad(
    x: tuple[float, float], y: tuple[float, float], low: tuple[float, float], high: tuple[float, float]
) -> list[Point]:
    """Four corners along the street: from depths `low` at (x[0], y[0]) to depths `high` at (x[1], y[1])."""
    return [(x[0], y[0], low[0]), (x[0], y[0], low[1]), (x[1], y[1], high[1]), (x[1], y[1], high[0])]


def level_quad(x: tuple[float, float], y: float, z: tuple[float, float]) -> list[Point]:
    """Four corners of a level rectangle."""
    return [(x[0], y, z[0]), (x[1], y, z[0]), (x[1], y, z[1]), (x[0], y, z[1])]


def clip_near(points: Sequence[Point]) -> list[Point]:
    """Cut a polygon at the near plane; empty where all of it is nearer."""
    if all(point[2] >= NEAR_M for point in points):
        return list(points)
    kept: list[Point] = []
    for index, (x1, y1, z1) in enumerate(points):
        x0, y0, z0 = points[index - 1]
        if (z0 < NEAR_M) != (z1 < NEAR_M):
            t = (NEAR_M - z0) / (z1 - z0)
            kept.append((x0 + t * (x1 - x0), y0 + t * (y1 - y0), NEAR_M))
        if z1 >= NEAR_M:
            kept.append((x1, y1, z1))
    return kept


def plane_of(corners: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Inverse depth over the image, 1/z = a + b u + c v, through three image points (u, v, 1/z).

    Falls back to the nearest point's depth where the three lie almost on a line.
    """
    (u0, v0, w0), (u1, v1, w1), (u2, v2, w2) = corners
    determinant = (u1 - u0) * (v2 - v0) - (u2 - u0) * (v1 - v0)
    if math.fabs(determinant) < 1e-3:
        return max(w0, w1, w2), 0.0, 0.0
    b = ((w1 - w0) * (v2 - v0) - (w2 - w0) * (v1 - v0)) / determinant
    c = ((u1 - u0) * (w2 - w0) - (u2 - u0) * (w1 - w0)) / determinant
    return w0 - b * u0 - c * v0, b, c
