"""summary.json, the table with the goals, and the latency histogram."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Column, Table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from semla_ros.commands.tables import print_table
from semla_ros.errors import counted


@dataclass(frozen=True)
class Goal:
    """A figure of summary.json and what it is to be."""

    key: str
    meaning: str
    bound: float
    is_minimum: bool
    unit: str = "x"

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.is_minimum else value <= self.bound


GOALS = (
    Goal("fusion.speedup_vs_peft", "peft 'cat' + activate + delete / fusing 5 adapters", 4, True),
    Goal("fusion.speedup_vs_peft_with_merge", "peft 'cat' + merge + unmerge + delete / fusing them", 4, True),
    Goal("fusion.times_copy", "fusing 5 adapters / copying the weights", 4, False),
    Goal("fusion.largest_relative_error", "fused weights against the float64 sum", 1e-6, False, ""),
    Goal("fusion.endurance.growth_mib", "growth of the process over many fusions", 1.0, False, "MiB"),
    Goal("frame.speedup_vs_published_loop", "published loop / steady frame with scene embedding", 6, True),
    Goal("frame.speedup_of_running_pipeline", "the same / frame of the running pipeline, which embeds beside", 6, True),
    Goal("frame.largest_difference", "their class maps against each other", 5e-5, False, ""),
    Goal("stall.commit_over_median_frame", "longest commit / median frame", 0.25, False),
    Goal("stall.p99_ratio", "p99 frame latency with fusions at 2 Hz / without", 1.25, False),
    Goal("retrieval.extra_ms_at_10000", "retrieval among 10,000 adapters, more than among 10", 1.0, False, "ms"),
    Goal("retrieval.rss_ratio_at_10000", "resident memory with 10,000 adapters / with 10", 1.05, False),
    Goal("node.throughput_ratio", "masks per second of the node / of the pipeline alone", 0.95, True),
    Goal("transport.lost", "Full HD images at 30 Hz from another process without a mask", 0, False, ""),
    Goal("soak.unaccounted", "images of the soak without a mask or a reason", 0, False, ""),
    Goal("soak.memory_growth", "growth of the node's memory during the soak", 0.02, False, ""),
)


def look_up(summary: Mapping[str, Any], key: str) -> Any:
    """Value of a dotted key; None where it was not measured."""
    value: Any = summary
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def collect(by_size: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one benchmark: those of the last size measured, and all sizes below `by_size`."""
    last = list(by_size)[-1]
    return {**by_size[last], "size": last, "by_size": dict(by_size)}


