"""Charts as SVG elements that a page holds: they take its width and its colours, and say in words what they show.

Places along x are shares of the plot's width, places along y pixels, so that words keep their size on any screen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from semla_ros.errors import counted
from semla_ros.lab.report.label_places import label_places
from semla_ros.lab.report.palette import Colour, domain_colour, tint

Values = Sequence[float | None]

_LETTER_PX = 6.6  # width of a letter, generously
_PLOT_PX = 560  # width of a plot on the narrowest page that shows names
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4")  # lines differ by more than their colour
BETWEEN = ("", "transition")  # what a stretch without a name is called


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing with its legend.

    Attributes:
        svg: The `<svg>` element.
        legend: Name and colour of what is drawn; empty where the drawing names it.
    """

    svg: Markup
    legend: Sequence[tuple[str, Colour]] = ()
    kind: str = field(default="chart", init=False)


@dataclass(frozen=True, kw_only=True)
class Value:
    """One bar or dot.

    Attributes:
        label: What it is the value of.
        value: 0..1; None leaves the place empty.
        spread: Standard deviation; None draws no whisker.
        colour: Of the mark.
        is_hollow: An outline, to tell it from another one of the same colour.
    """

    label: str
    value: float | None
    spread: float | None = None
    colour: Colour
    is_hollow: bool = False

    @property
    def percent(self) -> str:
        """The value in percent; "–" where there is none."""
        return "–" if self.value is None else percent(self.value, self.spread)

    @property
    def css(self) -> dict[str, str]:
        """Attributes of its mark."""
        return {"css": "tint hollow" if self.is_hollow else "tint", "style": tint(self.colour)}


def percent(value: float, spread: float | None = None) -> str:
    """A figure in percent with its spread: 41.5 ±0.6."""
    return f"{100 * value:.1f}" + (f" ±{100 * spread:.1f}" if spread is not None else "")


def bars(title: str, values: Sequence[Value]) -> Chart:
    """Horizontal bars with their figures, one per line."""
    ends = [(value.value or 0.0) + (value.spread or 0.0) for value in values]
    scale = 1 / (max(ends, default=0.0) or 1.0)
    body = []
    for index, (value, end) in enumerate(zip(values, ends, strict=True)):
        y, width = 26 * index + 4, scale * (value.value or 0.0)
        body += [
            _tag("text", value.label, x=-8, y=y + 13, text_anchor="end"),
            _tag("rect", y=y, width=_share(width), height=18, **value.css),
            *_whisker(width, scale * (value.spread or 0.0), y + 9),
            _tag("text", value.percent, x=_share(scale * end), y=y + 13, dx=7),
        ]
    words = "; ".join(f"{value.label}: {value.percent}" for value in values)
    return _chart(title, words, body, 26 * len(values), (0, 72, 4, _room(value.label for value in values)))


def dots(title: str, rows: Mapping[str, Sequence[Value]]) -> Chart:
    """A line per row from 0 to 1 with a dot per value; every row has the same labels in the same order."""
    height = 22 * len(rows)
    body = _moments(_steps(0, 1, 4), 1.0, height, "{:.0%}".format)
    for index, (name, values) in enumerate(rows.items()):
        y = 22 * index + 11
        body += [_tag("text", name, x=-10, y=y + 4, text_anchor="end"), _level(y)]
        for value in values:
            if value.value is not None:
                told = _tag("title", f"{name}, {value.label}: {value.percent}")
                body += _whisker(value.value, value.spread or 0.0, y)
                body.append(_tag("circle", told, cx=_share(value.value), cy=y, r=5, **value.css))
    columns = list(zip(*rows.values(), strict=True))
    ranges = [_range(column[0].label, [value.value for value in column], "{:.0%}".format) for column in columns]
    words = f"{counted(len(rows), 'row')} from 0 to 100 %. {'; '.join(ranges)}"
    legend = [(column[0].label + (" (ring)" if column[0].is_hollow else ""), column[0].colour) for column in columns]
    return _chart(title, words, body, height, (0, 22, 26, _room(rows)), legend)


