"""Light on surfaces: sky, sun, lamps and headlights, in linear RGB before the atmosphere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.world import noise
from semla_ros.lab.world.canvas import DOWN, FRONT, LEFT, NONE, RIGHT, ROUND, UP, Geometry, linear
from semla_ros.lab.world.cities import CityStyle
from semla_ros.lab.world.classes import ROAD, SIDEWALK, SKY, TERRAIN, VEGETATION
from semla_ros.lab.world.conditions import Conditions
from semla_ros.lab.world.street import Street

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Weather:
    """Conditions turned into physical quantities of the open air."""

    ambient: FloatArray  # (3,) light of the sky on an open surface
    sun: FloatArray  # (3,) light of the sun across its rays; zero under clouds
    sun_azimuth: float
    sun_elevation: float
    zenith: FloatArray  # (3,) colour of the upper sky
    horizon: FloatArray  # (3,) colour of the sky at the horizon
    overcast: float  # 0..1: how uniform the sky is
    extinction: float  # 1/m
    airlight: FloatArray  # (3,) what distance fades to
    lamps: float  # 0..1: how far artificial light is on
    gain: float  # sensor gain over a clear day
    sunset: float  # 0..1: clouds lose the light


def weather_of(conditions: Conditions, city: CityStyle, street: Street) -> Weather:
    """Physical quantities of the open air under `conditions`."""
    c = conditions
    night_level = math.exp(-5.6 * c.night)
    dusk_level = math.exp(-1.9 * c.dusk)
    level = night_level * dusk_level
    overcast = max(0.95 * _soft(c.rain), 0.9 * _soft(c.snow), 0.98 * _soft(c.fog))
    # The camera opens up in the dark, but not all the way.
    exposure = street.exposure * level**-0.32 * (1.0 - 0.52 * c.glare) * (1 + 0.12 * c.snow)
    blue_hour = np.array([0.62, 0.56, 1.0], np.float32)
    night_sky = np.array([0.75, 0.85, 1.3], np.float32)
    sky_colour = _mix(np.array([0.88, 1.0, 1.17], np.float32), blue_hour, c.dusk)
    sky_colour = _mix(sky_colour, night_sky, c.night)
    grey = np.array([0.97, 1.0, 1.03], np.float32)
    sky_colour = _mix(sky_colour, grey * (1 if c.night < 0.5 else 0.9), overcast * (1 - 0.6 * c.dusk))
    ambient = sky_colour * np.float32(exposure * level * (0.46 + 0.12 * overcast - 0.12 * c.rain))
    low_sun = max(c.dusk, c.glare)
    sun_colour = _mix(np.array([1.06, 1.0, 0.86], np.float32), np.array([1.25, 0.62, 0.22], np.float32), low_sun)
    sun_level = exposure * 0.95 * night_level * (1 - 0.75 * c.dusk) * (1 - overcast) * (1 - 0.25 * street.clouds)
    elevation = street.sun_elevation * (1 - low_sun) + math.radians(7) * low_sun
    azimuth = street.sun_azimuth
    if c.glare > 0:
        ahead = 0.28 * math.sin(street.sun_azimuth * 3)
        azimuth = azimuth * (1 - min(1, 3 * c.glare)) + ahead * min(1.0, 3 * c.glare)
    zenith = np.array([0.2, 0.36, 0.72], np.float32) * np.float32(level * exposure)
    zenith = _mix(zenith, np.array([0.1, 0.1, 0.3], np.float32) * np.float32(exposure * max(level, 0.02)) * 2.2, c.dusk)
    horizon = np.array([0.62, 0.72, 0.86], np.float32) * np.float32(level * exposure)
    sunset = np.array([0.95, 0.36, 0.12], np.float32) * np.float32(exposure * night_level * 0.5)
    horizon = _mix(horizon, sunset, min(1.0, 1.4 * c.dusk) * (1 - 0.8 * overcast))
    horizon = _mix(
        horizon, np.array([0.95, 0.78, 0.5], np.float32) * np.float32(exposure), 0.8 * c.glare * (1 - c.night)
    )
    moonless = np.float32(1 - 0.6 * c.night)
    zenith, horizon = zenith * moonless, horizon * moonless
    cloud = (
        moonless
        * np.array([0.7, 0.72, 0.75], np.float32)
        * np.float32(exposure * level * (1 - 0.38 * c.rain + 0.1 * c.snow))
    )
    glow = np.array(linear(street.lamp_colour), np.float32) * np.float32(
        0.013 * c.night * (1 + 1.5 * overcast)
    )  # city light
    zenith = _mix(zenith, cloud * np.float32(0.9), overcast) + glow * np.float32(0.35)
    horizon = _mix(horizon, cloud, overcast) + glow
    fog = 0.085 * c.fog**1.5
    extinction = city.haze + fog + 0.013 * c.rain**1.2 + 0.017 * c.snow**1.2 + 0.004 * c.glare
    airlight = horizon * np.float32(1.0 - 0.1 * c.fog)
    return Weather(
        ambient=ambient,
        sun=sun_colour * np.float32(sun_level),
        sun_azimuth=azimuth,
        sun_elevation=elevation,
        zenith=zenith,
        horizon=horizon,
        overcast=overcast,
        extinction=extinction,
        airlight=airlight,
        lamps=_step(c.darkness + 0.15 * max(c.fog, c.rain), 0.22, 0.5),
        gain=level**-0.5 * (1 + 2.2 * c.tunnel),
        sunset=c.dusk,
    )


def texture(geometry: Geometry) -> tuple[FloatArray, FloatArray]:
    """World-anchored noise per pixel: fine (fades with distance) and coarse, each about -1..1, shape (H, W)."""
    p = geometry.x_m + geometry.along_m
    q = geometry.y_m * np.float32(1.3) + geometry.along_m * np.float32(1.7)
    fine = noise.look_up(noise.rough(), p * np.float32(9), q * np.float32(9))
    fine *= np.float32(10) / (geometry.depth_m + np.float32(10))
    coarse = noise.look_up(noise.smooth(), p * np.float32(14) + np.float32(4096), q * np.float32(14))
    return fine, coarse


def dress_facades(geometry: Geometry, lit_level: float) -> None:
    """Put windows on facades: changes `albedo` and `emission` of `geometry` in place; edges are antialiased."""
    index = geometry.window_index[geometry.surface]
    rows, columns = np.nonzero(index >= 0)
    if rows.size == 0:
        return
    which = index[rows, columns]
    grids = geometry.windows
    table = np.array(
        [
            (g.along_z, g.origin_m, g.base_m, g.top_m, *g.period_m, *g.share, *g.glass, g.lit_share, g.key)
            for g in grids
        ],
        np.float32,
    )[which]  # (P, 13)
    depth = geometry.depth_m[rows, columns]
    along_z = table[:, 0] > 0
    s = np.where(along_z, geometry.along_m[rows, columns], geometry.x_m[rows, columns]) - table[:, 1]
    y = geometry.y_m[rows, columns] - table[:, 2]
    pixel = depth / np.float32(geometry.camera.focal_px)  # metres per pixel facing the camera
    x = np.abs(geometry.x_m[rows, columns] - np.float32(geometry.camera.x_m)) + np.float32(0.5)
    pixel_s = np.where(along_z, pixel * depth / x, pixel).astype(np.float32)
    cell_s, cell_y = s / table[:, 4], y / table[:, 5]
    column, storey = np.floor(cell_s), np.floor(cell_y)
    cover = _box_cover(cell_s - column, table[:, 6], pixel_s / table[:, 4])
    cover *= _box_cover(cell_y - storey, table[:, 7], pixel / table[:, 5])
    cover *= (storey * table[:, 5] + table[:, 2] + table[:, 5] * 0.85 < table[:, 3]) & (y > 0)
    hashed = (
        (column.astype(np.int64) * 73856093)
        ^ (storey.astype(np.int64) * 19349663)
        ^ (table[:, 12].astype(np.int64) * 83492791)
    )
    value = ((hashed * 2654435761) >> 9 & 1023).astype(np.float32) / np.float32(1023)
    glass = table[:, 8:11] * (np.float32(0.6) + np.float32(1.1) * value[:, None] ** 3)
    albedo = geometry.albedo[rows, columns]
    geometry.albedo[rows, columns] = albedo + (glass - albedo) * cover[:, None]
    if lit_level > 0:
        lit = cover * (value < table[:, 11]) * (np.float32(0.25) + np.float32(2.2) * value)
        warm = np.array([1.0, 0.72, 0.38], np.float32)
        geometry.emission[rows, columns] += lit[:, None] * warm * np.float32(0.55 * lit_level)


def _box_cover(phase: FloatArray, share: FloatArray, pixel: FloatArray) -> FloatArray:
    """How much of a pixel (a share `pixel` of the period) the window in the middle of its period covers."""
    sharp = np.clip((share * 0.5 - np.abs(phase - 0.5)) / np.maximum(pixel, 1e-3) + 0.5, 0, 1)
    mean: FloatArray = sharp + (share - sharp) * np.clip(pixel * 1.6 - 0.6, 0, 1)
    return mean


def light_surfaces(
    geometry: Geometry,
    weather: Weather,
    street: Street,
    city: CityStyle,
    conditions: Conditions,
    enclosed_from_m: float | None,
) -> FloatArray:
    """Light that falls on each pixel's surface, linear RGB, shape (H, W, 3)."""
    facing = geometry.facing
    azimuth, elevation = weather.sun_azimuth, weather.sun_elevation
    direct = np.zeros(7, np.float32)
    direct[UP] = math.sin(elevation)
    direct[RIGHT] = max(0.0, math.cos(elevation) * math.sin(azimuth))
    direct[LEFT] = max(0.0, -math.cos(elevation) * math.sin(azimuth))
    direct[FRONT] = max(0.0, -math.cos(elevation) * math.cos(azimuth))
    direct[ROUND] = 0.35 + 0.35 * direct[FRONT]
    diffuse = np.zeros(7, np.float32)
    diffuse[[UP, LEFT, RIGHT, FRONT, ROUND, DOWN, NONE]] = (1.0, 0.7, 0.7, 0.72, 0.75, 0.35, 0.0)
    sunlit: FloatArray = direct[facing]
    ground = facing == UP
    sunlit *= 1 - np.float32(0.85) * geometry.shadow * (ground & (geometry.y_m < 0.3))
    if conditions.dusk > 0:  # the low sun only reaches what stands above the roofs across the street
        sunlit *= 1 - np.float32(conditions.dusk) * np.clip(1 - (geometry.y_m - 3) / 5, 0, 1) * np.float32(0.9)
    open_sky = diffuse[facing] * (np.float32(0.82) + np.float32(0.18) * np.clip(geometry.y_m / 4, 0, 1))
    contact = 1 - np.float32(0.45) * geometry.shadow * (geometry.y_m < 0.3)
    light: FloatArray = (open_sky * contact)[..., None] * weather.ambient + sunlit[..., None] * weather.sun
    inside = None
    if enclosed_from_m is not None:
        inside = np.clip(
            (geometry.depth_m - np.float32(enclosed_from_m)) / np.float32(6) + np.float32(enclosed_from_m <= 0), 0, 1
        )
        light *= (1 - inside * np.float32(0.985))[..., None]
        light += (inside * _enclosure_light(geometry, street, city, conditions))[..., None] * enclosure_colour(
            street, city
        )
    if weather.lamps > 0 and not city.indoor:
        outside = 1 - inside if inside is not None else np.float32(1)
        lamp = np.array(linear(street.lamp_colour), np.float32)
        strength = np.float32(0.75 * weather.lamps * max(conditions.night, 0.35 * conditions.dusk))
        light += (outside * strength * _street_lamps(geometry, street, city))[..., None] * lamp
    beam = max(conditions.night, 0.3 * conditions.dusk, (0.2 if city.indoor else 0.5) * conditions.tunnel)
    if beam > 0.2:
        light += (np.float32(1.5 * beam) * _headlights(geometry, city))[..., None] * np.array(
            [1.0, 0.96, 0.84], np.float32
        )
    return light


