"""One frame: lay the street out, paint it far to near, light it, put the weather before it, expose it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import ConfigError
from semla_ros.lab.world import air, lighting
from semla_ros.lab.world.camera import NEAR_M, Camera, view
from semla_ros.lab.world.canvas import Canvas, Geometry
from semla_ros.lab.world.cities import CityStyle, city_style
from semla_ros.lab.world.classes import SKY
from semla_ros.lab.world.conditions import Conditions
from semla_ros.lab.world.ground import draw_ground, draw_skyline
from semla_ros.lab.world.objects import Lamps, ObjectPainter, draw_enclosure
from semla_ros.lab.world.street import Item, Street, items_in_view, lay_out_street

_TUNNEL_CEILING_M = 5.2
_PORTAL_M = 70.0  # how far ahead the portal stands when the tunnel comes into view


@dataclass(frozen=True)
class Scene:
    """A rendered frame with its truth."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    mask: NDArray[np.uint8]  # (H, W) class index
    depth_m: NDArray[np.float32]  # (H, W) along the optical axis; sky is 1000 m


def render(
    *,
    city: str | CityStyle,
    seed: int,
    conditions: Conditions,
    width: int = 256,
    height: int = 192,
    position_m: float = 0.0,
) -> Scene:
    """Render one street scene.

    The same arguments give the same bytes. Only `tunnel` changes what stands in the scene; every other condition
    leaves mask and depth as they are.

    Args:
        city: Name of one of `CITIES`, or a style of one's own.
        seed: Which street of that city, >= 0.
        conditions: Weather and light.
        width: Pixels, 16..8192.
        height: Pixels, 16..8192.
        position_m: How far the camera has driven down the street, metres.

    Raises:
        ConfigError: Unknown city, bad size, negative seed or non-finite position.
    """
    style = city_style(city)
    for name, size in (("width", width), ("height", height)):
        if not isinstance(size, int | np.integer) or not 16 <= size <= 8192:
            raise ConfigError(f"'{name}' must be a whole number of pixels in 16..8192, got {size!r}")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"'seed' must be a whole number >= 0, got {seed!r}")
    if not math.isfinite(position_m):
        raise ConfigError(f"'position_m' must be finite, got {position_m!r}")
    seed, width, height = int(seed), int(width), int(height)
    street = lay_out_street(style, seed)
    camera = _camera(style, street, width, height, float(position_m))
    sheltered = _indoors(conditions) if style.indoor else conditions
    weather = lighting.weather_of(sheltered, style, street)
    enclosed_from = _enclosed_from(style, sheltered)
    geometry = _paint(camera, style, street, seed, sheltered, weather, enclosed_from)
    rng = np.random.default_rng([seed, 83, round(position_m * 1000) & 0xFFFFFFFF])
    image = _photograph(geometry, style, street, sheltered, weather, enclosed_from, rng)
    return Scene(image=image, mask=geometry.mask, depth_m=geometry.depth_m)


def _camera(city: CityStyle, street: Street, width: int, height: int, position_m: float) -> Camera:
    focal, horizon = view(city, width, height)
    bend = street.bend_per_m * math.sin(position_m / 190.0 + street.bend_phase)
    return Camera(width, height, focal, horizon, city.camera_height_m, street.driving_x_m, position_m, bend)


def _indoors(conditions: Conditions) -> Conditions:
    """Under a roof no weather falls and no sun shines; darkness means fewer lamps, fog a little dust."""
    return Conditions(
        night=max(conditions.night, 0.5 * conditions.dusk), fog=0.4 * conditions.fog, tunnel=conditions.tunnel
    )


def _enclosed_from(city: CityStyle, conditions: Conditions) -> float | None:
    """Depth in metres from which the road is roofed over; 0 around the camera; None in the open."""
    if city.indoor:
        return 0.0
    if conditions.tunnel <= 0:
        return None
    return max(0.0, (0.5 - conditions.tunnel) / 0.5 * _PORTAL_M)