def scatter(
    title: str,
    points: Mapping[str, NDArray[np.floating]],
    named: Mapping[str, NDArray[np.floating]],
    families: Mapping[str, str],
    axes: tuple[str, str],
    *,
    radii: Mapping[str, float] | None = None,
    images: Mapping[str, NDArray[np.floating]] | None = None,
    height: int = 480,
) -> Chart:
    """Points in a plane, and larger named ones among them.

    Args:
        title: Of the chart.
        points: Name -> places, shape (N, 2).
        named: Name -> place, shape (2,).
        families: Name -> family, which gives the colour; a name that is missing is its own family.
        axes: What the axes show.
        radii: Name of a named point -> how far around it a faint disc reaches.
        images: Further named points, drawn above all others.
        height: Of the plot in pixels.
    """
    radii, images = radii or {}, images or {}
    everything = np.concatenate([*points.values(), *(place[None] for place in (*named.values(), *images.values()))])
    low = everything.min(axis=0)
    span = np.maximum(everything.max(axis=0) - low, 1e-9)

    def place_of(point: NDArray[np.floating]) -> tuple[float, float]:
        x, y = 0.03 + 0.94 * (point - low) / span
        return float(x), (1 - float(y)) * height

    def style_of(name: str) -> str:
        return tint(domain_colour(families.get(name, name)))

    marks = {name: place_of(point) for name, point in (*images.items(), *named.items())}
    discs = [
        _tag("ellipse", _tag("title", f"spread of {name}"), css="disc tint", style=style_of(name),
             cx=_share(marks[name][0]), cy=marks[name][1], rx=_share(0.94 * radius / span[0]),
             ry=0.94 * radius / span[1] * height)
        for name, radius in radii.items() if name in named
    ]  # fmt: skip
    body = [_tag("rect", css="frame", width="100%", height=height)]
    if discs:
        body.append(_tag("svg", *discs, width="100%", height=height))  # which cuts them off at the frame
    for name, places in points.items():
        circles = [_tag("circle", cx=_share(x), cy=y, r=3) for x, y in map(place_of, places)]
        body.append(_tag("g", _tag("title", name), *circles, css="tint faded", style=style_of(name)))
    for name in named:
        x, y = marks[name]
        ring = {"css": "tint ringed", "style": style_of(name), "cx": _share(x), "cy": y, "r": 6}
        body.append(_tag("circle", _tag("title", name), **ring))  # type: ignore[arg-type]
    for name in images:
        x, y = marks[name]
        cross = _tag("path", _tag("title", name), d="M-7 0H7M0 -7V7")
        body.append(_tag("svg", cross, css="cross", x=_share(x), y=y))
    body += _names_of_marks(marks, height)
    body += [
        _tag("text", axes[0], x="50%", y=height + 18, text_anchor="middle"),
        _tag("text", axes[1], transform=f"translate(-8 {height // 2}) rotate(-90)", text_anchor="middle"),
    ]
    extent = f"{counted(sum(map(len, points.values())), 'point')} of {counted(len(points), 'domain')}"
    words = f"{extent}, and {', '.join([*named, *images])}"
    shown = dict.fromkeys(families.get(name, name) for name in (*points, *named))
    legend = [(family, domain_colour(family)) for family in shown]
    return _chart(title, words, body, height, (0, 10, 26, 20), legend)


def _names_of_marks(marks: Mapping[str, tuple[float, float]], height: int) -> list[Markup]:
    """Names that do not cover each other where the page is wide; a narrow one leaves them to pointing."""
    pixels = [(x * _PLOT_PX, y) for x, y in marks.values()]
    sides = label_places(pixels, [_LETTER_PX * len(name) for name in marks], (_PLOT_PX, height))
    return [
        _tag("text", name, css="on wide", x=_share(x), y=y, dx=side.dx, dy=side.dy, text_anchor=side.anchor)
        for (name, (x, y)), side in zip(marks.items(), sides, strict=True)
        if side is not None
    ]


@dataclass(frozen=True, kw_only=True)
class TimeAxis:
    """What charts over time share, so that what stands above each other happened at the same time.

    Attributes:
        seconds: Middle of each stretch, rising.
        stretch_s: Length of a stretch.
        segments: What the recording calls each stretch; "" and "transition" are no names.
    """

    seconds: Sequence[float]
    stretch_s: float
    segments: Sequence[str]

    @property
    def end_s(self) -> float:
        """Right end of the axis."""
        return self.seconds[-1] + self.stretch_s / 2 if self.seconds else 1.0

    def edges(self) -> list[tuple[float, float]]:
        """Where each stretch begins and ends, as shares of the axis; one reaches halfway to its neighbours."""
        middles = [(before + after) / 2 / self.end_s for before, after in pairwise(self.seconds)]
        return list(zip([0.0, *middles], [*middles, 1.0], strict=True)) if self.seconds else []

    def clock(self, seconds: float) -> str:
        """A moment in words."""
        if self.end_s < 300:
            return f"{round(seconds, 2):g} s"
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}:{rest:02d} min"


