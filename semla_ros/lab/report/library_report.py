"""A library in pictures and pages: where its centroids lie, and why an image gets its mix.

`Explained` is what `adaptation/explanation.py` says of an image, as plain values.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from semla_ros.errors import counted
from semla_ros.lab.report.charts import Value, bars
from semla_ros.lab.report.embedding_map import Scenery, embedding_map
from semla_ros.lab.report.label_places import label_places
from semla_ros.lab.report.page import Cell, Page, Picture, Pictures, Section, Table, Tile, Words
from semla_ros.lab.report.palette import domain_colour, to_hex
from semla_ros.results import BASE_MODEL, ImageArray

Explained = Mapping[str, Any]

INK, FAINT, GRID = "#1d2430", "#5b6472", "#dfe3e8"
MOST_THUMBNAILS = 8
MOST_BARS = 8  # adapters with a bar of their own
MAP_NOTE = (
    "Scene embeddings on their two axes of greatest variance. Ringed: centroids, which retrieval measures distance to; "
    "discs: their spreads, within which 95 % of a domain's own images lie in all dimensions; small: known scenes; "
    "crosses: images."
)
_DPI = 110


_plainly = rc_context({"text.parse_math": False})  # a "$" in the name of a file is a "$"


@_plainly
def map_picture(scenery: Scenery, title: str, thumbnails: Mapping[str, ImageArray]) -> bytes:
    """The map as PNG, 1100 x 880 pixels, and below it what the images show.

    Args:
        scenery: What is drawn.
        title: Above it.
        thumbnails: Image of the scenery -> picture; those beyond `MOST_THUMBNAILS` are left out.
    """
    figure = Figure(figsize=(10, 8), dpi=_DPI, facecolor="white")
    foot = 0.16 if thumbnails else 0.0
    _draw_map(figure.add_axes((0.06, 0.06 + foot, 0.92, 0.88 - foot)), scenery)
    width = 0.92 / MOST_THUMBNAILS
    for index, (name, picture) in enumerate(list(thumbnails.items())[:MOST_THUMBNAILS]):
        axes = figure.add_axes((0.06 + index * width, 0.035, 0.94 * width, foot - 0.045))
        axes.imshow(picture)
        axes.set_axis_off()
        short = name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}"
        axes.set_title(short, fontsize=7.5, color=INK, y=-0.22)
    figure.suptitle(title, x=0.06, ha="left", fontsize=13, fontweight="bold", color=INK)
    return _png(figure)


@_plainly
def explanation_picture(image: ImageArray, explained: Explained, verdict: str, scenery: Scenery) -> bytes:
    """Image, weights and map beside each other, as PNG of 1650 x 550 pixels."""
    figure = Figure(figsize=(15, 5), dpi=_DPI, facecolor="white")
    left = figure.add_axes((0.02, 0.06, 0.28, 0.8))
    left.imshow(image)
    left.set_axis_off()
    _draw_weights(figure.add_axes((0.44, 0.12, 0.2, 0.72)), explained)
    _draw_map(figure.add_axes((0.68, 0.1, 0.31, 0.78)), scenery, size=8)
    title = f"{explained['image']} {verdict}"
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold", color=INK)
    return _png(figure)


def map_page(
    scenery: Scenery,
    rows: Sequence[Mapping[str, Any]],
    folder: str,
    explained: Sequence[Explained],
    thumbnails: Mapping[str, ImageArray],
) -> Page:
    """A page with the map and a table of the adapters.

    Args:
        scenery: What is drawn.
        rows: Per adapter "name", "family", "images", "spread" and "neighbour" in words, and "gap", the distance to it.
        folder: Of the library.
        explained: The images.
        thumbnails: Image of the scenery -> picture.
    """
    pictures = [
        Picture(images=[(_uri(pixels), f"what {name} shows")], title=name) for name, pixels in thumbnails.items()
    ]
    cells: list[list[Cell | str]] = [
        [
            Cell(text=row["name"], colour=domain_colour(row["family"] or row["name"])),
            row["family"],
            str(row["images"] or "unknown"),
            row["spread"],
            "" if row["gap"] is None else f"{row['gap']:.3g}",
            row["neighbour"],
        ]
        for row in rows
    ]
    head = ["adapter", "family", "images", "spread", "to the next", "which is"]
    return Page(
        title=f"Map of {counted(len(rows), 'adapter')}",
        name="Adapter library",
        subtitle=folder,
        sections=[
            Section(title="Map", note=MAP_NOTE, parts=[embedding_map(scenery, "Map of the adapter library")]),
            Section(title="Images", parts=[_images_table(explained), Pictures(pictures=pictures)] if explained else []),
            Section(
                title="Adapters",
                note="Distances between centroids; ~ marks a spread that is estimated.",
                parts=[Table(head=head, rows=cells, left=(1, 5))],
            ),
        ],
    )


def explanation_page(
    image: ImageArray, explained: Explained, verdict: str, sentences: Sequence[str], scenery: Scenery
) -> Page:
    """A page with the image, the sentences, the figures of every adapter and the map."""
    nearest = explained["adapters"][0]
    is_out = explained["out_of_library"]
    bars_shown = [
        Value(label=row["name"], value=row["weight"], colour=_colour(row)) for row in _weighed(explained)[:MOST_BARS]
    ]
    bars_shown.append(Value(label=BASE_MODEL, value=explained["base_weight"], colour=domain_colour(BASE_MODEL)))
    return Page(
        title=f"{explained['image']} {verdict}",
        name=f"Why {explained['image']} gets its adapters",
        tiles=[
            Tile(label="nearest adapter", value=nearest["name"], colour=_colour(nearest)),
            Tile(label="distance", value=f"{nearest['distance']:.3g}", more=f"spread {_figure(nearest['spread'])}"),
            Tile(
                label="left to the base model",
                value=f"{explained['base_weight']:.0%}",
                more="outside the library" if is_out else "within the library",
                tone="bad" if is_out else "good",
            ),
        ],
        sections=[
            Section(
                title="Why",
                parts=[
                    Picture(images=[(_uri(image), "the image")], title=explained["image"]),
                    *(Words(text=text) for text in sentences),
                ],
            ),
            Section(title="Mix", parts=[bars("Share of each adapter in the mix, percent", bars_shown)]),
            Section(
                title="Every adapter",
                note="Nearest first. Strangeness: 1 is where a domain's own images end; the fade goes from "
                f"{explained['fade_start']:g} to {explained['fade_end']:g}.",
                parts=[_reasons_table(explained)],
            ),
            Section(title="Map", note=MAP_NOTE, parts=[embedding_map(scenery, "Where the image falls in the library")]),
        ],
    )


def _draw_map(axes: Axes, scenery: Scenery, size: float = 9.5) -> None:
    """Centroids, spreads, known scenes and images in the plane of the chart, both axes to one scale."""
    plane = scenery.plane
    for name, values in scenery.drawn.items():
        x, y = plane.place(values).T
        axes.scatter(x, y, s=9, color=_shade(scenery, name), alpha=0.5, linewidths=0, label=None)
    marks = {name: plane.place(item) for name, item in (*scenery.images.items(), *scenery.centroids.items())}
    for name, radius in scenery.spreads.items():
        colour = _shade(scenery, name)
        axes.add_patch(
            Circle(
                (marks[name][0], marks[name][1]),
                radius,
                facecolor=(*_rgb(colour), 0.07),
                edgecolor=(*_rgb(colour), 0.45),
            )
        )
    for name in scenery.centroids:
        axes.scatter(
            [marks[name][0]],
            [marks[name][1]],
            s=62,
            color=_shade(scenery, name),
            edgecolors=INK,
            linewidths=1.1,
            zorder=3,
        )
    for name in scenery.images:
        axes.scatter([marks[name][0]], [marks[name][1]], s=130, color=INK, marker="x", linewidths=2.6, zorder=4)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.06)
    _quiet(axes)
    for label, axis in zip(plane.names, (axes.xaxis, axes.yaxis), strict=True):
        axis.set_label_text(label, color=FAINT, fontsize=size)
    _draw_names(axes, marks, size, set(scenery.images))


def _draw_names(axes: Axes, marks: Mapping[str, Any], size: float, strong: set[str]) -> None:
    """Names that do not cover each other; those for which there is no room are left out."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # limits are those of the picture from now on
    frame, scale = axes.get_window_extent(), 72 / figure.dpi
    places = axes.transData.transform(list(marks.values())) - (frame.x0, frame.y0)
    points = [(float(x) * scale, float(frame.height - y) * scale) for x, y in places]
    plot = float(frame.width) * scale, float(frame.height) * scale
    widths = [0.62 * size * len(name) for name in marks]
    for (name, mark), side in zip(marks.items(), label_places(points, widths, plot), strict=True):
        if side is not None:
            axes.annotate(
                name, mark, (side.dx, -side.dy), textcoords="offset points", fontsize=size, color=INK, zorder=5,
                ha={"start": "left", "middle": "center", "end": "right"}[side.anchor],
                fontweight="bold" if name in strong else "normal",
            )  # fmt: skip


