"""What lies between surfaces and sensor: wet reflections, fog, glare, rain, flakes, drops on the lens, noise."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.world.canvas import UP, Geometry
from semla_ros.lab.world.cities import CityStyle
from semla_ros.lab.world.classes import SKY
from semla_ros.lab.world.lighting import Weather
from semla_ros.lab.world.street import Street

FloatArray = NDArray[np.float32]


def reflect_on_wet_ground(image: FloatArray, geometry: Geometry, wetness: float, coarse: FloatArray) -> None:
    """Mirror what stands on the ground into it (in place); grazing views reflect more, puddles most."""
    ground = (geometry.facing == UP) & (geometry.y_m < 0.3)
    height = ground.shape[0]
    rows = np.arange(height, dtype=np.int32)[:, None]
    contact = np.maximum.accumulate(np.where(ground, -1, rows), axis=0)  # lowest thing above each ground pixel
    ripple = (coarse * np.float32(0.012 * height)).astype(np.int32)
    source = np.clip(2 * contact - rows + ripple, 0, height - 1)
    mirrored = np.take_along_axis(cv2.blur(image, (3, max(3, height // 24 * 2 + 1))), source[..., None], axis=0)
    grazing = geometry.depth_m / (geometry.depth_m + np.float32(3.5 * geometry.camera.height_m))
    puddle = np.clip(np.float32(0.55) + np.float32(0.7) * coarse, 0.15, 1)
    share = np.where(ground, np.float32(0.85 * wetness) * grazing * puddle, 0)
    image += share[..., None] * (mirrored - image)


def add_atmosphere(
    image: FloatArray, geometry: Geometry, weather: Weather, *, headlights: float, enclosed_from_m: float | None
) -> None:
    """Fade everything to airlight with its depth (in place): Beer-Lambert attenuation."""
    camera = geometry.camera
    # Haze thins out upwards: looking at the sky one leaves it after a few hundred metres.
    rows = np.arange(camera.height, dtype=np.float32)[:, None]
    up = np.clip((np.float32(camera.horizon_px) - rows) / np.float32(camera.focal_px), 0, 1)
    path = np.minimum(geometry.depth_m, np.float32(420) / (1 + np.float32(12) * up))
    if enclosed_from_m is not None:
        path = np.minimum(path, np.float32(max(enclosed_from_m, 0.0)))
    lost = 1 - np.exp(np.float32(-weather.extinction) * path)
    light: FloatArray | np.floating = weather.airlight
    if headlights > 0.2 and weather.extinction > 0.008:  # fog and snow throw the own beams back
        u = (np.arange(camera.width, dtype=np.float32)[None, :] - np.float32(camera.width / 2)) / np.float32(
            camera.width
        )
        v = (
            np.arange(camera.height, dtype=np.float32)[:, None] - np.float32(camera.horizon_px + 0.12 * camera.height)
        ) / np.float32(camera.height)
        beam = np.exp(-np.square(u / 0.3) - np.square(v / 0.22)) * np.float32(
            0.16 * headlights * min(1.0, weather.extinction * 14)
        )
        light = weather.airlight + beam[..., None] * np.array([1.0, 0.96, 0.88], np.float32)
    image += lost[..., None] * (light - image)


def bloom(image: FloatArray, strength: float) -> None:
    """Let light above white spill over (in place)."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(2, width // 4), max(2, height // 4)), interpolation=cv2.INTER_AREA)
    excess = np.clip(small - np.float32(0.75), 0, 6)
    if not excess.any():
        return
    halo = cv2.GaussianBlur(excess, (0, 0), max(0.8, 0.011 * width)) + np.float32(0.6) * cv2.GaussianBlur(
        excess, (0, 0), max(1.5, 0.035 * width)
    )
    image += np.float32(strength) * cv2.resize(halo, (width, height), interpolation=cv2.INTER_LINEAR)


