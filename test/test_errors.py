from __future__ import annotations

import pytest

from semla_ros.errors import known_names
from semla_ros.hub.published import PUBLISHED
from semla_ros.resources import PUBLISHED_ENCODER, PUBLISHED_MODELS

NAMES = ("catseg-b", "catseg-l", "semla-tiny", "Old-Town-Fog", "harbour-fog")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("catsegl", "did you mean 'catseg-l'?"),
        ("CATSEG-B", "did you mean 'catseg-b'?"),
        ("tiny", "did you mean 'semla-tiny'?"),
        ("town fog", "did you mean 'Old-Town-Fog'?"),
        ("fog", "did you mean 'Old-Town-Fog'?"),
        ("elephant", f"known: {', '.join(NAMES)}"),
        ("", f"known: {', '.join(NAMES)}"),
    ],
)
def test_a_name_that_is_not_there_gets_the_nearest_or_what_there_is(name: str, expected: str) -> None:
    assert known_names(name, NAMES) == expected


def test_long_lists_are_cut_and_empty_ones_said() -> None:
    assert known_names("x", map(str, range(30)), most=3) == "known: 0, 1, 2 and 27 more"
    assert known_names("x", []) == "known: none"


def test_what_a_message_offers_to_fetch_can_be_fetched() -> None:
    assert set(PUBLISHED_MODELS) == set(PUBLISHED) - {"semla-adapters", PUBLISHED_ENCODER.replace("/", "-")}
