"""Cities: what differs between two streets under the same sky; `world.yaml` has their figures."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from semla_ros.errors import ConfigError, known_names

Colour = tuple[int, int, int]  # sRGB, 0..255


@dataclass(frozen=True, kw_only=True)
class CityStyle:
    """Camera, street profile, architecture, traffic and plants of one city. Lengths in metres."""

    name: str
    title: str  # how captions speak of it: "an old town"
    camera_height_m: float
    focal: float  # focal length as a share of the image width
    pitch_deg: float  # downwards is positive
    left_traffic: bool = False
    lanes: int = 1  # lanes per direction
    lane_width_m: float = 3.3
    parking_lane_m: float = 2.1  # 0: nobody parks
    verge_m: float = 1.2  # grass (or dust) between kerb and sidewalk
    sidewalk_m: float = 2.6
    front_yard_m: float = 0.5  # between sidewalk and buildings
    paved_yard: bool = False
    kerb_m: float = 0.12
    building_height_m: tuple[float, float] = (8.0, 16.0)
    building_length_m: tuple[float, float] = (9.0, 18.0)
    building_density: float = 0.8  # share of blocks that are built up
    roof: Literal["gable", "flat"] = "flat"
    facades: tuple[Colour, ...] = ((170, 160, 145), (150, 120, 100), (190, 185, 175), (120, 118, 115))
    window_period_m: tuple[float, float] = (2.6, 3.1)  # along the facade, upwards
    window_share: tuple[float, float] = (0.42, 0.52)
    glass: Colour = (60, 72, 84)
    tree_density: float = 0.35  # per 8 m of verge
    tree_height_m: tuple[float, float] = (5.0, 9.0)
    hedge_density: float = 0.3
    leaves: tuple[Colour, ...] = ((62, 92, 40), (80, 105, 48), (52, 78, 42))
    grass: Colour = (108, 120, 62)
    road: Colour = (98, 98, 100)
    sidewalk: Colour = (140, 136, 132)
    marks: float = 1.0  # how fresh the paint is, 0..1
    junction_density: float = 0.3
    crossing_density: float = 0.25
    person_density: float = 1.6  # expected people per side and block of 24 m
    parked_density: float = 0.3  # per parking slot
    oncoming_density: float = 0.6  # vehicles per 24 m of oncoming lane
    lead_probability: float = 0.7
    bus_share: float = 0.2
    sign_density: float = 0.9  # per side and block
    lamp_spacing_m: float = 24.0
    lamp_height_m: float = 6.5
    lamp_colour: Colour = (255, 205, 140)
    pole_colour: Colour = (108, 110, 112)
    vehicles: Literal["modern", "boxy", "rickshaw"] = "modern"
    haze: float = 0.0012  # clear-day extinction per metre
    warmth: float = 0.0  # white balance: -1 cold .. 1 warm
    contrast: float = 1.0
    indoor: bool = False
    ceiling_m: float = 3.0  # indoors only


def world_table(name: str) -> dict[str, Any]:
    """One of the tables of `world.yaml`, lists as tuples."""
    table: dict[str, Any] = _frozen(_tables()[name])
    return table


def palette(name: str) -> tuple[Colour, ...]:
    """Colours of `world.yaml`."""
    colours: tuple[Colour, ...] = world_table("palettes")[name]
    return colours


@functools.cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("world.yaml").read_text(encoding="utf-8"))
    return tables


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


CITIES: dict[str, CityStyle] = {name: CityStyle(name=name, **values) for name, values in world_table("cities").items()}


def city_style(city: str | CityStyle) -> CityStyle:
    """Look a city up by name; a style passes through.

    Raises:
        ConfigError: The name is unknown.
    """
    if isinstance(city, CityStyle):
        return city
    if city not in CITIES:
        raise ConfigError(f"unknown city {city!r}; {known_names(city, CITIES)}")
    return CITIES[city]
