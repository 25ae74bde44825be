"""The colours of pages and pictures: one palette, legible on light and on dark ground."""

from __future__ import annotations

import colorsys
import functools
import hashlib
from collections.abc import Iterable

from semla_ros.lab.world.domains import BENCHMARK
from semla_ros.results import BASE_MODEL

Colour = tuple[int, int, int]  # RGB, 0..255

# Words on "ground" and "card" have a contrast of at least 4.5, as WCAG asks of text; test_palette.py holds that.
LIGHT: dict[str, str] = {
    "ground": "#f4f6f8",
    "card": "#ffffff",
    "line": "#dce1e8",
    "ink": "#1b2330",
    "soft": "#556072",
    "link": "#0b5cad",
    "good": "#0a6b61",
    "bad": "#b3261e",
    "warning": "#fff3d6",
    "heat": "#a3d3cc",
}
DARK: dict[str, str] = {
    "ground": "#11151b",
    "card": "#1a2029",
    "line": "#333d4a",
    "ink": "#e7ebf0",
    "soft": "#a7b1bf",
    "link": "#82b8f5",
    "good": "#5fd3bd",
    "bad": "#ff9a8f",
    "warning": "#3b3014",
    "heat": "#1f655c",
}
LEAST_MARK_CONTRAST = 3.5  # of lines and areas against the card; WCAG asks for 3

VARIANT_COLOURS: dict[str, Colour] = {
    "base": (138, 148, 163),
    "zero_shot": (138, 148, 163),
    "uniform": (214, 158, 10),
    "semla": (15, 118, 110),
    "late_fusion": (124, 88, 178),
    "oracle": (47, 127, 209),
}
_FURTHER_COLOURS: tuple[Colour, ...] = (
    (209, 73, 91), (194, 103, 10), (91, 91, 214), (190, 58, 122), (122, 106, 44), (160, 82, 45), (94, 140, 49),
)  # fmt: skip

DOMAIN_COLOURS: dict[str, Colour] = {
    BASE_MODEL: (176, 182, 190),
    "clear": (240, 200, 70),
    "day": (240, 200, 70),
    "dusk": (226, 122, 62),
    "night": (58, 66, 138),
    "night-rain": (128, 72, 172),
    "night-fog": (92, 112, 148),
    "night-snow": (84, 138, 206),
    "fog": (140, 160, 158),
    "rain": (52, 132, 200),
    "snow": (136, 208, 232),
    "glare": (250, 228, 140),
    "tunnel": (138, 100, 72),
    "low-sun": (238, 150, 70),
    "enclosed": (138, 100, 72),
    "mixed": (150, 112, 186),
}


def domain_colour(name: str) -> Colour:
    """A fixed colour per domain: a shade of its weather's for the shipped ones, else derived from the name."""
    if name in DOMAIN_COLOURS:
        return DOMAIN_COLOURS[name]
    digest = hashlib.sha256(name.encode()).digest()
    if name in BENCHMARK:
        family, shade = BENCHMARK[name].family, 0.8 + 0.35 * digest[1] / 255
        # A night with weather is another sight than a clear one.
        kinds = [f"{family}-{part}" for part in name.split("-") if f"{family}-{part}" in DOMAIN_COLOURS]
        red, green, blue = (min(255, round(shade * value)) for value in DOMAIN_COLOURS[next(iter(kinds), family)])
        return red, green, blue
    return _rgb(colorsys.hsv_to_rgb(digest[0] / 256, 0.55, 0.8))


def variant_colours(names: Iterable[str]) -> dict[str, Colour]:
    """A colour per way of adapting; those of one name, with or without the own adapter, share it."""
    chosen: dict[str, Colour] = {}
    further = iter(_FURTHER_COLOURS * 8)
    for name in names:
        base = name.removesuffix("_without_own")
        if base not in chosen:
            usual = VARIANT_COLOURS.get(base.split(":")[0])
            chosen[base] = usual if usual and usual not in chosen.values() else next(further)
        chosen[name] = chosen[base]
    return chosen


def luminance(colour: Colour) -> float:
    """Relative luminance, 0 (black) to 1 (white), as WCAG 2 defines it."""
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Colour, other: Colour) -> float:
    """Contrast of two colours, 1 (none) to 21 (black on white), as WCAG 2 defines it."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@functools.cache
def tint(colour: Colour) -> str:
    """The colour as CSS variables `--light` and `--dark`, each moved until it stands out from its scheme's card."""
    return f"--light:{to_hex(_legible(colour, LIGHT))};--dark:{to_hex(_legible(colour, DARK))}"


def _legible(colour: Colour, scheme: dict[str, str]) -> Colour:
    card = from_hex(scheme["card"])
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in colour))
    step = -0.01 if luminance(card) > 0.5 else 0.01
    while contrast(colour, card) < LEAST_MARK_CONTRAST:
        lightness += step
        colour = _rgb(colorsys.hls_to_rgb(hue, lightness, saturation))
    return colour


def to_hex(colour: Colour) -> str:
    """As CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def from_hex(text: str) -> Colour:
    """The inverse of `to_hex`."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _rgb(shares: tuple[float, float, float]) -> Colour:
    red, green, blue = (min(255, max(0, round(255 * share))) for share in shares)
    return red, green, blue
