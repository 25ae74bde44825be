"""The replay's report: one HTML file with its pictures inside, readable offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semla_ros.errors import counted
from semla_ros.lab.report import charts
from semla_ros.lab.report.page import (
    Cell,
    Facts,
    Frame,
    Frames,
    Legend,
    Page,
    Part,
    Picture,
    Section,
    Table,
    Tile,
    Words,
    write_page,
)
from semla_ros.lab.report.palette import domain_colour, variant_colours
from semla_ros.results import BASE_MODEL

VARIANTS_NOTE = (
    "Gain: over the variant compared with; shifted: mIoU over named stretches that are neither clear nor between two; "
    "outside: time in which the scene lay outside the library."
)
_RATES = {
    "max": "No frame was dropped; latency does not count in these figures.",
    "realtime": "Arrival times and latency count: at each frame's arrival the newest mask that was ready is judged, "
    "and a frame that came while the model was busy was replaced by a newer one.",
    "live": "The node was sent the frames at their rate; those that it dropped for newer ones are left out.",
}


def write_report(path: Path, summary: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Write the report.

    Args:
        path: The HTML file.
        summary: What `summary.json` holds.
        data: Timeline, changes of the mix, gallery and palette, as the replay collects them.

    Raises:
        ConfigError: The file cannot be written.
    """
    name = Path(str(summary["bag"])).name
    topics = "".join(f" · {camera['topic']}" for camera in summary["cameras"])
    masks = ", masks as a bag in masks/" if (path.parent / "masks").is_dir() else ""
    classes = list(zip(summary["classes"], data["palette"], strict=True))
    over_time = _OverTime(summary, data)
    page = Page(
        title=_headline(summary),
        name=f"Replay of {name}",
        subtitle=f"Replay of {name} · {counted(summary['frames'], 'frame')} over "
        f"{duration(float(summary['duration_s']))}{topics} · model {summary['settings']['model']}",
        warnings=_warnings(summary),
        tiles=_tiles(summary),
        sections=[
            _variants(summary),
            over_time.miou(),
            over_time.mix(),
            _gallery(summary, data["gallery"], classes),
            _by_segment(summary),
            _by_class(summary, classes),
            *([worklist_section(summary["worklist"])] if "worklist" in summary else []),
            over_time.stability(),
            _latency(summary, over_time),
            _how(summary),
        ],
        foot=f"semla_ros {summary['version']} · figures in summary.json, every frame in trace.jsonl{masks}",
    )
    write_page(path, page)


def _headline(summary: Mapping[str, Any]) -> str:
    """The answer in one sentence."""
    primary, reference = summary["primary"], summary["reference"]
    entry = summary["variants"][primary]
    if reference is None:
        return (
            f"{primary} reaches {entry['miou']:.3f} mIoU" if entry["miou"] is not None else f"{primary}, without truth"
        )
    other = summary["variants"][reference]
    if entry["miou"] is None or other["miou"] is None:
        pair = summary["agreement"].get(f"{reference}|{primary}", summary["agreement"].get(f"{primary}|{reference}"))
        if pair is None:
            return f"{primary} beside {reference}, without ground truth"
        return f"{primary} and {reference} agree on {share(pair)} of the pixels; there is no ground truth"
    gain = entry["miou"] - other["miou"]
    if abs(gain) < 0.005:
        return f"Adapting made no difference: {primary} {entry['miou']:.3f}, {reference} {other['miou']:.3f} mIoU"
    verb = "helped" if gain > 0 else "hurt"
    return f"Adapting {verb}: {primary} {entry['miou']:.3f} mIoU, {reference} {other['miou']:.3f} ({signed(gain)})"


def _warnings(summary: Mapping[str, Any]) -> list[tuple[str, Sequence[str]]]:
    warnings: list[tuple[str, Sequence[str]]] = []
    if not summary["complete"]:
        words = f"These are the results so far, of {counted(summary['frames'], 'frame')}. {summary['error'] or ''}"
        warnings.append(("Interrupted." if summary["interrupted"] else "Ended early.", [words]))
    if summary["problems"]:
        warnings.append(("About the recording:", summary["problems"]))
    return warnings