def enclosure_colour(street: Street, city: CityStyle) -> FloatArray:
    """Colour of a tunnel's (sodium) or garage's (fluorescent) lamps, linear RGB (3,)."""
    if city.indoor:
        return np.array([0.86, 1.0, 0.88], np.float32)
    return np.array([1.0, 0.62 - 0.16 * (street.skyline == 0), 0.24 - 0.1 * (street.skyline == 0)], np.float32)


def _enclosure_light(geometry: Geometry, street: Street, city: CityStyle, conditions: Conditions) -> FloatArray:
    spacing = enclosure_lamp_spacing(city)
    along = np.mod(geometry.along_m - np.float32(street.lamp_offset_m) + np.float32(spacing / 2), spacing) - np.float32(
        spacing / 2
    )
    pool = 1 / (1 + (along * along + np.square(geometry.x_m) * np.float32(0.12)) / np.float32(9))
    facing = np.array([1.0, 0.8, 0.8, 0.55, 0.6, 0.28, 0.6], np.float32)[geometry.facing]
    level = 0.46 * (1 - 0.55 * conditions.night) if city.indoor else 0.42 - 0.3 * conditions.tunnel
    contact = 1 - np.float32(0.6) * geometry.shadow * (geometry.y_m < 0.3)
    light: FloatArray = np.float32(level) * facing * (np.float32(0.22) + pool) * contact
    return light