def lines(
    title: str,
    axis: TimeAxis,
    series: Mapping[str, Values],
    colours: Mapping[str, Colour],
    *,
    strong: str = "",
    unit: str = "",
    digits: int = 2,
    from_zero: bool = True,
    threshold: float | None = None,
    height: int = 190,
) -> Chart | None:
    """One line per series over time.

    Args:
        title: Of the chart.
        axis: The time.
        series: Name -> value per stretch, None where nothing is known.
        colours: Name -> colour.
        strong: Name of the line that is drawn last and thicker.
        unit: Behind the values, such as " ms".
        digits: Decimals of the values in words.
        from_zero: The value axis begins at 0; otherwise below the smallest value.
        threshold: Drawn as a dashed line.
        height: Of the plot in pixels.

    Returns:
        None where nothing is known.
    """
    series = {name: values for name, values in series.items() if any(value is not None for value in values)}
    known = [value for values in series.values() for value in values if value is not None]
    if not known:
        return None
    high = max([*known, threshold or 0.0]) * 1.06 or 1.0
    low = 0.0 if from_zero else max(0.0, math.floor(10 * min(known)) / 10)
    dashes = {name: "" if name == strong else dash for name, dash in zip(series, itertools.cycle(_DASHES))}
    paths = [
        _tag("path", css="line tint", style=tint(colours[name]), d=_path(axis, series[name], low, high),
             stroke_width=2.6 if name == strong else 1.8, stroke_dasharray=dashes[name], data_series=name)
        for name in sorted(series, key=lambda name: name == strong)
    ]  # fmt: skip
    body = [*_frame(axis, low, high, height, lambda value: f"{value:.4g}{unit}"), _stretched(paths, height)]
    if threshold is not None:
        y = height * (high - threshold) / (high - low)
        body += [
            _level(y, "threshold"),
            _tag("text", f"threshold {threshold:g}", css="on bad", x="100%", y=y, dy=-5, text_anchor="end"),
        ]

    def told(value: float) -> str:
        return f"{value:.{digits}f}{unit}"

    def reading(index: int) -> list[str]:
        values = ((name, values[index]) for name, values in series.items())
        return [f"{name} {told(value)}" for name, value in values if value is not None]

    body.append(_readings(axis, reading, height))
    words = "; ".join(_range(name, values, told) for name, values in series.items())
    legend = [(name, colours[name]) for name in series]
    return _chart(title, f"Over {axis.clock(axis.end_s)}. {words}", body, height, (24, 22, 26, 48), legend)


def shares(
    title: str,
    axis: TimeAxis,
    series: Mapping[str, Sequence[float]],
    marks: Sequence[tuple[float, str]] = (),
    *,
    height: int = 190,
) -> Chart:
    """Stacked shares of adapters over time, with marks below the axis.

    Args:
        title: Of the chart.
        axis: The time.
        series: Adapter -> share per stretch, 0..1; drawn in this order from the bottom up.
        marks: Moments in seconds, and what happened there.
        height: Of the plot in pixels.
    """
    edges = axis.edges()
    below = np.zeros(len(edges))
    paths = []
    for name, values in series.items():
        above = below + np.asarray(values, float)
        upper, lower = (
            [f"{1000 * x:.1f} {100 - 100 * y:.2f}" for edge, y in zip(edges, line, strict=True) for x in edge]
            for line in (above, below)
        )
        outline = f"M{'L'.join([*upper, *reversed(lower)])}Z"
        paths.append(_tag("path", css="area tint", style=tint(domain_colour(name)), d=outline, data_series=name))
        below = above
    body = [*_frame(axis, 0.0, 1.0, height, "{:.0%}".format), _stretched(paths, height)]
    for seconds, told in marks:
        triangle = _tag("path", _tag("title", told), d="M0 1l-4 7h8z")
        body.append(_tag("svg", triangle, css="mark", x=_share(seconds / axis.end_s), y=height))

    def reading(index: int) -> list[str]:
        return [f"{name} {values[index]:.0%}" for name, values in series.items() if values[index] >= 0.005]

    body.append(_readings(axis, reading, height))
    means = "; ".join(f"{name} {np.mean(values):.0%}" for name, values in series.items())
    words = f"Over {axis.clock(axis.end_s)}, on average {means}. Marked: {counted(len(marks), 'change')}."
    return _chart(title, words, body, height, (24, 22, 30, 48), [(name, domain_colour(name)) for name in series])


def _path(axis: TimeAxis, values: Values, low: float, high: float) -> str:
    """Points joined over short holes: those are an image rate below the chart's resolution; longer ones are pauses."""
    path, last_s = "", -math.inf
    for seconds, value in zip(axis.seconds, values, strict=True):
        if value is not None:
            is_joined = seconds - last_s < max(6 * axis.stretch_s, 3)
            x, y = 1000 * seconds / axis.end_s, 100 * (high - value) / (high - low)
            path += f"{'L' if is_joined else 'M'}{x:.1f} {y:.2f}"
            last_s = seconds
    return path