def write(summary: Mapping[str, Any], out: Path) -> Path:
    """Write summary.json, keeping what an earlier run measured of other benchmarks."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "summary.json"
    kept: dict[str, Any] = {}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(kept | dict(summary), indent=2) + "\n", encoding="utf-8")
    return path


def draw_histogram(stall: Mapping[str, Any], path: Path) -> None:
    """Frame latencies with and without fusions beside them."""
    figure, axes = plt.subplots(figsize=(8, 4), constrained_layout=True)
    for name, label in (
        ("alone", "frames alone"),
        ("with_fusions", f"with {stall['fusions_hz']:.1f} fusions per second"),
    ):
        histogram = stall["histogram_ms"][name]
        axes.stairs(histogram["counts"], histogram["edges_ms"], fill=True, alpha=0.55, label=label)
        axes.axvline(stall[name]["p99_ms"], linestyle="--", linewidth=1, color="C0" if name == "alone" else "C1")
    axes.set_xlabel("frame latency (ms); dashed: 99th percentile")
    axes.set_ylabel("frames")
    axes.set_title(f"Frame latency, {stall.get('size', '')} size: longest commit {stall['commit_max_ms']:.2f} ms")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Print machine, goals and the rows behind them."""
    machine = summary["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    console.print(
        f"{machine['cpu']}, {counted(machine['cores'], 'core')}, {counted(machine['torch_threads'], 'torch thread')}, "
        f"{machine['memory_gib']} GiB, GPU: {machine['gpu'] or 'none'}; load before the run {machine['load_before']}"
    )
    console.print(f"Python {machine['python']}, {versions}", highlight=False)
    table = Table(
        Column("figure", no_wrap=True),
        "what",
        "size",
        "measured",
        "goal",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for goal in GOALS:
        value = look_up(summary, goal.key)
        if value is None:
            continue
        colour = "green" if goal.is_met(value) else "red"
        table.add_row(
            goal.key,
            goal.meaning,
            str(look_up(summary, f"{goal.key.split('.')[0]}.size") or ""),
            f"[{colour}]{short(value)} {goal.unit}[/{colour}]",
            f"{'≥' if goal.is_minimum else '≤'} {goal.bound:g}",
        )
    print_table(table, console)
    timings = (Column(heading, justify="right") for heading in ("median (ms)", "p95 (ms)", "runs"))
    rows = Table("benchmark", "size", "row", *timings, box=None, header_style="bold")
    for name in ("fusion", "frame", "stall", "engines"):
        for size, figures in (look_up(summary, f"{name}.by_size") or {}).items():
            for row, timing in figures.items():
                if isinstance(timing, Mapping) and "median_ms" in timing:
                    median, p95 = short(timing["median_ms"]), short(timing["p95_ms"])
                    rows.add_row(name, size, row, median, p95, str(timing["runs"]))
    if rows.row_count:
        print_table(rows, console)
    for size, figures in (look_up(summary, "engines.by_size") or {}).items():
        console.print(_scene_encoder_line(size, figures))
    if "start" in summary:
        console.print(_start_line(summary["start"]))
    if parts := look_up(summary, "soak.parts"):
        print_table(_soak_table(parts, summary["soak"]), console)
    for sentence in look_up(summary, "soak.failures") or ():
        console.print(f"[red]soak: {sentence}[/red]")
    for size, figures in (look_up(summary, "memory.by_size") or {}).items():
        resident = ", ".join(f"{row} {mib:.0f} MiB" for row, mib in figures["resident_mib"].items())
        console.print(f"memory at {size} size (weights {figures['weights_mib']:.0f} MiB): {resident}")


def _soak_table(parts: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> Table:
    """The parts of a soak, and their sums."""
    keys = ("sent", "received", "answered", "unaccounted", "wrong_masks", "crashes")
    sums = (Column(key.replace("_", " "), justify="right") for key in (*keys, "memory"))
    table = Table("soak", *sums, box=None, header_style="bold")
    for number, part in enumerate(parts, 1):
        counts = (str(part[key]) for key in keys)
        table.add_row(f"{number} {part['transport']}", *counts, f"{part['memory_growth']:+.2%}")
    table.add_row("total", *(str(total[key]) for key in keys), "")
    return table


def _scene_encoder_line(size: str, figures: Mapping[str, Any]) -> str:
    """How each runtime compares with torch in fp32."""
    rows = {row: item for row, item in figures.items() if isinstance(item, Mapping) and "speedup" in item}
    speeds = [f"{row} {item['speedup']:.2f} x (cosine {item['cosine']:.5f})" for row, item in rows.items()]
    line = f"scene encoder at {size} size against torch in fp32: {', '.join(speeds)}"
    for row, item in (figures.get("retrieval") or {}).items():
        if isinstance(item, Mapping):
            line += f"; weights in {row} change by at most {item['largest_weight_change']:.4f}"
    return line


def _start_line(figures: Mapping[str, Any]) -> str:
    """Process start to first mask, and how another checkout compares."""
    parts = ", ".join(f"{part} {ms / 1e3:.2f}" for part, ms in figures["parts_ms"].items())
    line = f"start: first mask of {figures['model']} after {figures['start']['median_ms'] / 1e3:.2f} s ({parts}), "
    line += f"{figures['resident_mib']:.0f} MiB resident"
    if other := figures.get("against"):
        parts = ", ".join(f"{part} {ms / 1e3:.2f}" for part, ms in other["parts_ms"].items())
        line += f"; of {other['folder']} after {other['start']['median_ms'] / 1e3:.2f} s ({parts}): "
        line += f"{figures['speedup']:.2f} x faster, "
        line += f"{figures['cpu_speedup']:.2f} x in processor time, {figures['resident_saved_mib']:.0f} MiB less"
    return line


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
