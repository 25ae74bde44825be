"""Short English captions of scenes: what a contrastive model learns weather and class words from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.world.cities import CityStyle, city_style, world_table
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.conditions import Conditions

_WORDS = world_table("captions")
SYNONYMS: dict[str, tuple[str, ...]] = _WORDS["synonyms"]
_WEATHER: dict[str, tuple[str, ...]] = _WORDS["weather"]
_ADJECTIVES: dict[str, tuple[str, ...]] = _WORDS["adjectives"]
_CLEAR, _ENCLOSED, _PLACES, _OPENINGS = (_WORDS[name] for name in ("clear", "enclosed", "places", "openings"))
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