def add_glare(image: FloatArray, geometry: Geometry, street: Street, severity: float, wetness: float) -> None:
    """A low sun in the picture (in place): disc, halo, veil over everything, streak on the road, lens ghosts."""
    camera = geometry.camera
    height, width = image.shape[:2]
    sun_u = width * (0.5 + 0.24 * np.sin(street.sun_azimuth * 3))
    sun_v = camera.horizon_px - height * (0.1 + 0.11 * (0.5 + 0.5 * np.cos(street.sun_azimuth * 5)))
    u = np.arange(width, dtype=np.float32)[None, :] - np.float32(sun_u)
    v = np.arange(height, dtype=np.float32)[:, None] - np.float32(sun_v)
    radius = np.sqrt(u * u + v * v) / np.float32(width)
    row, column = int(np.clip(sun_v, 0, height - 1)), int(np.clip(sun_u, 0, width - 1))
    patch = geometry.mask[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4]
    seen = 0.6 + 0.4 * float((patch == SKY).mean())  # a hidden sun still floods the lens
    warm = np.array([1.0, 0.8, 0.54], np.float32)
    disc = np.clip(1 - (radius - np.float32(0.028)) * 90, 0, 1) * (geometry.mask == SKY) * np.float32(6)
    halo = (
        np.float32(1.5) * np.exp(-radius / np.float32(0.07))
        + np.float32(0.85) * np.exp(-radius / np.float32(0.22))
        + np.float32(0.1)
    )
    veil = (disc + halo) * np.float32(seen * severity)
    ground = (geometry.facing == UP) & (geometry.y_m < 0.3)
    spread = np.float32(width * 0.035) * (1 + np.clip(v, 0, None) / np.float32(height))
    streak = np.exp(-np.square(u / spread)) * ground * np.float32((0.5 + 1.1 * wetness) * severity * seen)
    streak *= geometry.depth_m / (geometry.depth_m + np.float32(4))
    image += (veil + streak)[..., None] * warm
    for step, size, colour in (
        (0.5, 0.03, (0.2, 0.5, 0.25)),
        (1.35, 0.05, (0.5, 0.3, 0.15)),
        (1.7, 0.025, (0.2, 0.3, 0.55)),
    ):
        ghost_u, ghost_v = sun_u + step * (width - 2 * sun_u), sun_v + step * (height - 2 * sun_v)
        ghost = np.hypot(u + np.float32(sun_u - ghost_u), v + np.float32(sun_v - ghost_v)) / np.float32(width)
        image += (np.clip((np.float32(size) - ghost) * 120, 0, 1) * np.float32(0.22 * severity * seen))[
            ..., None
        ] * np.array(colour, np.float32)


def add_rain(image: FloatArray, geometry: Geometry, severity: float, light: float, rng: np.random.Generator) -> None:
    """Streaks of falling drops (in place): near ones long and few, far ones short, hidden by nearer surfaces."""
    height, width = image.shape[:2]
    layer = np.zeros((height, width), np.uint8)
    slant = float(rng.uniform(-0.25, 0.25))
    scale = width / 256
    for count, length, depth, value in ((190, 0.045, 14.0, 70), (110, 0.085, 6.0, 105), (42, 0.17, 2.5, 150)):
        number = int(count * severity)
        us, vs = rng.uniform(-0.1, 1.1, number) * width, rng.uniform(-0.1, 1.0, number) * height
        lengths = rng.uniform(0.6, 1.3, number) * length * height
        for u, v, stretch in zip(us.tolist(), vs.tolist(), lengths.tolist(), strict=True):
            column, row = min(max(int(u), 0), width - 1), min(max(int(v), 0), height - 1)
            if geometry.depth_m[row, column] > depth:
                end = (round(8 * (u + slant * stretch)), round(8 * (v + stretch)))
                cv2.line(layer, (round(8 * u), round(8 * v)), end, value, max(1, round(scale * 0.9)), cv2.LINE_AA, 3)
    alpha = layer.astype(np.float32)[..., None] / np.float32(255) * np.float32(0.35 + 0.5 * severity)
    image += alpha * (np.float32(light) * np.array([0.95, 1.0, 1.06], np.float32) - image)


