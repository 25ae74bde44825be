"""The replay's report: one HTML file with its pictures, styles and scripts inside, readable offline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from semla_ros.file_integrity import write_atomically
from semla_ros.lab.report.pictures import domain_colour

_TEMPLATES = Path(__file__).parent / "templates"
_VARIANT_COLOURS = ("#0f766e", "#8a94a3", "#c2670a", "#5b5bd6", "#be3a7a", "#2f7fd1", "#7a6a2c")


def write_report(path: Path, summary: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Write the report.

    Args:
        path: The HTML file.
        summary: What `summary.json` holds.
        data: Timeline, fusions, gallery and palette; see `replay._State.report_data`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    names = list(summary["variants"])
    colours = _variant_colours(names, str(summary["primary"]))
    rows = [_variant_row(summary, name, colours[name]) for name in names]
    timeline = data["timeline"]
    adapters = {name for entry in timeline["variants"].values() for name in entry["weights"]}
    page_data = {
        **data,
        "primary": summary["primary"],
        "adapting": [name for name in names if name == "semla" or name.startswith("frozen@")],
        "variant_colours": colours,
        "adapter_colours": {name: "#{:02x}{:02x}{:02x}".format(*domain_colour(name)) for name in adapters},
        "segment_colours": {name: domain_colour(name) for name in set(timeline["segment"]) if name},
    }
    html = environment.get_template("replay_report.html").render(
        summary=summary,
        bag_name=Path(str(summary["bag"])).name,
        headline=_headline(summary),
        explanation=_explanation(summary),
        duration=_duration(float(summary["duration_s"])),
        figures=_figures(summary),
        rows=rows,
        stages=_stages(summary),
        has_shifted=any(entry["shifted_miou"] is not None for entry in summary["variants"].values()),
        has_drift=any(value is not None for entry in timeline["variants"].values() for value in entry["drift"]),
        has_bag=(path.parent / "masks").is_dir(),
        agreement=[
            (pair.replace("|", " and "), _percent(share, 1))
            for pair, share in summary["agreement"].items()
            if share is not None
        ],
        bin_text=f"{timeline['bin_s']:g} s of the recording",
        gallery=data["gallery"],
        classes=list(zip(summary["classes"], data["palette"], strict=True)),
        segment_rows=_segment_rows(summary),
        class_rows=_class_rows(summary, data["palette"]),
        worklist=_worklist(summary),
        settings=_settings(summary),
        css=Markup((_TEMPLATES / "replay_report.css").read_text(encoding="utf-8")),
        js=Markup((_TEMPLATES / "replay_report.js").read_text(encoding="utf-8")),
        data=Markup(_script_json(page_data)),
    )
    write_atomically(path, html)


def _script_json(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _variant_colours(names: Sequence[str], primary: str) -> dict[str, str]:
    """The primary variant is always the same strong colour, base the same grey."""
    fixed = {primary: _VARIANT_COLOURS[0]}
    if primary != "base":
        fixed["base"] = _VARIANT_COLOURS[1]
    others = iter(_VARIANT_COLOURS[2:] * (len(names) // 5 + 1))
    return {name: fixed[name] if name in fixed else next(others) for name in names}


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
        return f"{primary} and {reference} agree on {_percent(pair, 1)} of the pixels; there is no ground truth"
    gain = entry["miou"] - other["miou"]
    if abs(gain) < 0.005:
        return f"Adapting made no difference: {primary} {entry['miou']:.3f}, {reference} {other['miou']:.3f} mIoU"
    verb = "helped" if gain > 0 else "hurt"
    return f"Adapting {verb}: {primary} {entry['miou']:.3f} mIoU, {reference} {other['miou']:.3f} ({_signed(gain)})"


def _explanation(summary: Mapping[str, Any]) -> str:
    if summary["rate"] == "realtime":
        return (
            "Arrival times and latency count: at each frame's arrival the newest mask that was ready is judged, and a "
            "frame that came while the model was busy was replaced by a newer one."
        )
    return "No frame was dropped; latency does not count in these figures."


def _figures(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The tiles at the top."""
    entry = summary["variants"][summary["primary"]]
    primary, reference = summary["primary"], summary["reference"]
    figures = []

    def add(label: str, value: str, more: str, tone: str = "") -> None:
        figures.append({"label": label, "value": value, "more": more, "tone": tone})

    if entry["miou"] is not None:
        other = summary["variants"][reference]["miou"] if reference else None
        gain = None if other is None else entry["miou"] - other
        more = f"over {entry['frames_with_truth']} frames" if gain is None else f"{_signed(gain)} against {reference}"
        add(f"mIoU of {primary}", _figure(entry["miou"]), more, _tone(gain))
        if entry["shifted_miou"] is not None and reference:
            shifted = summary["variants"][reference]["shifted_miou"]
            gain = None if shifted is None else entry["shifted_miou"] - shifted
            add(
                "mIoU, shifted",
                _figure(entry["shifted_miou"]),
                f"{_signed(gain)} against {reference}",
                _tone(gain),
            )
    else:
        pairs = [share for share in summary["agreement"].values() if share is not None]
        if pairs:
            add("lowest agreement", _percent(min(pairs), 1), "of two variants, share of pixels")
    if entry["confidence"] is not None:
        add("confidence", _figure(entry["confidence"], 2), "mean over all pixels")
    if entry["flicker"] is not None:
        add("flicker", _percent(entry["flicker"], 1), "pixels per frame")
    add("fusions", str(entry["fusions"]), f"{entry['generations']} generations")
    duration = float(summary["duration_s"])
    share = entry["out_of_library_s"] / duration if duration else 0.0
    add("out of library", f"{entry['out_of_library_s']:.1f} s", f"{_percent(share, 0)} of the time")
    total = entry["latency_ms"].get("total")
    if total:
        add("latency p95", f"{total['p95']:.0f} ms", f"median {total['p50']:.0f} ms")
    return figures


