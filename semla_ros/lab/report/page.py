"""What every page is put together from: tiles, charts, tables, pictures. One file, no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from semla_ros.atomic_files import write_atomically
from semla_ros.errors import ConfigError
from semla_ros.lab.report import palette
from semla_ros.lab.report.charts import Chart
from semla_ros.lab.report.palette import Colour


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A figure at the head of a page, with what it is and what to compare it with."""

    label: str
    value: str
    more: str = ""
    tone: str = ""  # "good", "bad" or nothing: colours `more`
    colour: Colour | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str = ""
    spread: str = ""  # smaller, behind the text
    tone: str = ""  # "good", "bad", "best" or nothing
    heat: float | None = None  # 0..1, how strongly the cell is coloured; None leaves it plain
    colour: Colour | str | None = None  # of a patch before the text; a string as it is, RGB made to stand out
    is_own: bool = False  # framed: what belongs to the row itself
    links: Sequence[tuple[str, str]] = ()  # address and words

    @property
    def css(self) -> list[str]:
        """Classes of its element."""
        heat = "" if self.heat is None else "heat"
        return [name for name in ("own" if self.is_own else "", self.tone, heat) if name]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; it scrolls inside its box where the screen is narrow."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]  # as many cells as titles
    strong: Sequence[int] = ()  # rows in bold
    left: Sequence[int] = ()  # columns with words, beside the first one
    is_matrix: bool = False  # titles stand upright, columns are narrow
    kind: str = field(default="table", init=False)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names with what they stand for."""

    pairs: Sequence[tuple[str, str]]
    kind: str = field(default="facts", init=False)


@dataclass(frozen=True, kw_only=True)
class Legend:
    """Names with the colours that pictures give them, as CSS writes them."""

    entries: Sequence[tuple[str, str]]
    kind: str = field(default="legend", init=False)


@dataclass(frozen=True, kw_only=True)
class Words:
    """A heading or a line of text between other parts."""

    heading: str = ""
    text: str = ""
    kind: str = field(default="words", init=False)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Images below each other under one caption."""

    images: Sequence[tuple[str, str]]  # data URI ("" where there is none), and what it shows in words
    title: str
    detail: str = ""  # behind the title
    kind: str = field(default="picture", init=False)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Small ones beside each other."""

    pictures: Sequence[Picture]
    kind: str = field(default="pictures", init=False)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One moment: closed it shows its first picture, opened all of them and why they look like this."""

    pictures: Sequence[Picture]
    title: str  # what it stands out by
    place: str  # when and where it was
    explanation: Sequence[Part] = ()  # below the pictures


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Moments beside each other; `is_open` opens the first one."""

    frames: Sequence[Frame]
    is_open: bool = False
    kind: str = field(default="frames", init=False)


Part = Chart | Table | Facts | Legend | Words | Picture | Pictures | Frames


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under one heading; one without parts is left out."""

    title: str
    parts: Sequence[Part | None]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole page."""

    title: str  # the heading; for a report its answer in one sentence
    name: str = ""  # of the browser's tab; empty = the heading
    subtitle: str = ""
    warnings: Sequence[tuple[str, Sequence[str]]] = ()  # title and words of what the reader must know first
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()  # from the most to the least asked for
    foot: str = ""


def write_page(path: Path, page: Page) -> None:
    """Write a page in one step; its folder is made.

    Raises:
        ConfigError: The file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("semla_ros.lab.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values: dict[str, Any] = {"light": palette.LIGHT, "dark": palette.DARK, "tint": palette.tint}
    html = environment.get_template("page.html.j2").render(page=page, **values)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, html)
    except OSError as error:
        raise ConfigError(f"report {path} cannot be written: {error}") from None