def enclosure_lamp_spacing(city: CityStyle) -> float:
    """Distance between ceiling lamps along the street in metres."""
    return city.lamp_spacing_m if city.indoor else 11.0


def _street_lamps(geometry: Geometry, street: Street, city: CityStyle) -> FloatArray:
    spacing = np.float32(city.lamp_spacing_m)
    along = np.mod(geometry.along_m - np.float32(street.lamp_offset_m) + spacing / 2, spacing) - spacing / 2
    height = np.float32(city.lamp_height_m)
    lamp_x = np.float32(street.half_width_m - 1.2)
    down = np.clip(height - geometry.y_m, 0.4, None)
    total = np.zeros_like(geometry.x_m)
    for side in (-1, 1):
        if street.lamp_side in (0, side):
            across = geometry.x_m - side * lamp_x
            squared = along * along + across * across + down * down
            total += height * height * down / (squared * np.sqrt(squared))  # E = I cos / d**2, 1 below the lamp
    total *= geometry.y_m < height
    faces = np.array([1.0, 0.75, 0.75, 0.6, 0.65, 0.1, 0.3], np.float32)[geometry.facing]
    light: FloatArray = np.minimum(total, 1.6) * faces
    return light


def _headlights(geometry: Geometry, city: CityStyle) -> FloatArray:
    camera = geometry.camera
    z = geometry.depth_m
    sideways = (geometry.x_m - np.float32(camera.x_m) + np.float32(0.5 * camera.bend_per_m) * z * z) / (z + 1)
    side = -1.0 if city.left_traffic else 1.0
    upward = (geometry.y_m - np.float32(0.65)) / z
    # Dipped beams: cut off just below the horizon, reaching farther on the kerb's side.
    steepness = (upward + np.float32(0.012) - np.float32(0.05 * side) * np.clip(side * sideways, 0, 0.3)) * 70
    cutoff = 1 / (1 + np.exp(np.minimum(steepness, np.float32(80))))  # at 80 nothing is left, and float32 still holds
    spread = np.exp(-np.square(sideways / np.float32(0.24)))
    reach = 1 / (1 + np.square(z / np.float32(9)))
    near = 1 - np.exp(-np.square(z / np.float32(3.2)))
    faces = np.array([0.75, 0.35, 0.35, 1.0, 0.9, 0.1, 0.5], np.float32)[geometry.facing]
    light: FloatArray = faces * spread * reach * near * (cutoff + np.float32(0.05))
    return light


