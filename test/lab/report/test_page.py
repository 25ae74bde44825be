"""What holds for every page: one file, no script, words for every picture; test_accessibility.py opens them."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from semla_ros.lab.report import page as pages
from semla_ros.lab.report.charts import TimeAxis, lines

PAGES = ("evaluation_page", "replay_page", "replay_page_without_truth", "many_page", "map_page", "why_page")


@pytest.fixture(params=PAGES)
def path(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


class Outline(HTMLParser):
    """Elements with their attributes; opening and closing tags must match."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data)


def outline_of(path: Path) -> Outline:
    outline = Outline()
    outline.feed(path.read_text(encoding="utf-8"))
    return outline


def test_a_page_is_well_formed_and_needs_no_other_file_and_no_script(path: Path) -> None:
    text, outline = path.read_text(encoding="utf-8"), outline_of(path)
    assert outline.open == []
    names = {name for name, _ in outline.elements}
    assert not names & {"script", "iframe", "object", "button", "canvas"}
    assert "@import" not in text
    assert "url(" not in text
    for name, attributes in outline.elements:
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href"):
            value = attributes.get(key) or "data:"
            assert value.startswith("data:") or (name == "a" and (path.parent / value).is_file()), value


def test_every_picture_and_chart_says_in_words_what_it_shows(path: Path) -> None:
    outline = outline_of(path)
    images = [attributes for name, attributes in outline.elements if name == "img"]
    assert all(len(attributes["alt"] or "") > 5 for attributes in images)
    charts = [attributes for name, attributes in outline.elements if name == "svg" and attributes.get("role") == "img"]
    text = path.read_text(encoding="utf-8")
    described = re.findall(r'<svg class="chart"[^>]*role="img"[^>]*><title>[^<]{5,}</title><desc>[^<]{5,}</desc>', text)
    assert len(described) == len(charts) == text.count('class="chart"')


def test_what_comes_from_files_is_escaped(evaluation_page: Path, replay_page: Path, many_page: Path) -> None:
    assert "&lt;toy&gt;" in evaluation_page.read_text()
    assert "&lt;b&gt;bag &amp; co" in replay_page.read_text()
    assert "&lt;gone&gt;" in many_page.read_text()


def test_an_interrupted_write_leaves_the_former_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    pages.write_page(path, pages.Page(title="one"))
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(pages.ConfigError, match="cannot be written: full"):
        pages.write_page(path, pages.Page(title="two"))
    assert path.read_bytes() == before


def test_a_line_is_broken_where_the_recording_pauses() -> None:
    axis = TimeAxis(seconds=[0.5, 1.5, 20.5, 21.5], stretch_s=1.0, segments=["", "", "", ""])
    chart = lines("mIoU", axis, {"semla": [0.1, 0.2, 0.3, 0.4]}, {"semla": (0, 0, 0)})
    assert chart is not None
    path = re.search(r' d="([^"]*)"', chart.svg)
    assert path
    assert path[1].count("M") == 2
    assert lines("mIoU", axis, {"semla": [None] * 4}, {"semla": (0, 0, 0)}) is None


def test_a_stretch_is_named_where_its_name_covers_no_other() -> None:
    def named(segments: list[str]) -> list[str]:
        axis = TimeAxis(seconds=[0.5 + second for second in range(len(segments))], stretch_s=1.0, segments=segments)
        chart = lines("mIoU", axis, {"semla": [0.5] * len(segments)}, {"semla": (0, 0, 0)})
        assert chart is not None
        return re.findall(r'class="wide"[^>]*>([^<]+)<', chart.svg)

    gap = ["transition"] * 2
    drive = [*["night"] * 3, *gap, *["night-rain"] * 2, *gap, *["rain"] * 3]
    assert named([*drive, *["fog"] * 28]) == [
        "night",
        "night-rain",
        "rain",
        "fog",
    ]  # wider than its band, not than its room
    assert named([*drive, *["fog"] * 200]) == ["fog"]