def _tiles(summary: Mapping[str, Any]) -> list[Tile]:
    primary, reference = summary["primary"], summary["reference"]
    entry, other = summary["variants"][primary], summary["variants"].get(reference, {})
    tiles = []
    if entry["miou"] is not None:
        for key, title in (("miou", f"mIoU of {primary}"), ("shifted_miou", "mIoU, shifted")):
            if entry[key] is not None and (reference or key == "miou"):
                gain = difference(entry[key], other.get(key))
                seen = counted(entry["frames_with_truth"], "frame")
                more = f"{signed(gain)} against {reference}" if reference else seen
                tiles.append(Tile(label=title, value=figure(entry[key]), more=more, tone=tone(gain)))
    elif pairs := [pair for pair in summary["agreement"].values() if pair is not None]:
        tiles.append(Tile(label="lowest agreement", value=share(min(pairs)), more="of two variants, share of pixels"))
    if entry["confidence"] is not None:
        tiles.append(Tile(label="confidence", value=figure(entry["confidence"], 2), more="mean over all pixels"))
    if entry["flicker"] is not None:
        tiles.append(Tile(label="flicker", value=share(entry["flicker"]), more="pixels per frame"))
    outside, whole = entry["out_of_library_s"], float(summary["duration_s"])
    more = f"{share(outside / whole if whole else 0.0, 0)} of the time"
    tiles += [
        Tile(label="fusions", value=str(entry["fusions"]), more=f"{counted(entry['recalls'], 'recall')} besides"),
        Tile(label="out of library", value=f"{outside:.1f} s", more=more),
    ]
    if total := entry["latency_ms"].get("total"):
        tiles.append(Tile(label="latency p95", value=f"{total['p95']:.0f} ms", more=f"median {total['p50']:.0f} ms"))
    return tiles


def variant_table(
    variants: Mapping[str, Mapping[str, Any]], primary: str, reference: str | None, *, rate: str = "max"
) -> Table:
    """A line per variant, of one bag or of many; columns that nothing is known for are left out."""
    colours = variant_colours(variants)
    reference_miou = variants[reference]["miou"] if reference else None
    rows: list[dict[str, Cell | str]] = []
    for name, entry in variants.items():
        gain = None if name == reference else difference(entry["miou"], reference_miou)
        row: dict[str, Cell | str] = {
            "variant": Cell(text=name, colour=colours[name]),
            "mIoU": figure(entry["miou"]),
            "gain": gain_cell(gain),
            "shifted": figure(entry["shifted_miou"]),
            "confidence": figure(entry["confidence"]),
            "flicker": share(entry["flicker"]),
            "fusions": str(entry["fusions"]),
            "outside": f"{entry['out_of_library_s']:.1f} s",
            "p50/95 ms": _latencies(entry, "total", ("p50", "p95"), digits=0),
            "drops": str(entry["dropped"]) if rate != "max" else "–",
            "frames": str(entry["frames"]),
        }
        rows.append(row)
    return table_of(rows, strong=[list(variants).index(primary)])


def table_of(
    rows: Sequence[Mapping[str, Cell | str]], *, left: Sequence[str] = (), strong: Sequence[int] = ()
) -> Table:
    """A table whose rows name their columns; columns with nothing but "–" are left out."""
    head = [name for name in rows[0] if any(row[name] not in ("–", Cell(text="–")) for row in rows)]
    cells = [[row[name] for name in head] for row in rows]
    return Table(head=head, rows=cells, strong=strong, left=[head.index(name) for name in left if name in head])


def _variants(summary: Mapping[str, Any]) -> Section:
    table = variant_table(summary["variants"], summary["primary"], summary["reference"], rate=summary["rate"])
    pairs = [f"{pair.replace('|', ' and ')}: {share(value)}" for pair, value in summary["agreement"].items() if value]
    agreement = Words(heading="Agreement: share of pixels with the same class", text=" · ".join(pairs))
    note = f"Every variant saw the very same frames. {_RATES[summary['rate']]} {VARIANTS_NOTE}"
    return Section(title="Variants", note=note, parts=[table, agreement if pairs else None])


def _latencies(entry: Mapping[str, Any], stage: str, keys: Sequence[str], *, digits: int = 1) -> str:
    found = entry.get("latency_ms", {}).get(stage)
    return " / ".join(f"{found[key]:.{digits}f}" for key in keys) if found else "–"


