"""Moments of a drive: camera, truth and masks beside each other, as a picture of a video or as a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.report.palette import Colour, domain_colour
from semla_ros.lab.report.pictures import (
    FAINT_TEXT,
    Canvas,
    draw_legend,
    draw_mix,
    font,
    ink_on,
    legend_height,
    resize,
)
from semla_ros.results import ImageArray

GOOD: Colour = (94, 214, 190)
ROW_PANEL_WIDTH, SHEET_PANEL_WIDTH = 384, 256  # pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One picture of a moment.

    Attributes:
        title: What it shows.
        picture: RGB, shape (H, W, 3), uint8; None leaves its place empty.
        miou: Of the mask shown; None where it is none, or not known.
        is_mask: Its colours are kept exactly when it is scaled.
        is_strong: It is what the moment is about.
    """

    title: str
    picture: ImageArray | None
    miou: float | None = None
    is_mask: bool = True
    is_strong: bool = False

    @property
    def colour(self) -> Colour:
        """Of its figure."""
        return GOOD if self.is_strong else FAINT_TEXT

    def scaled(self, width: int, height: int) -> ImageArray:
        """The picture at another size; black where there is none."""
        if self.picture is None:
            return np.zeros((height, width, 3), np.uint8)
        return resize(self.picture, width, height, smooth=not self.is_mask)


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """What there is to see at one time.

    Attributes:
        name: What the drive calls it.
        place: When it was, and what else is to be said.
        panels: At least one, the first with a picture; all moments of a drive have the same ones.
        shares: Weight by adapter in the model of the strong panel, heaviest first.
    """

    name: str
    place: str
    panels: Sequence[Panel]
    shares: Mapping[str, float] = field(default_factory=dict)

    def height(self, width: int) -> int:
        """Of its panels at a width, pixels."""
        picture = self.panels[0].picture
        assert picture is not None
        return int(width * picture.shape[0] / picture.shape[1])

    def shrunk(self) -> Moment:
        """With pictures no larger than a contact sheet shows them."""
        size = SHEET_PANEL_WIDTH, self.height(SHEET_PANEL_WIDTH)
        return replace(self, panels=[replace(panel, picture=panel.scaled(*size)) for panel in self.panels])

    @property
    def heaviest(self) -> str:
        """Name of the largest share."""
        return max(self.shares, key=self.shares.__getitem__)


def draw_row(moment: Moment, so_far: str, class_names: Sequence[str], palette: NDArray[np.uint8]) -> ImageArray:
    """A picture of a video: the panels in a row, below them name, place, mix, figures so far and the classes.

    Args:
        moment: What to show.
        so_far: Figures up to this moment; may be empty.
        class_names: For the legend.
        palette: RGB colour per class, shape (K, 3).
    """
    width, height, gap, header, footer = ROW_PANEL_WIDTH, moment.height(ROW_PANEL_WIDTH), 5, 34, 106
    whole = len(moment.panels) * (width + gap) + gap
    canvas = Canvas(whole, header + height + footer)
    for column, panel in enumerate(moment.panels):
        left = gap + column * (width + gap)
        canvas.text(left + gap, header / 2, panel.title, size=17, bold=True)
        if panel.miou is not None:
            words = f"mIoU {panel.miou:.2f}"
            canvas.text(left + width - gap, header / 2, words, size=15, colour=panel.colour, anchor="rm")
        canvas.paste(panel.scaled(width, height), left, header)
    top, bar_left = header + height, 2 * gap + width
    canvas.text(2 * gap, top + 26, moment.name, size=22, bold=True)
    canvas.text(2 * gap, top + 56, moment.place, size=14, colour=FAINT_TEXT)
    draw_mix(canvas, moment.shares, bar_left, top + 13, max(width, (len(moment.panels) - 2) * width), 32)
    canvas.text(bar_left, top + 59, "what the adapted model is fused from", size=13, colour=FAINT_TEXT)
    if so_far:
        canvas.text(whole - 2 * gap, top + 26, so_far, size=20, bold=True, colour=GOOD, anchor="rm")
        canvas.text(whole - 2 * gap, top + 56, "mIoU so far", size=14, colour=FAINT_TEXT, anchor="rm")
    draw_legend(canvas, class_names, palette, 2 * gap, canvas.height - 19, size=13)
    return canvas.array()


def write_contact_sheet(
    path: Path, moments: Sequence[Moment], class_names: Sequence[str], palette: NDArray[np.uint8]
) -> None:
    """Write at least one moment as a PNG: a column each, with its name and the heaviest adapter of its mix on top.

    Args:
        path: The file.
        moments: Those to show.
        class_names: For the legend.
        palette: RGB colour per class, shape (K, 3).
    """
    width, height = SHEET_PANEL_WIDTH, moments[0].height(SHEET_PANEL_WIDTH)
    gap, side, header, label = 6, 34, 66, 26  # the label under a mask has its figure
    heights = [height + gap + (0 if panel.miou is None else label) for panel in moments[0].panels]
    wide, foot = side + len(moments) * (width + gap), header + sum(heights)
    canvas = Canvas(wide, foot + 17 + legend_height(class_names, side, wide, size=15))
    for column, moment in enumerate(moments):
        left, top = side + column * (width + gap), header
        _draw_heading(canvas, moment, left, header)
        for panel, tall in zip(moment.panels, heights, strict=True):
            canvas.paste(panel.scaled(width, height), left, top)
            if panel.miou is not None:
                canvas.text(
                    left + width / 2, top + height + label / 2 + 1, f"mIoU {panel.miou:.2f}", size=16,
                    bold=panel.is_strong, colour=panel.colour, anchor="mm",
                )  # fmt: skip
            top += tall
    top = header
    for panel, tall in zip(moments[0].panels, heights, strict=True):
        strip = Canvas(height, side)  # titles along the left edge, reading upwards
        strip.text(height / 2, side / 2, panel.title, size=16, bold=True, anchor="mm")
        canvas.paste(np.rot90(strip.array()).copy(), 0, top)
        top += tall
    draw_legend(canvas, class_names, palette, side, foot + 22, size=15)
    canvas.save(path)


def _draw_heading(canvas: Canvas, moment: Moment, left: int, height: int) -> None:
    """The name, and below it a chip with the heaviest adapter: the two may both be long."""
    canvas.text(left + 2, height * 0.29, moment.name, size=19, bold=True)
    words = f"{moment.heaviest} {moment.shares[moment.heaviest]:.0%}"
    chip, middle = round(font(13, bold=True).getlength(words)) + 16, height * 0.72
    colour = domain_colour(moment.heaviest)
    canvas.rectangle(left, middle - 11, chip, 22, colour, radius=6)
    canvas.text(left + chip / 2, middle, words, size=13, bold=True, colour=ink_on(colour), anchor="mm")