def paint_sky(geometry: Geometry, weather: Weather, street: Street) -> FloatArray:
    """Radiance of the sky behind every pixel, shape (H, W, 3); only used where the mask says sky."""
    camera = geometry.camera
    u = (np.arange(camera.width, dtype=np.float32)[None, :] + np.float32(0.5 - camera.width / 2)) / np.float32(
        camera.focal_px
    )
    v = (np.float32(camera.horizon_px - 0.5) - np.arange(camera.height, dtype=np.float32)[:, None]) / np.float32(
        camera.focal_px
    )
    up = np.clip(v, 0, None)
    blend = 1 - np.exp(-up * np.float32(4.2))
    sky = weather.horizon + blend[..., None] * (weather.zenith - weather.horizon)
    far = np.float32(48) / (up + np.float32(0.12))
    drift = np.float32(camera.position_m * 0.15 + street.lead_phase * 40)
    cloud = noise.look_up(noise.smooth(), u * far + np.float32(2048), far * np.float32(1.6) + drift + np.float32(0) * u)
    amount = np.clip((cloud + np.float32(street.clouds * 1.3 - 0.75)) * 1.8, 0, 1) * np.clip(up * 6, 0, 1)
    bright = (weather.horizon * np.float32(1.05) + np.float32(0.22) * weather.sun) * np.float32(1 - weather.overcast)
    lit = bright + weather.zenith * np.float32(weather.overcast * 1.15)
    sky = sky + (amount * np.float32((0.75 - 0.55 * weather.overcast) * (1 - 0.65 * weather.sunset)))[..., None] * (
        lit - sky
    )
    return np.asarray(sky, np.float32)