def _frame(axis: TimeAxis, low: float, high: float, height: int, in_words: Callable[[float], str]) -> list[Markup]:
    """Named stretches as bands, levels of the value axis, moments below."""
    parts = []
    stretches = []
    for name, run in itertools.groupby(zip(axis.segments, axis.edges(), strict=True), key=lambda part: part[0]):
        edges = [edge for _, edge in run]
        if name not in BETWEEN:
            stretches.append((name, edges[0][0], edges[-1][1]))
    ends, begins = [0.0, *(end for _, _, end in stretches)], [*(begin for _, begin, _ in stretches[1:]), 1.0]
    for (name, begin, end), before, after in zip(stretches, ends, begins, strict=False):
        band: dict[str, object] = {"x": _share(begin), "width": _share(end - begin), "height": height}
        parts.append(_tag("rect", css="band tint", style=tint(domain_colour(name)), **band))
        room = end - begin + min(begin - before, after - end)  # up to the middle between two bands
        if room * 900 > _LETTER_PX * len(name):  # narrow screens leave the names out
            parts.append(_tag("text", name, css="wide", x=_share((begin + end) / 2), y=-8, text_anchor="middle"))
    for value in _steps(low, high, 4):
        y = height * (high - value) / (high - low)
        parts += [_level(y), _tag("text", in_words(value), x=-8, y=y, dy=4, text_anchor="end")]
    return [*parts, *_moments(_steps(0, axis.end_s, 5), axis.end_s, height, axis.clock)]


def _moments(values: Sequence[float], end: float, height: float, in_words: Callable[[float], str]) -> list[Markup]:
    """Values of the axis along x, below the plot."""
    return [
        _tag("text", in_words(value), x=_share(value / end), y=height + 20, text_anchor="middle") for value in values
    ]


def _readings(axis: TimeAxis, told: Callable[[int], list[str]], height: int) -> Markup:
    """Strips that say the values of their moment when pointed at."""
    strips = []
    for index, (begin, end) in enumerate(axis.edges()):
        moment = ", ".join(filter(None, [axis.clock(axis.seconds[index]), axis.segments[index]]))
        title = _tag("title", "\n".join([moment, *told(index)]))
        strips.append(_tag("rect", title, x=_share(begin), width=_share(end - begin), height=height))
    return _tag("g", *strips, css="readings")


def _steps(low: float, high: float, count: int) -> list[float]:
    """About `count` round values from low to high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _range(name: str, values: Values, in_words: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return f"{name}: nothing known"
    return f"{name}: {in_words(min(known))} to {in_words(max(known))}, mean {in_words(sum(known) / len(known))}"


def _whisker(centre: float, spread: float, y: float) -> list[Markup]:
    if not spread:
        return []
    x1, x2 = _share(max(0.0, centre - spread)), _share(centre + spread)
    return [_tag("line", css="whisker", x1=x1, x2=x2, y1=y, y2=y)]


def _level(y: float, css: str = "grid") -> Markup:
    return _tag("line", css=css, x1=0, x2="100%", y1=y, y2=y)


def _room(labels: Iterable[str]) -> int:
    """Pixels that labels beside a plot take."""
    return round(12 + _LETTER_PX * max(map(len, labels), default=0))


def _stretched(paths: Sequence[Markup], height: int) -> Markup:
    """Paths in a plane of 1000 x 100 that is stretched to the plot."""
    return _tag("svg", *paths, viewBox="0 0 1000 100", preserveAspectRatio="none", width="100%", height=height)


def _chart(
    title: str,
    words: str,
    body: Sequence[Markup],
    height: int,
    margins: tuple[int, int, int, int],
    legend: Sequence[tuple[str, Colour]] = (),
) -> Chart:
    """A plot of so many pixels' height; labels stand in its margins (top, right, bottom, left)."""
    top, right, bottom, left = margins
    style = f"margin:{top}px {right}px {bottom}px {left}px;width:calc(100% - {left + right}px)"
    parts = [_tag("title", title), _tag("desc", words), *body]
    return Chart(svg=_tag("svg", *parts, css="chart", role="img", style=style, height=height), legend=legend)


def _tag(name: str, *children: str | Markup, css: str = "", **attributes: object) -> Markup:
    """An element; underscores of attribute names become hyphens, empty attributes are left out."""
    given = {"class": css, **{key.replace("_", "-"): value for key, value in attributes.items()}}
    shown = {key: round(value, 2) if isinstance(value, float) else value for key, value in given.items()}
    words = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in shown.items() if value != "")
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), words, Markup("").join(children))


def _share(value: float) -> str:
    return f"{round(100 * value, 2):g}%"