def _draw_weights(axes: Axes, explained: Explained) -> None:
    """Bars of the mix, with outlines of what each adapter had by distance alone."""
    rows = _weighed(explained)[:MOST_BARS]
    names = [*(row["name"] for row in rows), BASE_MODEL]
    weights = [*(row["weight"] for row in rows), explained["base_weight"]]
    by_distance = [*(row["weight_by_distance"] for row in rows), explained["base_weight_by_distance"]]
    colours = [*(to_hex(_colour(row)) for row in rows), to_hex(domain_colour(BASE_MODEL))]
    axes.barh(names, weights, color=colours, height=0.62)
    axes.barh(names, by_distance, facecolor="none", edgecolor=INK, linewidth=1.0, height=0.62)
    for index, (weight, outline) in enumerate(zip(weights, by_distance, strict=True)):
        axes.text(max(weight, outline) + 0.02, index, f"{weight:.0%}", va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1.2)
    axes.invert_yaxis()
    axes.set_title("mix; outlines: by distance alone", fontsize=10, color=FAINT, loc="left")
    axes.xaxis.set_visible(False)
    _quiet(axes)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=9)


def _weighed(explained: Explained) -> list[Mapping[str, Any]]:
    """Adapters that take part, at least by distance, the heaviest first."""
    rows = [row for row in explained["adapters"] if row["weight_by_distance"] >= 0.005]
    return sorted(rows, key=lambda row: -row["weight_by_distance"])


