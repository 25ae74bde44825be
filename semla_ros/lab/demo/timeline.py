"""The drive as one picture: which adapters were in the model, and what that did to the masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.demo.score import DriveScore, FrameScore, is_transition, rolling_miou, shares_over_time
from semla_ros.lab.report.palette import domain_colour
from semla_ros.results import BASE_MODEL, Generation

INK, FAINT, GRID = "#1d2430", "#6b7482", "#dfe3e8"
BASE_LINE, ADAPTED_LINE = "#9aa3af", "#0f766e"
SMOOTHING_S = 2.0  # window of the mIoU lines
MOST_NAMED = 12  # adapters with a line of their own in the legend
OTHERS, OTHERS_COLOUR = "others", "#c9ced6"


def draw_timeline(path: Path, score: DriveScore, generations: Sequence[Generation]) -> None:
    """Write the picture: adapter weights as stacked areas with fusions marked, and mIoU with and without adaptation.

    Args:
        path: PNG to write.
        score: The drive; at least two frames.
        generations: Every one, for the marks.
    """
    frames = score.frames
    start_ns = frames[0].record.stamp_ns
    seconds = np.array([(frame.record.stamp_ns - start_ns) / 1e9 for frame in frames])
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(13, 6.4), dpi=130, sharex=True, height_ratios=(1.0, 1.15), facecolor="white"
    )
    _draw_shares(upper, frames, seconds)
    _mark_fusions(upper, generations, start_ns, float(seconds[-1]))
    _draw_miou(lower, score, seconds)
    _draw_segments(upper, lower, score, seconds)
    lower.set_xlabel("seconds of the drive", color=FAINT)
    lower.set_xlim(0, seconds[-1])
    figure.suptitle(
        f"A drive through changing weather: mIoU {score.base:.2f} without adaptation, {score.adapted:.2f} with it "
        f"({score.gain:+.2f} over the shifted segments)",
        x=0.065, ha="left", fontsize=13, fontweight="bold", color=INK,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(path)
    plt.close(figure)


def _draw_shares(axes: Any, frames: Sequence[FrameScore], seconds: np.ndarray) -> None:
    shares = most_used(shares_over_time(frames), MOST_NAMED)
    colours = [OTHERS_COLOUR if name == OTHERS else _hex(name) for name in shares]
    axes.stackplot(seconds, *shares.values(), labels=list(shares), colors=colours, step="post", linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    axes.set_ylabel("share in the fused model", color=INK)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.005, 0.99), frameon=False, fontsize=8.5, labelcolor=INK,
        handlelength=1.0, handleheight=1.0, reverse=True,
    )  # fmt: skip
    _quiet(axes)


def most_used(shares: Mapping[str, NDArray[np.float64]], count: int) -> dict[str, NDArray[np.float64]]:
    """The first `count` adapters; the rest added up as "others", and the base model as it is, last."""
    adapters = [name for name in shares if name != BASE_MODEL]
    kept = {name: shares[name] for name in adapters[:count]}
    if rest := adapters[count:]:
        kept[OTHERS] = np.sum([shares[name] for name in rest], axis=0)
    return kept | {name: shares[name] for name in shares if name == BASE_MODEL}


def _mark_fusions(axes: Any, generations: Sequence[Generation], start_ns: int, end_s: float) -> None:
    """A tick on the upper edge for each generation, at the scene that it was made for."""
    stamps = [generation.scene_stamp_ns for generation in generations]
    times = [(stamp - start_ns) / 1e9 for stamp in stamps if stamp is not None]
    times = [time for time in times if 0 <= time <= end_s]
    axes.plot(
        times, np.ones(len(times)), linestyle="", marker="v", markersize=6, color=INK, markeredgecolor="white",
        markeredgewidth=0.6, clip_on=False, zorder=5,
    )  # fmt: skip
    axes.text(1.008, 1.0, f"▼ {len(times)} fusions", transform=axes.transAxes, fontsize=9.5, color=INK, va="bottom")


def _draw_miou(axes: Any, score: DriveScore, seconds: np.ndarray) -> None:
    base, adapted = rolling_miou(score.frames, SMOOTHING_S)
    axes.fill_between(seconds, base, adapted, where=adapted >= base, color=ADAPTED_LINE, alpha=0.16, linewidth=0)
    axes.fill_between(seconds, base, adapted, where=adapted < base, color="#c2410c", alpha=0.18, linewidth=0)
    axes.plot(seconds, base, color=BASE_LINE, linewidth=1.8)
    axes.plot(seconds, adapted, color=ADAPTED_LINE, linewidth=2.2)
    axes.set_ylim(0, max(0.1, float(np.nanmax(adapted)), float(np.nanmax(base))) * 1.22)
    axes.set_ylabel(f"mIoU ({SMOOTHING_S:.0f} s window)", color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    _label_ends(axes, float(adapted[-1]), float(base[-1]))
    _quiet(axes)


def _label_ends(axes: Any, adapted: float, base: float) -> None:
    """Name the two lines at their right ends, kept apart where they nearly meet."""
    top = axes.get_ylim()[1]
    apart = max(0.0, 0.075 * top - abs(adapted - base)) / 2
    sign = 1 if adapted >= base else -1
    for value, words, colour, shift in (
        (adapted, "adapted", ADAPTED_LINE, apart * sign),
        (base, "without adaptation", FAINT, -apart * sign),
    ):
        axes.annotate(
            words, (1.008, (value + shift) / top), xycoords="axes fraction", color=colour, fontsize=10,
            fontweight="bold", va="center",
        )  # fmt: skip


def _draw_segments(upper: Any, lower: Any, score: DriveScore, seconds: np.ndarray) -> None:
    """Shade the transitions, and write each pure segment's name and its two figures into the lower plot."""
    top = lower.get_ylim()[1]
    start = 0
    figures = {segment.name: f"{segment.base:.2f} → {segment.adapted:.2f}" for segment in score.segments}
    for name, group in groupby(score.frames, key=lambda frame: frame.record.segment):
        first, start = start, start + len(list(group))
        left, right = float(seconds[first]), float(seconds[min(start, len(seconds) - 1)])
        for axes in (upper, lower):
            if first:
                axes.axvline(
                    left, color="white" if axes is upper else GRID, linewidth=0.9, zorder=4 if axes is upper else 0
                )
        if is_transition(name):
            lower.axvspan(left, right, color="#eef0f3", zorder=0, linewidth=0)
            continue
        middle = (left + right) / 2
        lower.text(middle, top * 0.955, name, ha="center", va="center", fontsize=10.5, color=INK, fontweight="bold")
        lower.text(middle, top * 0.89, figures[name], ha="center", va="center", fontsize=9, color=FAINT)


def _quiet(axes: Any) -> None:
    """Leave only the lines that carry something."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=FAINT, length=0)


def _hex(name: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*domain_colour(name))
