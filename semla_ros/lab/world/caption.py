"""Short English captions of scenes: what a contrastive model learns weather and class words from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.world.cities import CityStyle, city_style
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.conditions import Conditions

SYNONYMS: dict[str, tuple[str, ...]] = {
    "road": ("road", "street", "roadway", "asphalt"),
    "sidewalk": ("sidewalk", "pavement", "footpath", "walkway"),
    "building": ("building", "buildings", "house", "houses", "facades"),
    "vegetation": ("vegetation", "trees", "tree", "bushes", "a hedge"),
    "terrain": ("terrain", "grass", "lawn", "soil"),
    "sky": ("sky", "open sky"),
    "pole": ("pole", "poles", "lamp post", "street lamps"),
    "traffic sign": ("traffic sign", "traffic signs", "road sign", "sign"),
    "person": ("person", "people", "pedestrian", "pedestrians"),
    "car": ("car", "cars", "vehicle", "automobile"),
    "bus": ("bus", "buses", "coach"),
}

# What a person would say of either: without common words a contrastive model sees nothing common in them.
_LOW_SUN = ("with low sun", "in low sunlight", "in the evening sun")
_ENCLOSED = ("underground", "under a roof", "indoors")

_WEATHER: dict[str, tuple[str, ...]] = {
    "night": ("at night", "in the dark", "at nighttime", "by night"),
    "dusk": ("at dusk", "at sunset", *_LOW_SUN),
    "glare": ("in sun glare", "against the sun", *_LOW_SUN),
    "fog": ("in fog", "in dense fog", "in mist", "on a foggy day"),
    "rain": ("in rain", "in heavy rain", "on a rainy day", "with a wet road"),
    "snow": ("in snow", "in snowfall", "on a snowy day", "covered with snow"),
    "tunnel": ("in a tunnel", "inside a tunnel", *_ENCLOSED),
}
_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "night": ("dark", "night"),
    "dusk": ("dusky", "low-sun"),
    "glare": ("glaring", "low-sun"),
    "fog": ("foggy", "misty"),
    "rain": ("rainy", "wet"),
    "snow": ("snowy", "snow-covered"),
    "tunnel": ("underground", "roofed"),
}
_CLEAR = ("on a clear day", "in daylight", "by day", "in clear weather", "on a sunny day")
_PLACES = ("street", "road", "street scene", "driving scene")
_OPENINGS = ("a photo of {}", "{}", "{}", "a picture of {}", "a view of {}")
_NOTICED = 0.004  # least share of the picture that a caption speaks of
_PRESENT = 0.25  # least severity that a caption speaks of


def caption(city: str | CityStyle, conditions: Conditions, mask: NDArray[np.uint8], rng: np.random.Generator) -> str:
    """Describe a scene in a few words, such as "a foggy street at night with cars and a bus".

    Args:
        city: Name or style.
        conditions: Weather and light; those with a severity above 0.25 are named.
        mask: Class index per pixel, (H, W).
        rng: Chooses phrasing, synonyms and which of the visible classes are named.
    """
    style = city_style(city)
    severities = {name: float(getattr(conditions, name)) for name in _WEATHER}
    if style.indoor:
        severities = {name: value for name, value in severities.items() if name in ("night", "fog")}
    named = [name for name, value in severities.items() if value > _PRESENT]
    rng.shuffle(named)
    adjective, phrases = "", []
    if style.indoor:
        place = style.title if rng.random() < 0.5 else f"a {_choose(rng, _PLACES)}"
        phrases = [_choose(rng, _ENCLOSED), *(_choose(rng, _WEATHER[name]) for name in named)]
    else:
        place = _choose(rng, _PLACES)
        if named and rng.random() < 0.45:
            adjective = _choose(rng, _ADJECTIVES[named[0]]) + " "
            named = named[1:]
        phrases = [_choose(rng, _WEATHER[name]) for name in named]
        if not named and not adjective:
            phrases = [_choose(rng, _CLEAR)]
        place = f"{_article(adjective + place)} {adjective}{place}"
        if rng.random() < 0.35:
            place += f" in {style.title}"
    text = " ".join([place, *phrases])
    things = _visible(mask, rng)
    if things:
        text += f" with {things[0]}" if len(things) == 1 else f" with {', '.join(things[:-1])} and {things[-1]}"
    return _choose(rng, _OPENINGS).format(text)


def _visible(mask: NDArray[np.uint8], rng: np.random.Generator) -> list[str]:
    counts = np.bincount(mask.ravel(), minlength=256)[: len(CLASS_NAMES)]
    seen = [name for name, count in zip(CLASS_NAMES, counts, strict=True) if count > _NOTICED * mask.size]
    rng.shuffle(seen)
    # Rare things are what tells two pictures apart: they come first more often than not.
    rare = ("bus", "person", "car", "traffic sign", "pole")
    seen.sort(key=lambda name: name not in rare and rng.random() < 0.6)
    return [_choose(rng, SYNONYMS[name]) if rng.random() < 0.5 else name for name in seen[: int(rng.integers(1, 4))]]


def _choose(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"
