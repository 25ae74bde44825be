"""Painter's canvas: polygons of the world become one map of surface numbers and a table of surfaces.

Class, depth, colour and orientation of a pixel all follow from its surface number, so mask and depth are exact for
what is visible. Colours are averaged from twice the resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.world.camera import Camera, Pixel, Point, clip_near, plane_of
from semla_ros.lab.world.cities import Colour
from semla_ros.lab.world.classes import SKY

FloatArray = NDArray[np.float32]

SKY_DEPTH_M = 1000.0
UP, LEFT, RIGHT, FRONT, ROUND, DOWN, NONE = range(7)  # which way a surface looks; FRONT is towards the camera

_OVERSAMPLING = 2
_SUBPIXEL_BITS = 3
_FARTHEST = 1 << 18
_LEAST_PX = 0.3  # polygons narrower or lower than this leave no trace at twice the resolution
_LINEAR = tuple(float((value / 255) ** 2.2) for value in range(256))


LinearColour = tuple[float, float, float]  # RGB, linear light
_BLACK: LinearColour = (0.0, 0.0, 0.0)


class _Surface(NamedTuple):
    """One flat polygon."""

    label: int
    colour: LinearColour
    facing: int
    plane: tuple[float, float, float]  # inverse depth over the image, see `plane_of`
    grain: float
    glow: LinearColour
    window_index: int  # -1: none


class Windows(NamedTuple):
    """A regular grid of windows on a facade."""

    along_z: bool  # columns run along the street (a side facade) or across it
    origin_m: float
    base_m: float
    top_m: float
    period_m: tuple[float, float]
    share: tuple[float, float]
    glass: LinearColour
    lit_share: float
    key: int


@dataclass(frozen=True)
class Geometry:
    """What is visible where; every array is (H, W) or (H, W, 3), float32 unless named."""

    camera: Camera
    surface: NDArray[np.uint16]  # surface number per pixel
    mask: NDArray[np.uint8]
    depth_m: FloatArray
    x_m: FloatArray  # sideways, from the middle of the street (the bend taken out)
    y_m: FloatArray  # above the road
    along_m: FloatArray  # along the street from its start
    facing: NDArray[np.uint8]
    albedo: FloatArray  # linear RGB
    emission: FloatArray  # linear RGB
    grain: FloatArray  # amplitude of the surface's texture
    shadow: FloatArray  # 0 in the sun .. 1 in cast shadow
    windows: tuple[Windows, ...]
    window_index: NDArray[np.int16]  # per surface number; -1 without windows


def linear(colour: Colour) -> LinearColour:
    """From sRGB (0..255) to linear light (0..1)."""
    return _LINEAR[colour[0]], _LINEAR[colour[1]], _LINEAR[colour[2]]


def shaded(colour: Colour, factor: float) -> Colour:
    """A lighter or darker version of an sRGB colour."""
    return (
        min(255, max(0, int(colour[0] * factor))),
        min(255, max(0, int(colour[1] * factor))),
        min(255, max(0, int(colour[2] * factor))),
    )


class Canvas:
    """Collects polygons from far to near; `finish` turns them into a `Geometry`."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self._ids: NDArray[np.uint16] = np.zeros(
            (camera.height * _OVERSAMPLING, camera.width * _OVERSAMPLING), np.uint16
        )
        self._shadow: NDArray[np.uint8] = np.zeros((camera.height, camera.width), np.uint8)
        # Surface 0 is the sky: everything that nothing was drawn on.
        self._surfaces = [_Surface(SKY, _BLACK, NONE, (1.0 / SKY_DEPTH_M, 0.0, 0.0), 0.0, _BLACK, -1)]
        self._windows: list[Windows] = []

    def polygon(
        self,
        points: Sequence[Point],
        label: int,
        colour: Colour,
        facing: int,
        *,
        grain: float = 0.08,
        glow: LinearColour = _BLACK,
        windows: Windows | None = None,
    ) -> None:
        """Draw a flat polygon of the world; `glow` is light that it sends out itself (linear RGB)."""
        visible = clip_near(points)
        if len(visible) < 3:
            return
        pixels = [self.camera.project(point) for point in visible]
        if facing in (FRONT, ROUND):
            plane = (1.0 / visible[0][2], 0.0, 0.0)
        else:
            middle = len(pixels) // 2
            corners = (0, middle, len(pixels) - 1)
            plane = plane_of([(pixels[i][0], pixels[i][1], 1.0 / visible[i][2]) for i in corners])
        us, vs = zip(*pixels, strict=True)
        left, right, top, bottom = min(us), max(us), min(vs), max(vs)
        if right < 0 or left > self.camera.width or bottom < 0 or top > self.camera.height:
            return
        number = len(self._surfaces)
        if right - left < _LEAST_PX or bottom - top < _LEAST_PX or number > np.iinfo(np.uint16).max:
            return
        index = len(self._windows) if windows is not None else -1
        self._surfaces.append(_Surface(label, linear(colour), facing, plane, grain, glow, index))
        if windows is not None:
            self._windows.append(windows)
        cv2.fillPoly(self._ids, [_fixed_point(pixels, _OVERSAMPLING)], number, cv2.LINE_8, _SUBPIXEL_BITS)

    def ellipse(
        self,
        centre: Point,
        radius_x: float,
        radius_y: float,
        label: int,
        colour: Colour,
        *,
        glow: LinearColour = _BLACK,
        corners: int = 12,
    ) -> None:
        """Draw an ellipse that faces the camera; radii in metres."""
        x, y, z = centre
        outline = [(x + radius_x * c, y + radius_y * s, z) for c, s in _unit_circle(corners)]
        self.polygon(outline, label, colour, FRONT, grain=0.05, glow=glow)

    def ground_shadow(self, points: Sequence[Point], strength: float = 1.0) -> None:
        """Mark where the sun (or the sky, under a vehicle) is blocked on the ground."""
        visible = clip_near(points)
        if len(visible) < 3:
            return
        value = int(255 * min(max(strength, 0.0), 1.0))
        cv2.fillPoly(
            self._shadow,
            [_fixed_point([self.camera.project(p) for p in visible], 1)],
            value,
            cv2.LINE_AA,
            _SUBPIXEL_BITS,
        )

    def finish(self) -> Geometry:
        """Resolve the surface numbers into per-pixel class, depth, place and colour."""
        camera = self.camera
        ids = self._ids
        surface = np.ascontiguousarray(ids[1::_OVERSAMPLING, 1::_OVERSAMPLING])
        classes, colours, facings, given_planes, grains, glows, indices = zip(*self._surfaces, strict=True)
        planes = np.array(given_planes, np.float32)
        u = np.arange(camera.width, dtype=np.float32)[None, :] + 0.5
        v = np.arange(camera.height, dtype=np.float32)[:, None] + 0.5
        inverse = planes[:, 0][surface] + planes[:, 1][surface] * u + planes[:, 2][surface] * v
        depth: FloatArray = 1.0 / np.clip(inverse, 1.0 / SKY_DEPTH_M, 2.0)
        depth[surface == 0] = SKY_DEPTH_M  # exactly
        metres_per_pixel = depth / np.float32(camera.focal_px)
        x = (u - np.float32(camera.width / 2)) * metres_per_pixel + np.float32(camera.x_m)
        x -= np.float32(0.5 * camera.bend_per_m) * depth * depth
        y = np.float32(camera.height_m) - (v - np.float32(camera.horizon_px)) * metres_per_pixel
        return Geometry(
            camera=camera,
            surface=surface,
            mask=np.array(classes, np.uint8)[surface],
            depth_m=depth,
            x_m=x,
            y_m=y,
            along_m=depth + np.float32(camera.position_m % 4096.0),
            facing=np.array(facings, np.uint8)[surface],
            albedo=_average(np.array(colours, np.float32), ids),
            emission=_average(np.array(glows, np.float32), ids),
            grain=np.array(grains, np.float32)[surface],
            shadow=cv2.blur(self._shadow, (3, 3)).astype(np.float32) / np.float32(255),
            windows=tuple(self._windows),
            window_index=np.array(indices, np.int16),
        )