def _variant_row(summary: Mapping[str, Any], name: str, colour: str) -> dict[str, Any]:
    entry = summary["variants"][name]
    reference = summary["reference"]
    gain = None
    if reference and name != reference and entry["miou"] is not None:
        other = summary["variants"][reference]["miou"]
        gain = None if other is None else entry["miou"] - other
    latency = entry["latency_ms"].get("total")
    return {
        "name": name,
        "colour": colour,
        "miou": _figure(entry["miou"]),
        "gain": _signed(gain),
        "tone": _tone(gain),
        "shifted": _figure(entry["shifted_miou"]),
        "confidence": _figure(entry["confidence"], 3),
        "flicker": _percent(entry["flicker"], 1),
        "fusions": entry["fusions"],
        "out_of_library": f"{entry['out_of_library_s']:.1f} s",
        "latency": f"{latency['p50']:.1f} / {latency['p95']:.1f}" if latency else "–",
        "dropped": entry["dropped"],
        "frames": entry["frames"],
        "digest": entry["mask_sha256"],
        "stages": [
            "–"
            if stage not in entry["latency_ms"]
            else " / ".join(f"{entry['latency_ms'][stage][key]:.1f}" for key in ("p50", "p95", "max"))
            for stage in _stages(summary)
        ],
    }


def _stages(summary: Mapping[str, Any]) -> list[str]:
    stages: dict[str, None] = {}
    for entry in summary["variants"].values():
        stages |= dict.fromkeys(entry["latency_ms"])
    return list(stages)


def _segment_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    variants = summary["variants"]
    primary, reference = summary["primary"], summary["reference"]
    rows = []
    for segment, entry in variants[primary]["per_segment"].items():
        gain = None
        if reference:
            gain = _difference(entry["miou"], variants[reference]["per_segment"].get(segment, {}).get("miou"))
        rows.append(
            {
                "name": segment,
                "frames": entry["frames"],
                "cells": [_heat(item["per_segment"].get(segment, {}).get("miou")) for item in variants.values()],
                "gain": _signed(gain),
                "tone": _tone(gain),
                "heaviest": variants[primary]["segment_adapters"].get(segment, "–"),
            }
        )
    return rows


def _class_rows(summary: Mapping[str, Any], palette: Sequence[str]) -> list[dict[str, Any]]:
    variants = summary["variants"]
    primary, reference = summary["primary"], summary["reference"]
    rows = []
    for name, colour in zip(summary["classes"], palette, strict=True):
        if not variants[primary]["per_class"]:
            return []
        gain = None
        if reference:
            gain = _difference(variants[primary]["per_class"][name], variants[reference]["per_class"].get(name))
        rows.append(
            {
                "name": name,
                "colour": colour,
                "cells": [_heat(entry["per_class"].get(name)) for entry in variants.values()],
                "gain": _signed(gain),
                "tone": _tone(gain),
            }
        )
    return rows


def _worklist(summary: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    if "worklist" not in summary:
        return None
    return [
        {
            "start": f"{item['start_s']:.1f} s",
            "end": f"{item['end_s']:.1f} s",
            "length": f"{item['duration_s']:.1f} s",
            "segment": item["segment"] or "–",
            "frames": item["frames"],
            "confidence": _figure(item["mean_confidence"], 2),
            "miou": _figure(item["mean_miou"], 2),
            "nearest": ", ".join(f"{near['name']} ({near['distance']:.2f})" for near in item["nearest_adapters"])
            or "–",
            "examples": item["examples"],
        }
        for item in summary["worklist"]
    ]


def _settings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings = summary["settings"]
    lines = [("bag", str(summary["bag"]))]
    lines += [
        (f"camera {camera['name']}".strip(), f"{camera['topic']}, {camera['frames']} frames, "
         + (f"truth from {camera['truth']}" if camera["truth"] else "no truth topic"))
        for camera in summary["cameras"]
    ]  # fmt: skip
    for key, value in settings.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
        lines.append((key, _plain(value)))
    time = summary.get("time")
    if time:
        lines.append(
            ("run", f"{time['wall_s']:.1f} s, reading and decoding {_percent(time['read_decode_share'], 1)} of it, "
             f"peak memory {time['peak_memory_mb']:.0f} MB")
        )  # fmt: skip
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "–"
    return "–" if value == "" else str(value)


def _heat(value: float | None) -> dict[str, str]:
    """A table cell whose ground tells the figure, too: white at 0, green at 1."""
    if value is None:
        return {"text": "–", "colour": "transparent"}
    return {"text": f"{value:.3f}", "colour": f"rgba(15, 118, 110, {0.34 * value:.3f})"}


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _percent(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _tone(gain: float | None) -> str:
    """Colour of a difference that is worth one."""
    if gain is None or abs(gain) < 0.005:
        return ""
    return "good" if gain > 0 else "bad"


def _duration(seconds: float) -> str:
    if seconds < 300:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
