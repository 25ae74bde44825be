"""Masks as pictures: colours, panels with text, bars of an adapter mix, tiles."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from semla_ros.lab.report.palette import Colour, domain_colour
from semla_ros.results import ImageArray, MaskArray

BACKGROUND: Colour = (17, 20, 25)
TEXT: Colour = (236, 238, 241)
FAINT_TEXT: Colour = (150, 157, 168)


def colourise(mask: MaskArray, palette: NDArray[np.uint8]) -> ImageArray:
    """Paint each class in its colour.

    Args:
        mask: Class index per pixel, shape (H, W).
        palette: RGB colour per class, shape (K, 3), uint8.

    Returns:
        RGB image, shape (H, W, 3), uint8; indices beyond the palette (unlabelled) are black.
    """
    table = np.vstack([palette, np.zeros((1, 3), np.uint8)])
    painted: ImageArray = table[np.minimum(mask.astype(np.intp), len(palette))]
    return painted


@functools.lru_cache(maxsize=32)
def font(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, so that pictures look the same on every machine."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), size_px)


def resize(image: ImageArray, width: int, height: int, *, smooth: bool = True) -> ImageArray:
    """Scale a picture; `smooth=False` keeps the exact colours of a mask.

    Args:
        image: RGB, shape (h, w, 3), uint8.
        width: Wanted width in pixels.
        height: Wanted height in pixels.
        smooth: Interpolate between pixels.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = width < image.shape[1]
    method = (cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC) if smooth else cv2.INTER_NEAREST
    scaled: ImageArray = cv2.resize(image, (width, height), interpolation=method)
    return scaled


class Canvas:
    """A picture to draw on, in pixels from the top left.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
    """

    def __init__(self, width: int, height: int, background: Colour = BACKGROUND) -> None:
        self.width, self.height = width, height
        self._picture = Image.new("RGB", (width, height), background)
        self._draw = ImageDraw.Draw(self._picture)

    def paste(self, image: ImageArray, x: int, y: int) -> None:
        """Put an RGB image (H, W, 3) with its top left corner at (x, y)."""
        self._picture.paste(Image.fromarray(image), (x, y))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 14,
        colour: Colour = TEXT,
        bold: bool = False,
        anchor: str = "lm",
    ) -> None:
        """Write one line.

        Args:
            x: Position of the anchor.
            y: Position of the anchor.
            words: What to write.
            size: Font size in pixels.
            colour: Text colour.
            bold: Heavier letters.
            anchor: Two letters, as Pillow has them: horizontal l/m/r, vertical a(scender)/m(iddle)/d(escender).
        """
        self._draw.text((x, y), words, fill=colour, font=font(size, bold=bold), anchor=anchor)

    def rectangle(self, x: float, y: float, width: float, height: float, colour: Colour, *, radius: int = 0) -> None:
        """Fill a rectangle, with rounded corners where `radius` is not 0."""
        if width < 1 or height < 1:
            return
        box = (x, y, x + width - 1, y + height - 1)
        if radius:
            self._draw.rounded_rectangle(box, radius, fill=colour)
        else:
            self._draw.rectangle(box, fill=colour)

    def array(self) -> ImageArray:
        """The picture as RGB, shape (height, width, 3), uint8."""
        return np.asarray(self._picture).copy()

    def save(self, path: Path) -> None:
        """Write a PNG."""
        self._picture.save(path, optimize=True)


def draw_mix(canvas: Canvas, shares: Mapping[str, float], x: int, y: int, width: int, height: int) -> None:
    """Draw an adapter mix as one bar of stacked shares, each with its name where it fits.

    Args:
        canvas: Where to draw.
        shares: Weight by adapter name (and `BASE_MODEL`), each >= 0, summing to 1 or less.
        x: Left edge.
        y: Top edge.
        width: Width of a share of 1.
        height: Height of the bar.
    """
    canvas.rectangle(x, y, width, height, (44, 49, 58))
    left = float(x)
    for name, share in shares.items():
        part = share * width
        colour = domain_colour(name)
        canvas.rectangle(left, y, part, height, colour)
        size = max(9, round(height * 0.5))
        for words in (f"{name} {share:.0%}", name, f"{share:.0%}"):
            if font(size, bold=True).getlength(words) + 8 <= part:
                canvas.text(
                    left + part / 2, y + height / 2, words, size=size, colour=ink_on(colour), bold=True, anchor="mm"
                )
                break
        left += part


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever reads better on `colour`."""
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (16, 18, 22) if luminance > 140 else (250, 250, 250)


def legend_height(names: Sequence[str], x: int, width: int, *, size: int = 13) -> int:
    """Pixels that `draw_legend` takes below the top of its first line on a canvas of a width."""
    lines, left = 1, float(x)
    for name in names:
        step = size * 1.4 + font(size).getlength(name) + size * 1.2
        if left + step > width and left > x:
            lines, left = lines + 1, float(x)
        left += step
    return lines * round(size * 1.8)


def draw_legend(
    canvas: Canvas, names: Sequence[str], palette: NDArray[np.uint8], x: int, y: int, *, size: int = 13
) -> None:
    """Draw colour patches with class names in lines.

    Args:
        canvas: Where to draw.
        names: Class names, index = class.
        palette: RGB colour per class, shape (K, 3), uint8.
        x: Left edge of the lines.
        y: Middle of the first line.
        size: Font size in pixels.
    """
    left = float(x)
    for name, colour in zip(names, palette, strict=False):
        width = size * 1.4 + font(size).getlength(name) + size * 1.2
        if left + width > canvas.width and left > x:
            left, y = float(x), y + round(size * 1.8)
        canvas.rectangle(left, y - size / 2, size, size, (int(colour[0]), int(colour[1]), int(colour[2])), radius=2)
        canvas.text(left + size * 1.4, y, name, size=size, colour=FAINT_TEXT)
        left += width
