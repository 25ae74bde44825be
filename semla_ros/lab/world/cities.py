"""Cities: what differs between two streets under the same sky."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semla_ros.errors import ConfigError

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


_STYLES = (
    CityStyle(
        name="old-town",
        title="an old town",
        camera_height_m=1.35,
        focal=0.92,
        pitch_deg=2.0,
        roof="gable",
        facades=((196, 174, 134), (176, 132, 104), (206, 196, 176), (160, 98, 78), (146, 140, 132), (188, 160, 150)),
        building_height_m=(7.0, 12.0),
        building_length_m=(7.0, 13.0),
        building_density=0.85,
        tree_density=0.28,
    ),
    CityStyle(
        name="boulevard",
        title="a wide boulevard",
        camera_height_m=1.6,
        focal=0.8,
        pitch_deg=3.0,
        lanes=2,
        verge_m=2.6,
        sidewalk_m=3.4,
        front_yard_m=0.4,
        building_height_m=(14.0, 22.0),
        facades=((204, 192, 164), (186, 176, 158), (170, 166, 160), (214, 206, 188), (132, 124, 116)),
        window_period_m=(2.2, 3.4),
        window_share=(0.4, 0.62),
        tree_density=0.8,
        tree_height_m=(6.0, 10.0),
        hedge_density=0.1,
        leaves=((84, 112, 46), (98, 122, 56), (70, 98, 44)),
        person_density=2.1,
        lamp_colour=(255, 238, 210),
        lamp_height_m=7.5,
        warmth=0.15,
        bus_share=0.28,
    ),
    CityStyle(
        name="suburb",
        title="a leafy suburb",
        camera_height_m=1.2,
        focal=1.05,
        pitch_deg=1.0,
        verge_m=1.8,
        sidewalk_m=1.8,
        front_yard_m=5.0,
        roof="gable",
        building_height_m=(4.0, 6.5),
        building_length_m=(8.0, 12.0),
        building_density=0.65,
        facades=((220, 214, 202), (178, 116, 90), (200, 178, 140), (150, 158, 166), (128, 132, 120)),
        tree_density=0.6,
        hedge_density=0.7,
        leaves=((58, 96, 38), (76, 112, 50), (104, 112, 44), (122, 92, 44)),
        grass=(104, 128, 58),
        person_density=1.3,
        oncoming_density=0.4,
        lamp_spacing_m=30.0,
        lamp_colour=(255, 186, 104),
        bus_share=0.16,
        warmth=0.05,
    ),
    CityStyle(
        name="downtown",
        title="a downtown street",
        camera_height_m=1.5,
        focal=0.7,
        pitch_deg=1.0,
        lanes=2,
        lane_width_m=3.2,
        parking_lane_m=0.0,
        verge_m=0.0,
        sidewalk_m=4.5,
        front_yard_m=0.0,
        paved_yard=True,
        building_height_m=(22.0, 55.0),
        building_length_m=(14.0, 24.0),
        building_density=0.95,
        facades=((112, 120, 128), (96, 100, 104), (150, 150, 150), (84, 92, 104), (138, 126, 112)),
        window_period_m=(1.8, 3.4),
        window_share=(0.72, 0.66),
        glass=(86, 108, 128),
        tree_density=0.3,
        hedge_density=0.15,
        person_density=2.8,
        oncoming_density=1.0,
        lead_probability=0.85,
        bus_share=0.3,
        lamp_colour=(236, 242, 255),
        lamp_spacing_m=20.0,
        warmth=-0.2,
        road=(84, 86, 90),
        contrast=1.06,
    ),
    CityStyle(
        name="harbour",
        title="a harbour district",
        camera_height_m=2.1,
        focal=0.86,
        pitch_deg=4.5,
        lane_width_m=3.7,
        verge_m=2.2,
        sidewalk_m=2.2,
        front_yard_m=4.0,
        building_height_m=(6.0, 11.0),
        building_length_m=(16.0, 24.0),
        building_density=0.7,
        facades=((130, 136, 138), (104, 116, 128), (150, 106, 84), (118, 98, 86), (168, 168, 162)),
        window_period_m=(4.5, 4.2),
        window_share=(0.6, 0.22),
        tree_density=0.22,
        hedge_density=0.35,
        leaves=((78, 92, 52), (92, 98, 58), (66, 82, 54)),
        grass=(128, 122, 80),
        person_density=1.3,
        vehicles="boxy",
        lamp_colour=(255, 170, 84),
        lamp_height_m=8.5,
        warmth=-0.1,
        haze=0.003,
        marks=0.75,
        bus_share=0.25,
    ),
    CityStyle(
        name="monsoon",
        title="a crowded bazaar road",
        camera_height_m=1.45,
        focal=0.78,
        pitch_deg=2.0,
        left_traffic=True,
        lane_width_m=3.5,
        parking_lane_m=1.6,
        verge_m=2.6,
        sidewalk_m=1.2,
        front_yard_m=0.8,
        kerb_m=0.0,
        building_height_m=(4.0, 12.0),
        building_length_m=(5.0, 10.0),
        building_density=0.85,
        facades=((206, 150, 92), (120, 164, 168), (204, 186, 120), (168, 116, 132), (176, 168, 150), (132, 150, 110)),
        window_period_m=(2.0, 3.0),
        window_share=(0.5, 0.4),
        tree_density=0.3,
        leaves=((70, 104, 44), (96, 118, 48), (56, 88, 52)),
        grass=(168, 138, 100),
        road=(116, 108, 98),
        sidewalk=(158, 144, 124),
        marks=0.3,
        junction_density=0.2,
        crossing_density=0.05,
        person_density=4.0,
        parked_density=0.4,
        oncoming_density=1.2,
        lead_probability=0.9,
        bus_share=0.25,
        sign_density=0.8,
        vehicles="rickshaw",
        pole_colour=(120, 112, 100),
        haze=0.006,
        warmth=0.5,
        contrast=0.95,
    ),
    CityStyle(
        name="alpine",
        title="a mountain village",
        camera_height_m=1.4,
        focal=0.98,
        pitch_deg=0.5,
        verge_m=1.6,
        sidewalk_m=1.8,
        front_yard_m=2.5,
        roof="gable",
        building_height_m=(5.0, 9.0),
        building_density=0.6,
        facades=((214, 206, 190), (128, 92, 62), (112, 82, 58), (182, 158, 122)),
        tree_density=0.45,
        tree_height_m=(7.0, 13.0),
        leaves=((40, 70, 44), (52, 82, 50), (62, 88, 46)),
        grass=(96, 128, 62),
        lamp_spacing_m=28.0,
        haze=0.0006,
        warmth=-0.1,
    ),
    CityStyle(
        name="garage",
        title="a parking garage",
        camera_height_m=1.3,
        focal=0.75,
        pitch_deg=2.0,
        lane_width_m=2.9,
        parking_lane_m=2.5,
        verge_m=0.0,
        sidewalk_m=1.6,
        front_yard_m=0.0,
        kerb_m=0.1,
        building_density=0.0,
        tree_density=0.0,
        hedge_density=0.0,
        facades=((176, 174, 168), (150, 150, 148), (188, 182, 170)),
        road=(120, 120, 118),
        sidewalk=(150, 148, 144),
        pole_colour=(168, 164, 152),
        junction_density=0.0,
        crossing_density=0.12,
        person_density=0.9,
        parked_density=0.65,
        oncoming_density=0.25,
        lead_probability=0.45,
        bus_share=0.1,
        sign_density=0.9,
        lamp_spacing_m=6.0,
        lamp_colour=(226, 240, 232),
        indoor=True,
    ),
)

CITIES: dict[str, CityStyle] = {style.name: style for style in _STYLES}

SOURCE_CITIES: tuple[str, ...] = ("old-town", "downtown")  # the base model sees no other city


def city_style(city: str | CityStyle) -> CityStyle:
    """Look a city up by name; a style passes through.

    Raises:
        ConfigError: The name is unknown.
    """
    if isinstance(city, CityStyle):
        return city
    if city not in CITIES:
        raise ConfigError(f"unknown city {city!r}; expected one of {', '.join(CITIES)}")
    return CITIES[city]
