"""Camera, truth and masks side by side: every frame as a video, one moment per segment as a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.demo.frame_store import FrameStore
from semla_ros.lab.demo.recording import shares_of
from semla_ros.lab.demo.score import DriveScore, FrameScore, is_transition
from semla_ros.lab.evaluation.miou import MiouMeter, mean_iou
from semla_ros.lab.report.palette import Colour, domain_colour
from semla_ros.lab.report.pictures import (
    FAINT_TEXT,
    TEXT,
    Canvas,
    colourise,
    draw_legend,
    draw_mix,
    font,
    ink_on,
    resize,
)
from semla_ros.lab.report.video import VideoWriter
from semla_ros.results import ImageArray

GOOD: Colour = (94, 214, 190)
PANELS = (("image", "camera"), ("truth", "truth"), ("base", "base model"), ("adapted", "adapted"))


class PanelMaker:
    """Makes the four pictures of a frame at one size.

    Args:
        store: Pictures of the drive, kinds as in `PANELS`.
        palette: RGB colour per class, shape (K, 3), uint8.
        width: Width of each picture in pixels.
        height: Height in pixels.
    """

    def __init__(self, store: FrameStore, palette: NDArray[np.uint8], width: int, height: int) -> None:
        self._store, self._palette = store, palette
        self.width, self.height = width, height

    def picture(self, kind: str, stamp_ns: int) -> ImageArray:
        """One picture, RGB (height, width, 3)."""
        stored = self._store.get(kind, stamp_ns)
        is_mask = stored.ndim == 2
        image = colourise(stored, self._palette) if is_mask else stored
        return resize(image, self.width, self.height, smooth=not is_mask)


def write_video(
    path: Path,
    score: DriveScore,
    panels: PanelMaker,
    class_names: Sequence[str],
    palette: NDArray[np.uint8],
    rate_hz: float,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the drive as a video: four pictures in a row, below them segment, time, figures so far and the mix.

    Args:
        path: mp4 to write.
        score: The drive.
        panels: Makes the pictures.
        class_names: For the legend.
        palette: RGB colour per class, shape (K, 3).
        rate_hz: Frames per second of the camera.
        progress: Told how many frames of how many are done.
    """
    start_ns = score.frames[0].record.stamp_ns
    base, adapted = MiouMeter(score.frames[0].base.shape[0]), MiouMeter(score.frames[0].base.shape[0])
    with VideoWriter(path, rate_hz) as video:
        for index, frame in enumerate(score.frames):
            base.add_counts(frame.base)
            adapted.add_counts(frame.adapted)
            seconds = (frame.record.stamp_ns - start_ns) / 1e9
            video.write(_video_frame(frame, panels, class_names, palette, seconds, base.mean, adapted.mean))
            if progress is not None:
                progress(index + 1, len(score.frames))


def _video_frame(
    frame: FrameScore,
    panels: PanelMaker,
    class_names: Sequence[str],
    palette: NDArray[np.uint8],
    seconds: float,
    base_so_far: float,
    adapted_so_far: float,
) -> ImageArray:
    unit = panels.width / 480  # texts keep their proportion to the pictures
    gap, header, footer = round(6 * unit), round(42 * unit), round(132 * unit)

    def size(pixels: int) -> int:
        return max(8, round(pixels * unit))

    width = len(PANELS) * (panels.width + gap) + gap
    canvas = Canvas(width, header + panels.height + footer)
    now = {"base": mean_iou(frame.base), "adapted": mean_iou(frame.adapted)}
    for column, (kind, title) in enumerate(PANELS):
        left = gap + column * (panels.width + gap)
        canvas.text(left + gap, header / 2, title, size=size(21), bold=True)
        if kind in now:
            colour, right = GOOD if kind == "adapted" else FAINT_TEXT, left + panels.width - gap
            canvas.text(right, header / 2, f"mIoU {now[kind]:.2f}", size=size(19), colour=colour, anchor="rm")
        canvas.paste(panels.picture(kind, frame.record.stamp_ns), left, header)
    top, generation = header + panels.height, frame.record.generation
    canvas.text(2 * gap, top + 34 * unit, frame.record.segment or "transition", size=size(28), bold=True)
    place = f"{seconds:.1f} s, generation {generation.number}"
    canvas.text(2 * gap, top + 70 * unit, place, size=size(17), colour=FAINT_TEXT)
    bar_left = 2 * gap + panels.width
    draw_mix(canvas, shares_of(generation), bar_left, top + round(16 * unit), 2 * panels.width + gap, round(42 * unit))
    canvas.text(bar_left, top + 74 * unit, "what the adapted model is fused from", size=size(15), colour=FAINT_TEXT)
    canvas.text(width - panels.width, top + 34 * unit, "mIoU so far", size=size(19), colour=FAINT_TEXT)
    so_far = f"{base_so_far:.2f} → {adapted_so_far:.2f}"
    canvas.text(width - 2 * gap, top + 34 * unit, so_far, size=size(28), bold=True, colour=GOOD, anchor="rm")
    draw_legend(canvas, class_names, palette, 2 * gap, top + footer - round(24 * unit), size=size(16))
    return canvas.array()