def add_flakes(
    image: FloatArray, geometry: Geometry, severity: float, light: FloatArray, rng: np.random.Generator
) -> None:
    """Falling snow (in place): flakes at random depths, size by depth, hidden by nearer surfaces.

    `light` is the colour of a flake, (3,).
    """
    height, width = image.shape[:2]
    layer = np.zeros((height, width), np.uint8)
    number = int(520 * severity)
    depths = 1.7 + 22.0 * rng.random(number) ** 1.6
    us, vs = rng.uniform(0, width, number), rng.uniform(0, height, number)
    sizes = geometry.camera.focal_px * 0.0145 / depths * rng.uniform(0.6, 1.3, number)
    wind = rng.uniform(-0.8, 0.8)
    for u, v, depth, size in zip(us.tolist(), vs.tolist(), depths.tolist(), sizes.tolist(), strict=True):
        if geometry.depth_m[min(int(v), height - 1), min(int(u), width - 1)] <= depth:
            continue
        value = int(min(235, 90 + 120 * min(size, 1.2)))
        if size > 1.4:  # near flakes blur along their fall
            cv2.ellipse(
                layer,
                (round(8 * u), round(8 * v)),
                (round(8 * size), round(12 * size)),
                15 * wind,
                0,
                360,
                value // 2 + 40,
                -1,
                cv2.LINE_AA,
                3,
            )
        else:
            cv2.circle(layer, (round(8 * u), round(8 * v)), max(4, round(8 * size)), value, -1, cv2.LINE_AA, 3)
    layer = cv2.blur(layer, (3, 3)) if width >= 512 else layer
    image += layer.astype(np.float32)[..., None] / np.float32(255) * (light - image)


def add_lens_drops(image: FloatArray, severity: float, rng: np.random.Generator) -> None:
    """Drops on the lens (in place): each shows the blurred scene upside down with a bright rim."""
    height, width = image.shape[:2]
    blurred = cv2.blur(image, (max(3, width // 50 | 1), max(3, width // 50 | 1)))
    for _ in range(int(rng.integers(5, 9 + int(14 * severity)))):
        radius = float(rng.uniform(0.008, 0.026)) * width * (0.5 + 0.5 * severity)
        u, v = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        top, bottom = max(0, int(v - radius)), min(height, int(v + radius) + 2)
        left, right = max(0, int(u - radius)), min(width, int(u + radius) + 2)
        if bottom <= top or right <= left:
            continue
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - v)
        dx = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - u)
        distance = np.sqrt(dx * dx + dy * dy * np.float32(0.8)) / np.float32(radius)
        alpha = np.clip((1 - distance) * np.float32(radius * 0.7), 0, 1) * np.float32(0.85)
        rows = np.clip(v - dy * 3.2, 0, height - 1).astype(np.int32)
        columns = np.clip(u - dx * 3.2, 0, width - 1).astype(np.int32)
        inside = (
            blurred[rows, columns]
            * (1 + np.float32(0.35) * np.clip(dy / np.float32(radius), -1, 1) * distance)[..., None]
        )
        image[top:bottom, left:right] += alpha[..., None] * (inside - image[top:bottom, left:right])


def develop(
    image: FloatArray, city: CityStyle, street: Street, *, gain: float, softness: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Sensor and picture processing: white balance, shot and read noise, highlight shoulder, gamma; uint8 (H, W, 3)."""
    balance = np.array(
        [street.tint[0] * (1 + 0.07 * city.warmth), street.tint[1], street.tint[2] * (1 - 0.09 * city.warmth)],
        np.float32,
    )
    image = image * balance
    if softness > 0:
        image = cv2.GaussianBlur(image, (0, 0), softness)
    np.clip(image, 0, 8, out=image)
    sigma = np.sqrt(image * np.float32(0.00006 * gain) + np.float32(0.0000012 * gain * gain))
    image = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    # A response curve by table: gamma, then a shoulder that keeps highlights apart.
    levels = np.clip(image * np.float32(1024), 0, 4095).astype(np.int32)
    developed: NDArray[np.uint8] = _response(city.contrast)[levels]
    return developed


def _response(contrast: float) -> NDArray[np.uint8]:
    if contrast not in _CURVES:
        value = np.arange(4096, dtype=np.float64) / 1024
        knee = np.where(value < 0.6, value, 0.6 + 0.4 * (1 - np.exp(-(value - 0.6) / 0.4)))
        tone = knee ** (1 / 2.2)
        _CURVES[contrast] = np.clip(255 * (0.5 + (tone - 0.5) * contrast) + 0.5, 0, 255).astype(np.uint8)
    return _CURVES[contrast]


_CURVES: dict[float, NDArray[np.uint8]] = {}