class _OverTime:
    """The charts over time."""

    def __init__(self, summary: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        timeline = data["timeline"]
        self._data = data
        self._series: Mapping[str, Any] = timeline["variants"]
        self._axis = charts.TimeAxis(seconds=timeline["t"], stretch_s=timeline["bin_s"], segments=timeline["segment"])
        self._primary = summary["primary"]
        self._colours = variant_colours(summary["variants"])
        self._has_truth = summary["has_truth"]

    def lines(self, measure: str, title: str, **options: Any) -> charts.Chart | None:
        """One measure of every variant."""
        values = {name: entry[measure] for name, entry in self._series.items()}
        return charts.lines(title, self._axis, values, self._colours, strong=self._primary, **options)

    def miou(self) -> Section:
        """Accuracy."""
        note = (
            f"Each point pools the pixels of {self._axis.stretch_s:g} s of the recording. Bands are the recording's "
            "named stretches."
        )
        chart = self.lines("miou", "mIoU over time", height=230) if self._has_truth else None
        return Section(title="mIoU over time", note=note, parts=[chart])

    def mix(self) -> Section:
        """What the primary variant was fused from, and how far the scene moved."""
        weights = self._series[self._primary]["weights"]
        used = {name: sum(values) for name, values in weights.items() if sum(values)}
        order = sorted(used, key=lambda name: (name == BASE_MODEL, -used[name]))
        changes = [
            (change["t"], f"generation {change['generation']} ({change['reason']}) at {self._axis.clock(change['t'])}, "
             f"heaviest: {change['heaviest']}")
            for change in self._data["changes"]
        ]  # fmt: skip
        chosen = {name: weights[name] for name in order}
        parts: list[Part | None] = [charts.shares("Adapter weights over time", self._axis, chosen, changes)]
        drift = self.lines(
            "drift", "Drift of the mix over time", threshold=self._data["mix_threshold"], digits=3, height=150
        )
        if drift:
            text = (
                "Share of the mix in use that the scene asks to change. A new mix is fused where that lasts above the "
                "threshold, or at once where the scene is another one."
            )
            parts += [Words(heading="Drift of the mix", text=text), drift]
        note = "Share of each adapter in the model in use. Triangles mark where another was put into use, and say why."
        return Section(title=f"What {self._primary} was fused from", note=note, parts=parts)

    def stability(self) -> Section:
        """What needs no truth."""
        note = (
            "Mean probability of the chosen class, and flicker: the share of pixels whose class changed from the "
            "camera's previous frame, movement of the scene included. Both need no ground truth."
        )
        parts = [
            Words(heading="Confidence"),
            self.lines("confidence", "Confidence over time", from_zero=False),
            Words(heading="Flicker"),
            self.lines("flicker", "Flicker over time", digits=3, height=150),
        ]
        return Section(title="Confidence and stability", note=note, parts=parts)


def _latency(summary: Mapping[str, Any], over_time: _OverTime) -> Section:
    variants = summary["variants"]
    stages = list(dict.fromkeys(stage for entry in variants.values() for stage in entry["latency_ms"]))
    rows = [
        [name, *(_latencies(entry, stage, ("p50", "p95", "max")) for stage in stages)]
        for name, entry in variants.items()
    ]
    beside = ", variants running side by side" if summary["rate"] != "realtime" and len(variants) > 1 else ""
    note = f"From image to mask on the machine of the replay{beside}."
    parts = [
        over_time.lines("latency", "Latency over time", digits=1, unit=" ms", height=150),
        Words(heading="By stage, p50 / p95 / largest (ms)"),
        Table(head=["variant", *stages], rows=rows),
    ]
    return Section(title="Latency", note=note, parts=parts)


def _gallery(
    summary: Mapping[str, Any], categories: Sequence[Mapping[str, Any]], classes: Sequence[tuple[str, str]]
) -> Section:
    parts: list[Part] = []
    for category in categories:
        frames = [_frame(summary["primary"], frame) for frame in category["frames"]]
        title = f"{category['title']} ({len(frames)})"
        parts += [Words(heading=title, text=category["note"]), Frames(frames=frames, is_open=not parts)]
    legend = Legend(entries=classes)
    note = "Open a frame for its masks, below them what is wrong in them, and the mix that made them."
    return Section(title="Frames worth a look", note=note, parts=[*parts, legend] if parts else [])


def _frame(primary: str, frame: Mapping[str, Any]) -> Frame:
    number = f"frame {frame['index']}"
    pictures = [Picture(images=[(frame["image"], f"Camera image, {number}")], title="camera", detail=frame["camera"])]
    if frame["truth"]:
        pictures.append(Picture(images=[(frame["truth"], f"True classes, {number}")], title="truth"))
    for name, entry in frame["variants"].items():
        images = [(entry["mask"] or "", f"Mask of {name}, {number}" if entry["mask"] else "No mask was ready.")]
        if entry["errors"]:
            images.append((entry["errors"], f"Pixels that {name} got wrong, {number}"))
        pictures.append(Picture(images=images, title=name, detail=_result(entry)))
    entry = frame["variants"][primary]
    place = ", ".join(filter(None, [f"{frame['t']:.1f} s", frame["segment"], number]))
    return Frame(pictures=pictures, title=_result(entry), place=place, explanation=_explanation(primary, frame, entry))


def _result(entry: Mapping[str, Any]) -> str:
    if entry["miou"] is not None:
        return f"mIoU {figure(entry['miou'])}"
    return f"confidence {figure(entry['confidence'], 2)}"


def _explanation(primary: str, frame: Mapping[str, Any], entry: Mapping[str, Any]) -> list[Part]:
    """The mix behind a mask, and the near adapters that got no weight in it."""
    age_s, mix = entry["scene_age_s"], entry["mix"]
    text = "" if age_s is None else f"Retrieved for a scene {age_s:.1f} s earlier. "
    if mix["out_of_library"]:
        text += (
            "The scene lies outside the library: even the nearest centroid is farther than the library's own spread. "
        )
    text += f"Stamp {frame['stamp_ns']} ns."
    heading = f"Why {primary} looked like this: generation {entry['generation']} ({entry['reason']})"
    near = [*mix["adapters"], {"name": BASE_MODEL, "weight": mix["base_weight"], "distance": None}]
    rows: list[list[Cell | str]] = [
        [
            Cell(text=item["name"], colour=domain_colour(item["name"])),
            Cell(text=share(item["weight"]), heat=item["weight"]),
            figure(item["distance"]),
        ]
        for item in near
        if item["weight"] > 0.0005 or item["distance"] is not None
    ]
    table = Table(head=["adapter", "weight in the fused model", "distance"], rows=rows)
    return [Words(heading=heading, text=text), table]


def _by_segment(summary: Mapping[str, Any]) -> Section:
    note = f"mIoU over each named stretch of the recording, and the adapter that weighed most in {summary['primary']}."
    return Section(title="By stretch", note=note, parts=[stretch_table(summary)])


def named_visits(visits: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Visits of a drive's stretches, each under a name of its own: "clear", "clear, time 2"."""
    seen: Counter[str] = Counter()
    named = []
    for visit in visits:
        seen[visit["segment"]] += 1
        time = seen[visit["segment"]]
        named.append((visit["segment"] if time == 1 else f"{visit['segment']}, time {time}", visit))
    return named


def stretch_table(summary: Mapping[str, Any]) -> Table | None:
    """A line per named stretch, one that comes back apart; None where the recording names none, or has no truth."""
    visits = {key: item["visits"] for key, item in summary["variants"].items()}
    rows: list[dict[str, Cell | str]] = [
        {
            "stretch": name,
            "frames": str(first["frames"]),
            **_compared(summary, {key: items[index]["miou"] for key, items in visits.items()}),
            "heaviest": first["adapter"],
        }
        for index, (name, first) in enumerate(named_visits(visits[summary["primary"]]))
    ]
    return table_of(rows, left=("heaviest",)) if rows else None


def _by_class(summary: Mapping[str, Any], classes: Sequence[tuple[str, str]]) -> Section:
    rows: list[dict[str, Cell | str]] = [
        {
            "class": Cell(text=name, colour=colour),
            **_compared(summary, {key: item["per_class"].get(name) for key, item in summary["variants"].items()}),
        }
        for name, colour in classes
        if summary["variants"][summary["primary"]]["per_class"]
    ]
    note = "Intersection over union of each class over all frames; – where the truth has none of it."
    return Section(title="By class", note=note, parts=[table_of(rows)] if rows else [])


def _compared(summary: Mapping[str, Any], values: Mapping[str, float | None]) -> dict[str, Cell | str]:
    """A figure of each variant, and the gain of the primary one."""
    primary, reference = summary["primary"], summary["reference"]
    cells: dict[str, Cell | str] = {name: Cell(text=figure(value), heat=value) for name, value in values.items()}
    if reference:
        cells[f"{primary} − {reference}"] = gain_cell(difference(values[primary], values[reference]))
    return cells


def worklist_section(worklist: Sequence[Mapping[str, Any]]) -> Section:
    """Stretches that no adapter covers, of one bag or (with "bag" in each) of many."""
    title = "No adapter covers these stretches"
    if not worklist:
        return Section(title=title, parts=[Words(text="None: every scene lay within the library.")])
    note = (
        "The scene lay outside the library: candidates for the next adapter, those with the most to gain first (long, "
        "and the model unsure)."
    )
    return Section(title=title, note=note, parts=[worklist_table(worklist)])


def worklist_table(worklist: Sequence[Mapping[str, Any]], *, most: int = 200) -> Table:
    """The same as a table, at least one."""
    nearest = "nearest adapters (distance)"
    rows: list[dict[str, Cell | str]] = [
        {
            "bag": item.get("bag", "–"),
            "from": f"{item['start_s']:.1f} s",
            "to": f"{item['end_s']:.1f} s",
            "length": f"{item['duration_s']:.1f} s",
            "stretch": item["segment"] or "–",
            "frames": str(item["frames"]),
            "confidence": figure(item["mean_confidence"], 2),
            "mIoU": figure(item["mean_miou"], 2),
            nearest: ", ".join(f"{near['name']} ({near['distance']:.2f})" for near in item["nearest_adapters"]) or "–",
            # Those of many bags lie in the bags' own folders.
            "examples": "–"
            if "bag" in item
            else Cell(links=[(name, str(number)) for number, name in enumerate(item["examples"], 1)]),
        }
        for item in worklist[:most]
    ]
    return table_of(rows, left=("stretch", nearest, "examples"))


def _how(summary: Mapping[str, Any]) -> Section:
    digests = Facts(pairs=[(name, entry["mask_sha256"]) for name, entry in summary["variants"].items()])
    heading = Words(heading="Digest of all masks in order (SHA-256)")
    return Section(title="How this was made", parts=[Facts(pairs=_settings(summary)), heading, digests])


def _settings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [("bag", str(summary["bag"]))]
    for camera in summary["cameras"]:
        truth = f"truth from {camera['truth']}" if camera["truth"] else "no truth topic"
        lines.append(
            (f"camera {camera['name']}".strip(), f"{camera['topic']}, {counted(camera['frames'], 'frame')}, {truth}")
        )
    lines += [("topic", line) for line in topic_lines(summary)]
    for key, value in summary["settings"].items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
        lines.append((key, _plain(value)))
    if time := summary.get("time"):
        words = (
            f"{time['wall_s']:.1f} s, reading and decoding {share(time['read_decode_share'])} of it, peak memory "
            f"{time['peak_memory_mb']:.0f} MB"
        )
        lines.append(("run", words))
    return lines


def topic_lines(summary: Mapping[str, Any]) -> list[str]:
    """What was read of a bag, topic by topic, against which truth, and what was left out and why."""
    uses = ("images", "truth", "stretches")
    used = [topic for use in uses for topic in summary["topics"] if topic["used_as"] == use]
    lines = [f"{topic['used_as']}: {topic['topic']}, {_counts(topic)}" for topic in used]
    if not any(topic["used_as"] == "truth" for topic in used):
        choice = " ".join(summary["settings"]["frames"]["truth"])
        lines.append(f"truth: {'none' if choice in ('auto', 'none') or not summary['has_truth'] else choice}")
    lines += [f"left out: {topic['topic']}, {topic['why_not']}" for topic in summary["topics"] if topic["why_not"]]
    unused = [topic for topic in summary["topics"] if not topic["used_as"] and topic["lost"]]
    return lines + [f"not used: {topic['topic']}, {_counts(topic)}" for topic in unused]


def _counts(topic: Mapping[str, Any]) -> str:
    numbers = [(topic["lost"], "lost"), (topic["left_out"], "not asked for")]
    words = [f"{topic['delivered']} of {counted(topic['counted'], 'message')} read"]
    return ", ".join(words + [f"{number} {what}" for number, what in numbers if number])


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "–"
    return "–" if value == "" else str(value)


def difference(a: float | None, b: float | None) -> float | None:
    """A - b; None where one of them is."""
    return None if a is None or b is None else a - b


def figure(value: float | None, digits: int = 3) -> str:
    """A number, or "–"."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """A difference with its sign, or "–"."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def share(value: float | None, digits: int = 1) -> str:
    """A share in percent, or "–"."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def tone(gain: float | None) -> str:
    """Colour of a difference that is worth one."""
    if gain is None or abs(gain) < 0.005:
        return ""
    return "good" if gain > 0 else "bad"


def gain_cell(gain: float | None) -> Cell:
    """A difference in its colour."""
    return Cell(text=signed(gain), tone=tone(gain))


def duration(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 300:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