def cover_with_snow(geometry: Geometry, amount: float, coarse: FloatArray, fine: FloatArray) -> None:
    """Lay snow on what looks up: changes `albedo` in place. Tyres keep two tracks per lane thin."""
    ground = np.isin(geometry.mask, (ROAD, SIDEWALK, TERRAIN))
    up = (geometry.facing == UP).astype(np.float32)
    hold = up * np.where(ground, 1.0, 1.1)
    leafy = geometry.mask == VEGETATION
    hold = np.where(leafy & (geometry.facing != UP), np.float32(0.62) + np.float32(0.75) * fine, hold)
    hold = np.where(leafy & (geometry.facing == UP), np.float32(1.1), hold)
    walls = (geometry.facing == FRONT) | (geometry.facing == LEFT) | (geometry.facing == RIGHT)
    hold = np.where(walls & ~leafy, np.float32(0.12) + np.float32(0.4) * np.clip(fine, 0, 1), hold)
    track = np.abs(np.mod(np.abs(geometry.x_m), np.float32(3.3)) - np.float32(1.65))
    worn = np.clip(1 - np.abs(track - np.float32(0.75)) / np.float32(0.38), 0, 1) * (geometry.mask == ROAD)
    hold = hold - worn * np.float32(0.5)
    cover = np.clip(
        (hold * np.float32(1.75 * amount) - np.float32(0.35) + np.float32(0.35 * amount) * coarse) * 1.6, 0, 1
    )
    cover *= np.float32(min(1.0, 3 * amount))
    cover[geometry.mask == SKY] = 0
    white = np.array([0.78, 0.81, 0.85], np.float32) * (1 + np.float32(0.08) * coarse)[..., None]
    geometry.albedo[...] = geometry.albedo + cover[..., None] * (white - geometry.albedo)


def _soft(severity: float) -> float:
    return min(1.0, severity * 2.2) if severity > 0 else 0.0


def _step(value: float, low: float, high: float) -> float:
    t = min(max((value - low) / (high - low), 0.0), 1.0)
    return t * t * (3 - 2 * t)


def _mix(a: FloatArray, b: FloatArray, t: float) -> FloatArray:
    mixed: FloatArray = a + np.float32(t) * (b - a)
    return mixed