def _paint(
    camera: Camera,
    city: CityStyle,
    street: Street,
    seed: int,
    conditions: Conditions,
    weather: lighting.Weather,
    enclosed: float | None,
) -> Geometry:
    canvas = Canvas(camera)
    items = items_in_view(city, seed, camera.position_m)
    wall = street.half_width_m + (street.sidewalk_m + 0.4 if city.indoor else 1.5)
    inside = enclosed is not None and enclosed <= 0
    if not inside:
        draw_skyline(canvas, street, seed, urban=street.skyline == 0 or city.name == "downtown")
    elevation = max(weather.sun_elevation, math.radians(14))
    length = min(1 / math.tan(elevation), 3.0)
    lamps = Lamps(
        street=2.6 * weather.lamps,
        vehicle=0.12 + 2.2 * max(weather.lamps, 0.5 * max(conditions.rain, conditions.fog, conditions.snow)),
        windows=weather.lamps * max(conditions.night, 0.7 * conditions.dusk),
        sun_shift=(-length * math.sin(weather.sun_azimuth), -length * math.cos(weather.sun_azimuth)),
        shadows=not inside and float(weather.sun.max()) > 0.02,
    )
    painter = ObjectPainter(canvas, city, street, lamps)
    if inside or enclosed is None:
        outside, within = ([], items) if inside else (items, [])
    else:
        outside = [item for item in items if item.along_m - camera.position_m < enclosed]
        within = [item for item in items if item.along_m - camera.position_m >= enclosed]
    draw_ground(canvas, city, street, items, enclosed_from_z=enclosed, wall_x_m=wall)
    if enclosed is not None:
        glow = lighting.enclosure_colour(street, city) * np.float32(1.5 - 0.7 * conditions.tunnel)
        spacing = lighting.enclosure_lamp_spacing(city)
        draw_enclosure(
            canvas,
            half_width=wall,
            ceiling=city.ceiling_m if city.indoor else _TUNNEL_CEILING_M,
            from_z=enclosed,
            lamp_glow=(float(glow[0]), float(glow[1]), float(glow[2])),
            lamp_spacing=spacing,
            lamp_offset=(street.lamp_offset_m - camera.position_m) % spacing,
            walls=city.facades[street.skyline % len(city.facades)],
            portal=not city.indoor,
            lamp_rows=((-0.45, 0.45) if street.lamp_side == 0 or city.indoor else (0.0,)),
        )
        for item in _far_to_near(within):
            if city.indoor or _fits_tunnel(item, wall):
                painter.draw(item)
    for item in _far_to_near(outside):
        painter.draw(item)
    return canvas.finish()


def _far_to_near(items: list[Item]) -> list[Item]:
    # A long thing beside the road goes by its far end, so that what stands before it along its length is drawn later.
    beside = ("building", "hedge")
    return sorted(items, key=lambda item: item.along_m + (item.length_m if item.kind in beside else 0.0), reverse=True)


def _fits_tunnel(item: Item, wall_x_m: float) -> bool:
    if item.kind not in ("car", "van", "rickshaw", "bus", "person", "sign"):
        return False
    return abs(item.x_m) + item.width_m / 2 < wall_x_m


def _photograph(
    geometry: Geometry,
    city: CityStyle,
    street: Street,
    conditions: Conditions,
    weather: lighting.Weather,
    enclosed: float | None,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    c = conditions
    sheltered = enclosed is not None and enclosed <= NEAR_M
    lighting.dress_facades(geometry, weather.lamps * max(c.night, 0.7 * c.dusk))
    fine, coarse = lighting.texture(geometry)
    geometry.albedo[...] *= np.clip(1 + geometry.grain * (2.2 * fine + coarse), 0.15, 2.5)[..., None]
    wetness = 0.0 if sheltered else c.rain
    if wetness > 0:
        wet = (geometry.facing == 0) * np.float32(0.45 * min(1.0, 1.6 * wetness))
        geometry.albedo[...] *= (1 - wet)[..., None]
    if c.snow > 0 and not sheltered:
        lighting.cover_with_snow(geometry, c.snow, coarse, fine)
    light = lighting.light_surfaces(geometry, weather, street, city, c, enclosed)
    image = geometry.albedo * light + geometry.emission
    sky = geometry.mask == SKY
    if sky.any():
        image[sky] = lighting.paint_sky(geometry, weather, street)[sky]
    if wetness > 0:
        air.reflect_on_wet_ground(image, geometry, wetness, coarse)
    air.add_atmosphere(image, geometry, weather, headlights=c.night, enclosed_from_m=enclosed)
    if weather.lamps > 0.05 or c.glare > 0 or city.indoor:
        air.bloom(image, 0.35 + 0.5 * max(c.fog, c.rain, c.glare, c.snow))
    if c.glare > 0 and not sheltered:
        air.add_glare(image, geometry, street, c.glare * (1 - 0.9 * c.night), wetness)
    ambient = float(weather.ambient.mean())
    if c.snow > 0 and not sheltered:
        lit = np.float32(1.6) * weather.ambient + np.float32(0.35 * c.night) * np.array([1.0, 0.95, 0.85], np.float32)
        air.add_flakes(image, geometry, c.snow, lit, rng)
    if c.rain > 0 and not sheltered:
        air.add_rain(image, geometry, c.rain, 1.5 * ambient + 0.28 * c.night, rng)
        if c.rain > 0.15:
            air.add_lens_drops(image, c.rain, rng)
    softness = geometry.camera.width / 256 * (0.35 * c.rain + 0.3 * c.fog)
    return air.develop(image, city, street, gain=weather.gain, softness=softness if softness > 0.15 else 0.0, rng=rng)
