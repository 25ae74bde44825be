import itertools

import cv2
import numpy as np
import pytest

from semla_ros.lab.report.palette import (
    DARK,
    DOMAIN_COLOURS,
    LIGHT,
    Colour,
    contrast,
    domain_colour,
    from_hex,
    tint,
    to_hex,
    variant_colours,
)
from semla_ros.lab.world.domains import BENCHMARK

SCHEMES = {"light": LIGHT, "dark": DARK}
WORDS = ("ink", "soft", "link", "good", "bad")


def test_contrast_is_that_of_wcag() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)  # the textbook's grey


@pytest.mark.parametrize("scheme", SCHEMES)
def test_words_stand_out_from_every_ground(scheme: str) -> None:
    colours = {name: from_hex(value) for name, value in SCHEMES[scheme].items()}
    for word, ground in itertools.product(WORDS, ("ground", "card")):
        assert contrast(colours[word], colours[ground]) >= 4.5, (word, ground)
    for ground in ("warning", "heat"):
        assert contrast(colours["ink"], colours[ground]) >= 4.5, ground
    assert LIGHT.keys() == DARK.keys()


def test_marks_stand_out_from_the_card_in_both_schemes() -> None:
    colours = [*DOMAIN_COLOURS.values(), *map(domain_colour, BENCHMARK), domain_colour("desert-storm")]
    for colour in [*colours, *variant_colours(["base", "semla", "x", "y", "z"]).values()]:
        light, dark = (part.split(":")[1] for part in tint(colour).split(";"))
        assert contrast(from_hex(light), from_hex(LIGHT["card"])) >= 3
        assert contrast(from_hex(dark), from_hex(DARK["card"])) >= 3


def test_a_domain_has_one_colour_everywhere() -> None:
    assert domain_colour("desert-storm") == domain_colour("desert-storm")
    assert domain_colour("desert-storm") != domain_colour("jungle")
    assert domain_colour("night") != domain_colour("fog")
    assert from_hex(to_hex((1, 128, 255))) == (1, 128, 255)


def test_a_clear_night_and_one_with_weather_are_told_apart() -> None:
    nights = [domain_colour(f"boulevard-{weather}-night") for weather in ("clear", "fog", "rain", "snow")]
    for one, other in itertools.combinations(nights, 2):
        assert difference(one, other) > 12, (one, other)
    assert difference(domain_colour("night"), domain_colour("night-rain")) > 12


def difference(one: Colour, other: Colour) -> float:
    """Euclidean distance in CIELAB; some 2 can be seen side by side."""
    pixels = np.array([[one, other]], np.float32) / 255
    first, second = cv2.cvtColor(pixels, cv2.COLOR_RGB2Lab)[0]
    return float(np.linalg.norm(first - second))


def test_variants_differ_in_colour_and_keep_the_usual_one() -> None:
    names = ["base", "semla", "oracle:fog", "oracle:night", "frozen@2", "frozen@4"]
    colours = variant_colours(names)
    assert len(set(colours.values())) == len(names)
    assert colours["semla"] == variant_colours(["semla_without_own", "semla"])["semla"]
    assert variant_colours(["semla_without_own"])["semla_without_own"] == colours["semla"]
