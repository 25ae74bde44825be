"""The drive in one picture: adapter weights as stacked areas with their changes marked, and mIoU of two variants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import counted
from semla_ros.lab.report.charts import BETWEEN
from semla_ros.lab.report.palette import domain_colour, to_hex
from semla_ros.results import BASE_MODEL

matplotlib.use("Agg")

import matplotlib.pyplot as plt

INK, FAINT, GRID = "#1d2430", "#6b7482", "#dfe3e8"
REFERENCE_LINE, PRIMARY_LINE = "#9aa3af", "#0f766e"
SMOOTHING_S = 2.0  # window of the mIoU lines
MOST_NAMED = 12  # adapters with a line of their own in the legend
OTHERS, OTHERS_COLOUR = "others", "#c9ced6"


def draw_timeline(path: Path, summary: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Write the picture.

    Args:
        path: PNG to write.
        summary: What `summary.json` of a replay with truth holds.
        data: Its timeline and changes of the mix, as for the report.
    """
    timeline, primary, reference = data["timeline"], summary["primary"], summary["reference"]
    seconds = np.array(timeline["t"])
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(13, 6.4), dpi=130, sharex=True, height_ratios=(1.0, 1.15), facecolor="white"
    )
    _draw_shares(upper, seconds, timeline["variants"][primary]["weights"], [item["t"] for item in data["changes"]])
    lines = {
        name: _smoothed(timeline, timeline["variants"][name]["miou"])
        for name in filter(None, (reference, primary))
    }  # fmt: skip
    _draw_miou(lower, seconds, lines, primary)
    _draw_segments(upper, lower, timeline, summary)
    for axes in (upper, lower):
        _quiet(axes)
    lower.set_xlabel("seconds of the drive", color=FAINT)
    lower.set_xlim(0, seconds[-1])
    figure.suptitle(_headline(summary), x=0.05, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.subplots_adjust(left=0.05, right=0.86, bottom=0.075, top=0.885, hspace=0.12)  # the legend has 1.8 inches
    figure.savefig(path)
    plt.close(figure)


def _headline(summary: Mapping[str, Any]) -> str:
    variants = {name: summary["variants"][name] for name in (summary["reference"], summary["primary"]) if name}
    is_named = all(entry["shifted_miou"] is not None for entry in variants.values())
    key, over = ("shifted_miou", " over the shifted segments") if is_named else ("miou", "")
    return f"mIoU{over}: {', '.join(f'{name} {entry[key]:.2f}' for name, entry in variants.items())}"


def _draw_shares(
    axes: Any, seconds: NDArray[np.float64], weights: Mapping[str, Sequence[float]], changes: Sequence[float]
) -> None:
    shares = most_used(weights, MOST_NAMED)
    colours = [OTHERS_COLOUR if name == OTHERS else to_hex(domain_colour(name)) for name in shares]
    axes.stackplot(seconds, *shares.values(), labels=list(shares), colors=colours, step="post", linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    axes.set_ylabel("share in the fused model", color=INK)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.005, 0.99), frameon=False, fontsize=8.5, labelcolor=INK,
        handlelength=1.0, handleheight=1.0, reverse=True,
    )  # fmt: skip
    axes.plot(
        changes, np.ones(len(changes)), linestyle="", marker="v", markersize=6, color=INK, markeredgecolor="white",
        markeredgewidth=0.6, clip_on=False, zorder=5,
    )  # fmt: skip
    told = f"▼ {counted(len(changes), 'change')}"
    axes.text(1.008, 1.0, told, transform=axes.transAxes, fontsize=9.5, color=INK, va="bottom")


def most_used(weights: Mapping[str, Sequence[float]], count: int) -> dict[str, NDArray[np.float64]]:
    """The `count` most used adapters; the rest added up as "others", and the base model as it is, last."""
    shares = {name: np.asarray(values, float) for name, values in weights.items() if any(values)}
    adapters = sorted((name for name in shares if name != BASE_MODEL), key=lambda name: -shares[name].sum())
    kept = {name: shares[name] for name in adapters[:count]}
    if rest := adapters[count:]:
        kept[OTHERS] = np.sum([shares[name] for name in rest], axis=0)
    return kept | {name: shares[name] for name in shares if name == BASE_MODEL}


