from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from semla_ros.errors import counted, known_names
from semla_ros.hub.published import PUBLISHED
from semla_ros.resources import PUBLISHED_ENCODER, PUBLISHED_MODELS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*(ROOT / "semla_ros").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
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


def refusals_of_a_name() -> Iterator[tuple[str, str]]:
    """Each place that raises because a name is unknown: where it is, and its source."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for item in ast.walk(ast.parse(text)):
            if isinstance(item, ast.Raise) and item.exc is not None:
                source = ast.get_source_segment(text, item) or ""
                if re.search(r"unknown [\w ]+ ['{]", source):
                    yield f"{path.name}:{item.lineno}", source


def test_whatever_is_misspelt_the_message_says_the_nearest() -> None:
    # Encodings that fit depend on the pixels; a setting of the command line is none of the file's.
    others = ("unknown encoding '{encoding}'", "it is said when the file is used")
    found = [(place, source) for place, source in refusals_of_a_name() if not any(text in source for text in others)]
    assert len(found) > 10
    assert [place for place, source in found if "known_names(" not in source] == []


def test_one_is_not_called_several() -> None:
    assert [counted(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(count, "class", "classes") for count in (1, 7)] == ["1 class", "7 classes"]


COUNTED = (
    "adapters|bags|cameras|cards|changes|classes|combinations|cores|devices|domains|engines|files|folders|frames|fusions|"
    "generations|images|kinds|lines|masks|messages|models|pages|parts|points|recalls|rows|scenes|steps|stretches|tensors|"
    "threads|times|topics"
)
NEVER_ONE = {
    "manifest.domain",  # "rendered images"
    "fraction", "overtaken",  # a share of them
    "snapshot.recent_restarts",  # at least MANY_RESTARTS
    "len(class_names)",  # more than can be trained
    "count", "counts[0]", "classes", "cost.shape[1]", "len(self.timeline)", "steps", "sweep['split']",  # layers, bench
}  # fmt: skip


def test_every_count_in_a_message_goes_with_its_noun() -> None:
    found = set()
    for path in SOURCES:
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for value, after in pairwise(item.values if isinstance(item, ast.JoinedStr) else []):
                text = after.value if isinstance(after, ast.Constant) else ""
                if isinstance(value, ast.FormattedValue) and re.match(
                    rf" ((?!of|with|has)[a-z-]+ )?({COUNTED})\b", text
                ):
                    written = ast.unparse(value.value)
                    if not (value.format_spec or written.isupper() or written.startswith("counted(")):
                        found.add(written)
    assert found <= NEVER_ONE, sorted(found - NEVER_ONE)
