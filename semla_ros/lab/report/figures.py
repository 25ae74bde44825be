"""The report's figures, each as one SVG text: bars, matrices, the embedding map."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import matplotlib.patches
import numpy as np
from matplotlib import colors as colour_maps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from semla_ros.lab.report.pictures import domain_colour
from semla_ros.results import FloatArray

INK, FAINT, GRID = "#1f2630", "#6b7480", "#e4e7eb"
VARIANT_COLOURS = {  # the paler of two: with the target's own adapter in the library
    "zero_shot": "#b3bac4",
    "uniform": "#f2dd8c",
    "uniform_without_own": "#e3b505",
    "semla": "#8dbde2",
    "semla_without_own": "#1769aa",
    "late_fusion": "#c4aedb",
    "late_fusion_without_own": "#7a4fa3",
    "oracle": "#2c9c69",
}
EXTRA_COLOURS = ("#d1495b", "#0f8b8d", "#a0522d", "#5c6b73", "#c77dff", "#8a9a5b", "#e07a5f")
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.fonttype": "none",  # real text: smaller, and can be searched and copied
    "svg.hashsalt": "semla",  # the same figures give the same file
}
BLUES = colour_maps.LinearSegmentedColormap.from_list("semla", ["#ffffff", "#cfe2f1", "#5e9fcf", "#0d4a7c"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Bars:
    """One series of bars.

    Attributes:
        label: In the legend.
        variant: For its colour.
        values: One per group; NaN leaves the place empty.
        spreads: Standard deviation of each value; NaN draws no whisker.
    """

    label: str
    variant: str
    values: Sequence[float]
    spreads: Sequence[float]


def variant_colour(variant: str) -> str:
    """The same colour for a way of adapting in every figure."""
    if variant in VARIANT_COLOURS:
        return VARIANT_COLOURS[variant]
    base = variant.removesuffix("_without_own")
    return EXTRA_COLOURS[sum(base.encode()) % len(EXTRA_COLOURS)]


def grouped_bars(groups: Sequence[str], series: Sequence[Bars]) -> str:
    """Bars of mIoU, one group per domain, one colour per way of adapting; axis 0..1."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(12.0, 0.62 * len(groups) + 1.6), 3.5))
        axes = figure.subplots()
        width = 0.84 / max(1, len(series))
        centres = np.arange(len(groups))
        for index, bars in enumerate(series):
            offset = (index - (len(series) - 1) / 2) * width
            spreads = np.asarray(bars.spreads, float)
            axes.bar(
                centres + offset,
                np.asarray(bars.values, float),
                width * 0.92,
                label=bars.label,
                color=variant_colour(bars.variant),
                yerr=spreads if np.isfinite(spreads).any() else None,
                error_kw={"ecolor": INK, "elinewidth": 0.7, "capsize": 0},
            )
        axes.set_xticks(
            centres, groups, rotation=40 if len(groups) > 6 else 0, ha="right" if len(groups) > 6 else "center"
        )
        axes.set_ylim(0, 1)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.set_ylabel("mIoU")
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.legend(ncols=len(series), loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, handlelength=1)
        return as_svg(figure)


def mean_bars(labels: Sequence[str], variants: Sequence[str], values: Sequence[float], spreads: Sequence[float]) -> str:
    """Horizontal bars of the h-means with their figures."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.0, 0.36 * len(labels) + 0.5))
        axes = figure.subplots()
        rows = np.arange(len(labels))[::-1]
        errors = np.nan_to_num(np.asarray(spreads, float))
        axes.barh(
            rows,
            values,
            0.66,
            color=[variant_colour(name) for name in variants],
            xerr=errors,
            error_kw={"elinewidth": 0.8},
        )
        for row, value, error, spread in zip(rows, values, errors, spreads, strict=True):
            text = f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if np.isfinite(spread) else "")
            axes.text(value + error + 0.012, row, text, va="center", color=INK, fontsize=9)
        axes.set_yticks(rows, labels)
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_xticks([])
        axes.set_xlim(0, max([*values, 0.1]) * 1.2)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return as_svg(figure)


def matrix(rows: Sequence[str], columns: Sequence[str], values: FloatArray, *, percent: bool = True) -> str:
    """A heat map with its figures, values 0..1 (NaN = empty); a frame marks each row's own column."""
    with matplotlib.rc_context(STYLE):
        cell = 0.42
        label_room = 0.075 * max(map(len, rows), default=1) + 0.3
        figure = Figure(figsize=(cell * len(columns) + label_room, cell * 0.72 * len(rows) + 1.2))
        axes = figure.subplots()
        axes.imshow(np.ma.masked_invalid(values), cmap=BLUES, vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            if np.isfinite(value) and (value >= 0.005 or not percent):
                shown = f"{100 * value:.0f}"
                axes.text(
                    column, row, shown, ha="center", va="center", fontsize=7, color="white" if value > 0.55 else INK
                )
            if rows[row] == columns[column]:
                frame = matplotlib.patches.Rectangle(
                    (column - 0.47, row - 0.45), 0.94, 0.9, fill=False, ec="#d1495b", lw=1.3
                )
                axes.add_patch(frame).set_zorder(5)
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), rows)
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
        axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
        axes.grid(which="minor", color="#edf0f3", linewidth=1.0)
        axes.tick_params(which="minor", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return as_svg(figure)


def embedding_map(
    points: Mapping[str, NDArray[np.float32]], centroids: Mapping[str, FloatArray], families: Mapping[str, str]
) -> str:
    """Scene embeddings and centroids on the two axes of greatest variance.

    Args:
        points: Domain -> scene embeddings, shape (N, D).
        centroids: Adapter -> centroid, shape (D,).
        families: Domain or adapter -> family, which gives the colour.
    """
    everything = np.concatenate([*points.values(), *(np.asarray(item)[None] for item in centroids.values())])
    centre = everything.mean(axis=0)
    _, strengths, axes_of_variance = np.linalg.svd(everything - centre, full_matrices=False)
    basis = axes_of_variance[:2]
    explained = strengths[:2] ** 2 / max(float((strengths**2).sum()), 1e-12)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 6.6))
        axes = figure.subplots()
        marks = "osD^vP*XhpH<>8d"
        members: dict[str, list[str]] = {}
        for name in points:
            members.setdefault(families.get(name, name), []).append(name)
        for family, names in members.items():
            for index, name in enumerate(names):
                x, y = ((points[name] - centre) @ basis.T).T
                colour = _hex(family)
                axes.scatter(x, y, s=11, color=colour, alpha=0.55, lw=0, marker=marks[index % len(marks)], label=name)
        for name, centroid in centroids.items():
            x, y = (np.asarray(centroid) - centre) @ basis.T
            axes.scatter([x], [y], s=54, color=_hex(families.get(name, name)), edgecolors=INK, lw=1.0, zorder=3)
            axes.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7.5, color=INK, zorder=4)
        axes.set_xlabel(f"first axis, {explained[0]:.0%} of the variance")
        axes.set_ylabel(f"second axis, {explained[1]:.0%}")
        axes.tick_params(length=0, labelbottom=False, labelleft=False)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.margins(x=0.1)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, markerscale=1.6)
        return as_svg(figure)


def as_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales with its place, without XML header and fixed size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(
        r'<svg ([^>]*?)width="([\d.]+)pt"',
        r'<svg \1style="max-width:\2pt"',
        re.sub(r' height="[\d.]+pt"', "", text, count=1),
        count=1,
    )


def _hex(name: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*domain_colour(name))