def _average(table: FloatArray, ids: NDArray[np.uint16]) -> FloatArray:
    if not table.any():
        return np.zeros((ids.shape[0] // _OVERSAMPLING, ids.shape[1] // _OVERSAMPLING, 3), np.float32)
    colours = np.take(table, ids, axis=0)
    smaller: FloatArray = cv2.resize(
        colours, (ids.shape[1] // _OVERSAMPLING, ids.shape[0] // _OVERSAMPLING), interpolation=cv2.INTER_AREA
    )
    return smaller


def _fixed_point(pixels: Sequence[Pixel], factor: int) -> NDArray[np.int32]:
    # OpenCV's integer coordinates name pixel centres; ours name corners: hence the half.
    scale = factor * (1 << _SUBPIXEL_BITS)
    points = np.array(pixels) * scale
    points -= (1 << _SUBPIXEL_BITS) / 2
    # Keeps OpenCV's fixed-point arithmetic from overflowing; far outside any image.
    fixed: NDArray[np.int32] = np.rint(np.minimum(np.maximum(points, -_FARTHEST), _FARTHEST)).astype(np.int32)
    return fixed


def _unit_circle(corners: int) -> list[tuple[float, float]]:
    return _CIRCLES.setdefault(
        corners,
        [(math.cos(2 * math.pi * i / corners), math.sin(2 * math.pi * i / corners)) for i in range(corners)],
    )


_CIRCLES: dict[int, list[tuple[float, float]]] = {}