def _smoothed(timeline: Mapping[str, Any], values: Sequence[float | None]) -> NDArray[np.float64]:
    """Mean over a window that stops at the ends of a segment, so that a jump at a border stays one."""
    known = np.array([np.nan if value is None else value for value in values], float)
    half = max(0, round(SMOOTHING_S / 2 / timeline["bin_s"]))
    smoothed: list[float] = []
    for _, group in groupby(zip(timeline["segment"], known, strict=True), key=lambda pair: pair[0]):
        part = np.array([value for _, value in group])
        windows = [part[max(0, index - half) : index + half + 1] for index in range(len(part))]
        smoothed += [np.nan if np.isnan(window).all() else float(np.nanmean(window)) for window in windows]
    return np.array(smoothed)


def _draw_miou(axes: Any, seconds: NDArray[np.float64], lines: Mapping[str, NDArray[np.float64]], primary: str) -> None:
    adapted, base = lines[primary], next(iter(lines.values()))
    axes.fill_between(seconds, base, adapted, where=adapted >= base, color=PRIMARY_LINE, alpha=0.16, linewidth=0)
    axes.fill_between(seconds, base, adapted, where=adapted < base, color="#c2410c", alpha=0.18, linewidth=0)
    top = max(0.1, float(np.nanmax([*lines.values()]))) * 1.22
    ends = [float(line[~np.isnan(line)][-1]) / top for line in lines.values()]
    apart = max(0.0, 0.075 - (max(ends) - min(ends))) / 2  # names of lines that nearly meet are kept apart
    for (name, line), end in zip(lines.items(), ends, strict=True):
        colour, ink = (PRIMARY_LINE, PRIMARY_LINE) if name == primary else (REFERENCE_LINE, FAINT)
        axes.plot(seconds, line, color=colour, linewidth=2.2 if name == primary else 1.8)
        shift = apart if end == max(ends) else -apart
        axes.annotate(
            name, (1.008, end + shift), xycoords="axes fraction", color=ink, fontsize=10, fontweight="bold", va="center"
        )
    axes.set_ylim(0, top)
    axes.set_ylabel(f"mIoU ({SMOOTHING_S:.0f} s window)", color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_segments(upper: Any, lower: Any, timeline: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Shade the transitions, and write each segment's name and its figures into the lower plot."""
    seconds, names = timeline["t"], timeline["segment"]
    variants = [summary["variants"][name]["visits"] for name in (summary["reference"], summary["primary"]) if name]
    visits = defaultdict(list)
    for together in zip(*variants, strict=True):
        visits[together[0]["segment"]].append(" → ".join(f"{visit['miou']:.2f}" for visit in together))
    start, top = 0, lower.get_ylim()[1]
    for name, group in groupby(names):
        first, start = start, start + len(list(group))
        left, right = seconds[first], seconds[min(start, len(seconds) - 1)]
        if first:
            upper.axvline(left, color="white", linewidth=0.9, zorder=4)
            lower.axvline(left, color=GRID, linewidth=0.9, zorder=0)
        if name in BETWEEN:
            lower.axvspan(left, right, color="#eef0f3" if name else "none", zorder=0, linewidth=0)
            continue
        figures = visits[name].pop(0) if visits[name] else ""
        middle = (left + right) / 2
        lower.text(middle, top * 0.955, name, ha="center", va="center", fontsize=10.5, color=INK, fontweight="bold")
        lower.text(middle, top * 0.89, figures, ha="center", va="center", fontsize=9, color=FAINT)


def _quiet(axes: Any) -> None:
    """Leave only the lines that carry something."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=FAINT, length=0)