def pick_moments(score: DriveScore, most: int = 10) -> list[FrameScore]:
    """One frame per pure segment: the one with the segment's median gain, so that neither luck nor bad luck is shown.

    Args:
        score: The drive.
        most: Segments shown at most; further ones are left out.
    """
    moments = []
    for segment in score.segments:
        if is_transition(segment.name):
            continue
        members = sorted(
            (frame for frame in score.frames if frame.record.segment == segment.name), key=lambda frame: frame.gain
        )
        moments.append(members[len(members) // 2])
    return moments[:most]


def write_contact_sheet(
    path: Path, score: DriveScore, panels: PanelMaker, class_names: Sequence[str], palette: NDArray[np.uint8]
) -> None:
    """Write one moment per segment as a column: camera, truth, mask without adaptation, mask with it.

    Args:
        path: PNG to write.
        score: The drive.
        panels: Makes the pictures.
        class_names: For the legend.
        palette: RGB colour per class, shape (K, 3).
    """
    moments = pick_moments(score)
    gap, side, header, row_gap, footer = 6, 34, 66, 6, 44
    label = 26  # room for the figure under a mask
    heights = [panels.height + (label if kind in ("base", "adapted") else 0) + row_gap for kind, _ in PANELS]
    canvas = Canvas(side + len(moments) * (panels.width + gap), header + sum(heights) + footer)
    for column, frame in enumerate(moments):
        left = side + column * (panels.width + gap)
        _draw_heading(canvas, frame, left, header)
        top = header
        for (kind, _), height in zip(PANELS, heights, strict=True):
            canvas.paste(panels.picture(kind, frame.record.stamp_ns), left, top)
            if kind in ("base", "adapted"):
                value = mean_iou(frame.base if kind == "base" else frame.adapted)
                canvas.text(
                    left + panels.width / 2, top + panels.height + label / 2 + 1, f"mIoU {value:.2f}", size=16,
                    bold=kind == "adapted", colour=GOOD if kind == "adapted" else FAINT_TEXT, anchor="mm",
                )  # fmt: skip
            top += height
    _draw_row_titles(canvas, side, header, panels.height, heights)
    draw_legend(canvas, class_names, palette, side, canvas.height - footer // 2, size=15)
    canvas.save(path)


def _draw_heading(canvas: Canvas, frame: FrameScore, left: int, height: int) -> None:
    """Segment name, and below it a chip with the heaviest adapter of the mix: the two may both be long."""
    canvas.text(left + 2, height * 0.29, frame.record.segment, size=19, bold=True)
    mix = frame.record.generation.mix
    heaviest = mix.heaviest
    words = f"{heaviest} {mix.shares()[heaviest]:.0%}"
    chip = round(font(13, bold=True).getlength(words)) + 16
    colour = domain_colour(heaviest)
    middle = height * 0.72
    canvas.rectangle(left, middle - 11, chip, 22, colour, radius=6)
    canvas.text(left + chip / 2, middle, words, size=13, bold=True, colour=ink_on(colour), anchor="mm")


def _draw_row_titles(canvas: Canvas, width: int, top: int, picture_height: int, heights: Sequence[int]) -> None:
    """Titles along the left edge, reading upwards."""
    for (_, title), height in zip(PANELS, heights, strict=True):
        strip = Canvas(picture_height, width)
        strip.text(picture_height / 2, width / 2, title, size=16, bold=True, colour=TEXT, anchor="mm")
        canvas.paste(np.rot90(strip.array()).copy(), 0, top)
        top += height
