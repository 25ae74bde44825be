"""Where names stand beside their marks so that none covers another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple


class Side(NamedTuple):
    """Where a name stands: offset of its base line from the mark in pixels, and which end of it is there."""

    dx: float
    dy: float
    anchor: Literal["start", "middle", "end"]


SIDES = (
    *(Side(9, 4, "start"), Side(-9, 4, "end"), Side(0, -10, "middle"), Side(0, 18, "middle")),
    *(Side(6, -10, "start"), Side(-6, -10, "end"), Side(6, 18, "start"), Side(-6, 18, "end")),
)
_MARK = 7.0  # half the width of a mark
_ASCENT, _DESCENT = 10.0, 3.0  # of a line of letters


def label_places(
    marks: Sequence[tuple[float, float]], widths: Sequence[float], size: tuple[float, float]
) -> list[Side | None]:
    """A side for each name, first come, first served; None where it would cover a mark, a name or the border.

    Args:
        marks: Places in pixels, x to the right and y downwards.
        widths: Of the names.
        size: Width and height of the plot.
    """
    taken = [(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in marks]
    chosen: list[Side | None] = []
    for index, ((x, y), width) in enumerate(zip(marks, widths, strict=True)):
        others = taken[:index] + taken[index + 1 :]
        for side in SIDES:
            left = x + side.dx - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[side.anchor]
            box = left, y + side.dy - _ASCENT, left + width, y + side.dy + _DESCENT
            is_inside = box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]
            if is_inside and not any(_overlap(box, other) for other in others):
                taken.append(box)
                chosen.append(side)
                break
        else:
            chosen.append(None)
    return chosen


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
