"""What stands along a street: laid out block by block from the seed, so that a drive never runs out of street."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from semla_ros.lab.world.cities import CityStyle, Colour, palette

BLOCK_M = 24.0
VISIBLE_M = 170.0
_JUNCTION_M = 9.0  # width of a cross street

_NONE: Colour = (0, 0, 0)
_CAR_COLOURS, _BUS_COLOURS = palette("cars"), palette("buses")
_ROOFS, _CLOTHES, _HILLS = palette("roofs"), palette("clothes"), palette("hills")


class Item(NamedTuple):
    """One thing on the street. `along_m` is where its near end lies, measured along the street."""

    kind: str
    along_m: float
    x_m: float  # its middle, or the facade's line for buildings and hedges
    length_m: float  # along the street
    width_m: float
    height_m: float
    colour: Colour
    second_colour: Colour
    variant: int  # 0..2**16: whatever else differs
    towards_camera: bool = False


class Street(NamedTuple):
    """Street-wide choices of one seed."""

    lanes: int
    half_width_m: float  # from the middle to the kerb
    verge_m: float
    sidewalk_m: float
    yard_m: float
    lane_width_m: float
    parking_m: float
    bend_per_m: float
    bend_phase: float
    skyline: int
    hills: Colour
    foliage_shift: float
    lamp_offset_m: float
    lamp_side: int  # -1, 1, or 0: both
    lamp_colour: Colour
    sun_azimuth: float  # radians from straight ahead, positive to the right
    sun_elevation: float
    clouds: float
    exposure: float
    tint: tuple[float, float, float]
    lead_phase: float
    lead_gap_m: float
    driving_x_m: float

    @property
    def facade_m(self) -> float:
        """Distance of the building line from the middle of the street."""
        return self.half_width_m + self.verge_m + self.sidewalk_m + self.yard_m


@lru_cache(maxsize=256)
def lay_out_street(city: CityStyle, seed: int) -> Street:
    """Choose what holds for the whole street."""
    rng = np.random.default_rng([seed, 11])
    lanes = city.lanes if rng.random() < 0.75 else max(1, 3 - city.lanes)
    if city.indoor:
        lanes = city.lanes
    scale = rng.uniform(0.9, 1.12)
    lane_width = city.lane_width_m * scale
    parking = city.parking_lane_m if rng.random() < 0.8 else 0.0
    half_width = lanes * lane_width + parking
    side = -1.0 if city.left_traffic else 1.0
    lamp_warm = rng.random()
    lamp = city.lamp_colour if lamp_warm < 0.7 else ((235, 240, 255) if lamp_warm < 0.85 else (255, 176, 92))
    return Street(
        lanes=lanes,
        half_width_m=half_width,
        verge_m=city.verge_m * rng.uniform(0.5, 1.5),
        sidewalk_m=city.sidewalk_m * rng.uniform(0.8, 1.25),
        yard_m=city.front_yard_m * rng.uniform(0.6, 1.6),
        lane_width_m=lane_width,
        parking_m=parking,
        bend_per_m=0.0 if city.indoor else float(rng.normal(0.0, 0.0016)),
        bend_phase=rng.uniform(0, 2 * math.pi),
        skyline=int(rng.integers(3)),
        hills=_HILLS[int(rng.integers(len(_HILLS)))],
        foliage_shift=rng.uniform(0.78, 1.22),
        lamp_offset_m=rng.uniform(0, city.lamp_spacing_m),
        lamp_side=int(rng.integers(-1, 2)),
        lamp_colour=lamp,
        sun_azimuth=rng.uniform(-math.pi, math.pi),
        sun_elevation=math.radians(rng.uniform(28, 62)),
        clouds=rng.uniform(0.0, 0.75),
        exposure=rng.uniform(0.86, 1.14),
        tint=(rng.uniform(0.96, 1.04), 1.0, rng.uniform(0.96, 1.04)),
        lead_phase=rng.uniform(0, 2 * math.pi),
        lead_gap_m=rng.uniform(9.0, 26.0),
        driving_x_m=side * lane_width * (0.5 + (lanes - 1) * float(rng.integers(0, 2))),
    )


def items_in_view(city: CityStyle, seed: int, position_m: float) -> list[Item]:
    """Everything between the camera and the far end of the view, in no particular order."""
    street = lay_out_street(city, seed)
    first = math.floor((position_m - BLOCK_M) / BLOCK_M)
    last = math.floor((position_m + VISIBLE_M) / BLOCK_M)
    found: list[Item] = []
    for block in range(first, last + 1):
        found.extend(_block(city, seed, block))
    found.extend(_lamps(city, street, position_m))
    found.extend(_traffic(city, street, seed, position_m))
    return found


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    colour = colours[int(rng.integers(len(colours)))]
    red, green, blue = (int(min(255, max(0, channel + rng.normal(0, 9)))) for channel in colour)
    return red, green, blue


@lru_cache(maxsize=4096)
def _block(city: CityStyle, seed: int, block: int) -> tuple[Item, ...]:
    rng = np.random.default_rng([seed, 23, block & 0xFFFFFFFF])
    street = lay_out_street(city, seed)
    start = block * BLOCK_M
    kerb = street.half_width_m
    items: list[Item] = []

    def add(
        kind: str,
        along_m: float,
        x_m: float,
        length_m: float,
        width_m: float,
        height_m: float,
        colour: Colour,
        second_colour: Colour = _NONE,
        *,
        towards_camera: bool = False,
    ) -> None:
        variant = int(rng.integers(1 << 16))  # drawn after whatever the arguments drew
        size = (length_m, width_m, height_m)
        items.append(Item(kind, along_m, x_m, *size, colour, second_colour, variant, towards_camera))

    has_junction = rng.random() < city.junction_density
    free_from = start + (_JUNCTION_M if has_junction else 0.0)
    if has_junction:
        items.append(Item("junction", start, 0.0, _JUNCTION_M, 0.0, 0.0, city.road, _NONE, 0))
    has_crossing = rng.random() < (0.75 if has_junction else city.crossing_density)
    if has_crossing:
        items.append(Item("crossing", free_from + 0.8, 0.0, 3.4, 2 * kerb, 0.0, (214, 212, 206), _NONE, 0))
        for _ in range(int(rng.poisson(0.9))):
            x = rng.uniform(-0.95, 0.95) * kerb
            if abs(x - street.driving_x_m) > 1.0:  # nobody is run over
                items.append(_person(rng, free_from + rng.uniform(1.2, 3.6), x))

    for side in (-1, 1):
        facade = side * street.facade_m
        built = rng.random() < city.building_density
        if built:
            at = free_from
            while at < start + BLOCK_M - 3.0:
                length = min(rng.uniform(*city.building_length_m), start + BLOCK_M - at)
                if start + BLOCK_M - at - length < 4.0:
                    length = start + BLOCK_M - at
                gap = rng.uniform(0.0, 2.5) if city.front_yard_m > 2 else (0.0 if rng.random() < 0.8 else 1.5)
                height = rng.uniform(*city.building_height_m)
                x = facade + side * rng.uniform(0, 0.8) * (city.front_yard_m > 0.3)
                width = rng.uniform(8, 12)
                wall, roof = _pick(rng, city.facades), _pick(rng, _ROOFS)
                add("building", at, x, max(length - gap, 2.5), width, height, wall, roof)
                at += length
        elif not city.indoor:
            for _ in range(int(rng.integers(2, 5))):
                at = free_from + rng.uniform(0, 14)
                items.append(_tree(rng, city, street, at, facade + side * rng.uniform(0, 7)))
        if not city.indoor and rng.random() < (city.hedge_density if built else 0.6):
            line = side * (street.facade_m - min(street.yard_m * 0.6, 3.0)) if built else facade
            length = min(rng.uniform(6, 20), start + BLOCK_M - free_from)
            width, height = rng.uniform(0.6, 1.0), rng.uniform(0.7, 1.7)
            add("hedge", free_from, line, length, width, height, _pick(rng, city.leaves))

        edge = kerb + max(0.55, street.verge_m * 0.45)
        for slot in range(3):
            if rng.random() < city.tree_density:
                at = start + 8.0 * slot + rng.uniform(0, 6)
                if at > free_from + 1:
                    items.append(_tree(rng, city, street, at, side * (edge + rng.uniform(0, 0.4))))
        for _ in range(int(rng.poisson(city.sign_density))):
            at = rng.uniform(free_from + 0.5, start + BLOCK_M)
            x, width, height = side * (kerb + rng.uniform(0.35, 0.7)), rng.uniform(0.7, 1.0), rng.uniform(2.1, 2.9)
            is_facing = side == (-1 if city.left_traffic else 1)
            add("sign", at, x, 0.0, width, height, city.pole_colour, towards_camera=is_facing)
        for _ in range(int(rng.poisson(0.45))):
            if not city.indoor:
                at = rng.uniform(free_from, start + BLOCK_M)
                x, width = side * (kerb + rng.uniform(0.4, 0.9)), rng.uniform(0.14, 0.3)
                height = rng.uniform(1.0, 8.5)
                add("pole", at, x, 0.0, width, height, _pick(rng, (city.pole_colour, (92, 78, 62), (64, 72, 66))))
        for _ in range(int(rng.poisson(city.person_density))):
            x = side * (kerb + street.verge_m + rng.uniform(0.1, 0.95) * street.sidewalk_m)
            if city.kerb_m == 0 and rng.random() < 0.45:
                x = side * (kerb + rng.uniform(-1.2, 1.0) * street.verge_m)  # no kerb: people walk where there is room
            items.append(_person(rng, rng.uniform(free_from, start + BLOCK_M), x))
        if street.parking_m > 0:
            for slot in range(3):
                at = start + 7.6 * slot + rng.uniform(0.6, 1.8)
                if rng.random() < city.parked_density and at > free_from + (5 if has_crossing else 1):
                    x = side * (kerb - street.parking_m * 0.5 - rng.uniform(-0.1, 0.15))
                    items.append(
                        _vehicle(rng, city, at, x, towards_camera=(side == 1) == city.left_traffic, bus_share=0.06)
                    )
        if city.indoor:
            for slot in range(3):
                at = start + 8.0 * slot
                band = _pick(rng, ((196, 168, 40), (60, 110, 170), (170, 60, 52)))
                add("pillar", at, side * (kerb + 0.35), 0.55, 0.55, city.ceiling_m, city.pole_colour, band)
    return tuple(items)


def _tree(rng: np.random.Generator, city: CityStyle, street: Street, along_m: float, x_m: float) -> Item:
    red, green, blue = _pick(rng, city.leaves)
    shift = street.foliage_shift
    colour = (min(255, int(red * shift)), min(255, int(green * (0.5 + 0.5 * shift))), min(255, int(blue * shift)))
    height = rng.uniform(*city.tree_height_m)
    width, variant = height * rng.uniform(0.28, 0.42), int(rng.integers(1 << 16))
    return Item("tree", along_m, x_m, 0.0, width, height, colour, (84, 70, 56), variant)


def _person(rng: np.random.Generator, along_m: float, x_m: float) -> Item:
    width, height = rng.uniform(0.46, 0.6), rng.uniform(1.55, 1.92)
    shirt, trousers, variant = _pick(rng, _CLOTHES), _pick(rng, _CLOTHES), int(rng.integers(1 << 16))
    return Item("person", along_m, x_m, 0.4, width, height, shirt, trousers, variant)


def _vehicle(
    rng: np.random.Generator, city: CityStyle, along_m: float, x_m: float, *, towards_camera: bool, bus_share: float
) -> Item:
    variant = int(rng.integers(1 << 16))
    second = _pick(rng, _BUS_COLOURS)
    if rng.random() < bus_share:
        height = 2.35 if city.indoor else rng.uniform(2.9, 3.5)
        length = 6.5 if city.indoor else rng.uniform(9.0, 12.0)
        width = 2.1 if city.indoor else 2.5
        return Item(
            "bus", along_m, x_m, length, width, height, _pick(rng, _BUS_COLOURS), second, variant, towards_camera
        )
    colour = _pick(rng, _CAR_COLOURS)
    if city.vehicles == "rickshaw" and rng.random() < 0.5:
        colour = _pick(rng, ((190, 160, 40), (50, 110, 60), (60, 80, 130)))
        return Item("rickshaw", along_m, x_m, 2.7, 1.4, 1.75, colour, (40, 44, 44), variant, towards_camera)
    if city.vehicles == "boxy" and rng.random() < 0.45:
        return Item("van", along_m, x_m, 5.2, 1.95, rng.uniform(2.0, 2.4), colour, second, variant, towards_camera)
    size = rng.uniform(3.9, 4.7), rng.uniform(1.7, 1.9), rng.uniform(1.42, 1.68)
    return Item("car", along_m, x_m, *size, colour, second, variant, towards_camera)


def _lamps(city: CityStyle, street: Street, position_m: float) -> list[Item]:
    if city.indoor:
        return []
    spacing = city.lamp_spacing_m
    items: list[Item] = []
    for index in range(
        math.ceil((position_m - street.lamp_offset_m) / spacing),
        math.floor((position_m + VISIBLE_M - street.lamp_offset_m) / spacing) + 1,
    ):
        at = index * spacing + street.lamp_offset_m
        for side in (-1, 1) if street.lamp_side == 0 else (street.lamp_side,):
            x = side * (street.half_width_m + 0.45)
            items.append(
                Item("lamp", at, x, 0.0, 0.17, city.lamp_height_m, city.pole_colour, street.lamp_colour, index & 0xFFFF)
            )
    return items


def _traffic(city: CityStyle, street: Street, seed: int, position_m: float) -> list[Item]:
    """Moving vehicles: oncoming ones close in at twice the camera's speed, those ahead keep their distance."""
    items: list[Item] = []
    side = -1.0 if city.left_traffic else 1.0
    for lane in range(street.lanes):
        x = -side * street.lane_width_m * (lane + 0.5)
        travelled = 2.0 * position_m + 37.0 * lane
        for cell in range(math.floor(travelled / BLOCK_M) - 1, math.floor((travelled + 150.0) / BLOCK_M) + 1):
            rng = np.random.default_rng([seed, 41 + lane, cell & 0xFFFFFFFF])
            if rng.random() < city.oncoming_density / street.lanes:
                ahead = cell * BLOCK_M + rng.uniform(0, 10) - travelled
                if ahead > -14.0:
                    beside, share = x + rng.uniform(-0.2, 0.2), city.bus_share
                    items.append(_vehicle(rng, city, position_m + ahead, beside, towards_camera=True, bus_share=share))
    rng = np.random.default_rng([seed, 61])
    for lane in range(street.lanes):
        x = side * street.lane_width_m * (lane + 0.5)
        own_lane = abs(x - street.driving_x_m) < 0.5
        if rng.random() < (city.lead_probability if own_lane else 0.5 * city.lead_probability):
            gap = street.lead_gap_m * (1.0 + 0.25 * math.sin(position_m / 55.0 + street.lead_phase))
            if not own_lane:
                gap += 7.0 * math.sin(position_m / 80.0 + lane)
            items.append(
                _vehicle(rng, city, position_m + max(gap, 6.5), x, towards_camera=False, bus_share=city.bus_share)
            )
            if rng.random() < 0.6:
                at = position_m + gap + 20.0 + 8.0 * rng.random()
                items.append(_vehicle(rng, city, at, x, towards_camera=False, bus_share=city.bus_share))
    return items
