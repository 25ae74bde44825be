"""What every page is put together from: tiles, charts, tables, pictures. One file, no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from semla_ros.errors import ConfigError
from semla_ros.file_integrity import write_atomically
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
    """One cell of a table.

    Attributes:
        text: What stands in it.
        spread: Smaller, behind it.
        tone: "good", "bad", "best" or nothing.
        heat: 0..1, how strongly the cell is coloured; None leaves it plain.
        colour: Of a patch before the text; a string is taken as it is, RGB is made to stand out.
        is_own: Framed: what belongs to the row itself.
        links: Address and words.
    """

    text: str = ""
    spread: str = ""
    tone: str = ""
    heat: float | None = None
    colour: Colour | str | None = None
    is_own: bool = False
    links: Sequence[tuple[str, str]] = ()

    @property
    def css(self) -> list[str]:
        """Classes of its element."""
        heat = "" if self.heat is None else "heat"
        return [name for name in ("own" if self.is_own else "", self.tone, heat) if name]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; it scrolls inside its box where the screen is narrow.

    Attributes:
        head: Titles of the columns.
        rows: Cells, or plain words, as many as columns.
        strong: Indices of the rows in bold.
        left: Indices of the columns with words, beside the first one.
        is_matrix: Titles stand upright, columns are narrow.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    strong: Sequence[int] = ()
    left: Sequence[int] = ()
    is_matrix: bool = False
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
    """Images below each other under one caption.

    Attributes:
        images: Data URI ("" where there is none) and what it shows, for those who do not see it.
        title: Caption.
        detail: Behind the title.
    """

    images: Sequence[tuple[str, str]]
    title: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One moment: closed it shows its first picture, opened all of them and why they look like this.

    Attributes:
        pictures: In the order in which they are read.
        title: What it stands out by.
        place: When and where it was.
        explanation: Parts below the pictures.
    """

    pictures: Sequence[Picture]
    title: str
    place: str
    explanation: Sequence[Part] = ()


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Moments beside each other; `is_open` opens the first one."""

    frames: Sequence[Frame]
    is_open: bool = False
    kind: str = field(default="frames", init=False)


Part = Chart | Table | Facts | Legend | Words | Frames


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under one heading; one without parts is left out."""

    title: str
    parts: Sequence[Part | None]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole page.

    Attributes:
        title: The heading; for a report its answer in one sentence.
        name: Title of the browser's tab; empty = `title`.
        subtitle: Below the heading.
        warnings: Title and words of what the reader must know first.
        tiles: The figures that count most.
        sections: From the most to the least asked for.
        foot: Last line.
    """

    title: str
    name: str = ""
    subtitle: str = ""
    warnings: Sequence[tuple[str, Sequence[str]]] = ()
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()
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
