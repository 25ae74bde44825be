"""A contact sheet of labelled images: each with its labels drawn over, a row a domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semla_ros.lab.report.pictures import FAINT_TEXT, Canvas, draw_legend, legend_height, resize
from semla_ros.labels import overlay, palette_of
from semla_ros.results import ImageArray, MaskArray

PANEL_WIDTH = 300  # pixels
_GAP, _HEADING, _CAPTION, _LEGEND = 8, 34, 20, 14


@dataclass(frozen=True, kw_only=True, eq=False)
class SheetRow:
    """Some images of one domain.

    Attributes:
        title: Above them.
        class_names: Index = class.
        images: RGB image (H, W, 3), class index per pixel (H, W), caption.
    """

    title: str
    class_names: tuple[str, ...]
    images: Sequence[tuple[ImageArray, MaskArray, str]]

    @property
    def height(self) -> int:
        """Of the highest image at the width of a panel, in pixels."""
        return max((round(PANEL_WIDTH * mask.shape[0] / mask.shape[1]) for _, mask, _ in self.images), default=0)


def write_label_sheet(path: Path, rows: Sequence[SheetRow]) -> None:
    """Write rows as a PNG: image above, image with labels below, and a legend after the last row of a class list."""
    columns = max((len(row.images) for row in rows), default=1)
    heights = [_HEADING + 2 * row.height + _CAPTION + _GAP for row in rows]
    width = max(600, columns * (PANEL_WIDTH + _GAP) + _GAP)
    legends = [
        legend_height(row.class_names, _GAP, width, size=_LEGEND) if _is_last(rows, index) else 0
        for index, row in enumerate(rows)
    ]
    canvas = Canvas(width, sum(heights) + sum(legends) + _GAP)
    top = 0
    for row, height, legend in zip(rows, heights, legends, strict=True):
        palette = palette_of(row.class_names)
        canvas.text(_GAP, top + _HEADING / 2, row.title, size=16, bold=True)
        for column, (image, mask, caption) in enumerate(row.images):
            left, tall = _GAP + column * (PANEL_WIDTH + _GAP), round(PANEL_WIDTH * mask.shape[0] / mask.shape[1])
            for place, picture in enumerate((image, overlay(image, mask, palette, 0.7))):
                canvas.paste(resize(picture, PANEL_WIDTH, tall), left, top + _HEADING + place * row.height)
            canvas.text(left, top + height - _GAP - _CAPTION / 2, caption, size=11, colour=FAINT_TEXT)
        top += height
        if legend:
            draw_legend(canvas, row.class_names, palette, _GAP, top + _LEGEND, size=_LEGEND)
        top += legend
    canvas.save(path)


def _is_last(rows: Sequence[SheetRow], index: int) -> bool:
    return all(row.class_names != rows[index].class_names for row in rows[index + 1 :])