def _reasons_table(explained: Explained) -> Table:
    head = ["adapter", "distance", "spread", "of its spread", "by distance", "strangeness", "weight"]
    rows: list[list[Cell | str]] = []
    for row in explained["adapters"]:
        spread, is_taken = row["spread"], row["weight_by_distance"] >= 0.005
        rows.append(
            [
                Cell(text=row["name"], colour=_colour(row)),
                f"{row['distance']:.3g}",
                ("" if row["is_spread_measured"] else "~") + _figure(spread),
                f"{row['distance'] / spread:.2f}" if spread else "",
                f"{row['weight_by_distance']:.1%}" if is_taken else "",
                "" if row["strangeness"] is None else f"{row['strangeness']:.2f}",
                Cell(text=f"{row['weight']:.1%}", heat=row["weight"]) if is_taken else "",
            ]
        )
    return Table(head=head, rows=rows)


def _images_table(explained: Sequence[Explained]) -> Table:
    rows: list[list[Cell | str]] = [
        [
            item["image"],
            Cell(text=item["adapters"][0]["name"], colour=_colour(item["adapters"][0])),
            f"{item['adapters'][0]['distance']:.3g}",
            f"{item['base_weight']:.0%}",
            Cell(text="outside", tone="bad") if item["out_of_library"] else Cell(text="within", tone="good"),
        ]
        for item in explained
    ]
    return Table(head=["image", "nearest adapter", "distance", "base model", "the library"], rows=rows, left=(1,))


def _colour(row: Mapping[str, Any]) -> tuple[int, int, int]:
    return domain_colour(row["family"] or row["name"])


def _shade(scenery: Scenery, name: str) -> str:
    return to_hex(domain_colour(scenery.families.get(name) or name))


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red / 255, green / 255, blue / 255


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _quiet(axes: Axes) -> None:
    """Leave only the lines that carry something."""
    for spine in axes.spines.values():
        spine.set_color(GRID)
    axes.tick_params(colors=FAINT, length=0, labelsize=8)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _uri(image: ImageArray) -> str:
    """A JPEG of at most 560 pixels across as data URI."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((560, 560))
    picture.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
