"""The table that the demo shows while the nodes run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from semla_ros.lab.demo.recording import BASE_MIX, FrameRecord, MixEvent, Recording
from semla_ros.lab.demo.score import LiveFigures
from semla_ros.lab.report.palette import domain_colour

RECENT_S = 3.0  # window of rate and latency
BAR_WIDTH = 24


@dataclass(frozen=True, kw_only=True)
class LiveState:
    """What one refresh of the table shows."""

    elapsed_s: float  # of the drive so far
    duration_s: float  # of the whole drive
    segment: str  # where the drive is
    rate_hz: float  # masks per second, lately
    latency_ms: float | None  # median from image to mask, lately; None where no mask came
    frames: int  # images seen
    masks: int  # masks that answer them
    drift: str  # as the node reports it; empty where it did not
    mix: MixEvent  # in use
    figures: LiveFigures  # mIoU of sampled frames
    status: tuple[str, str]  # level and message of the node's diagnostics


def observe(
    recording: Recording, figures: LiveFigures, *, now_s: float, elapsed_s: float, duration_s: float
) -> LiveState:
    """Sum a recording up for the table.

    Args:
        recording: What the monitor has collected.
        figures: mIoU of sampled frames.
        now_s: Monotonic time in seconds.
        elapsed_s: Time of the drive so far.
        duration_s: Length of the drive.
    """
    frames, diagnostics = recording.frames(), recording.diagnostics
    recent = [frame for frame in frames if frame.mask_s is not None and frame.mask_s > now_s - RECENT_S]
    latencies = latencies_ms(recent)
    seen = [frame for frame in frames if frame.image_s is not None]
    return LiveState(
        elapsed_s=elapsed_s,
        duration_s=duration_s,
        segment=seen[-1].segment if seen else "",
        rate_hz=len(recent) / min(RECENT_S, max(elapsed_s, 0.5)),
        latency_ms=float(np.median(latencies)) if latencies else None,
        frames=len(seen),
        masks=sum(frame.is_answered for frame in frames),
        drift=diagnostics.values.get("adaptation: Drift", ""),
        mix=recording.mixes[-1] if recording.mixes else BASE_MIX,
        figures=figures,
        status=(diagnostics.level, diagnostics.message),
    )


def latencies_ms(frames: Sequence[FrameRecord]) -> list[float]:
    """Milliseconds from an image's arrival at the monitor to its mask's, of the answered frames.

    Both travel over DDS to the same process, so one way is counted once. A mask that overtakes its image counts as 0.
    """
    return [
        max(0.0, (frame.mask_s - frame.image_s) * 1e3)
        for frame in frames
        if frame.is_answered and frame.mask_s is not None and frame.image_s is not None
    ]


def render(state: LiveState) -> RenderableType:
    """The table for a terminal of 80 columns or more."""
    progress = Table.grid(padding=(0, 1), expand=True)
    progress.add_column(min_width=18)
    progress.add_column(ratio=1)
    progress.add_column(justify="right", min_width=11)
    progress.add_row(
        Text(_place(state), style=f"bold {_style(state.segment)}"),
        ProgressBar(total=max(state.duration_s, 1e-6), completed=min(state.elapsed_s, state.duration_s)),
        f"{state.elapsed_s:.0f} / {state.duration_s:.0f} s",
    )
    columns = Table.grid(padding=(0, 3), expand=True)
    columns.add_column()
    columns.add_column(ratio=1)
    columns.add_row(_figures(state), _mix(state.mix))
    title = "[bold]semla demo[/]  real ROS 2 nodes on a drive through changing weather"
    return Panel(
        Group(progress, Text(), columns, Text(), _status(state)), title=title, border_style="grey50", padding=(1, 2)
    )


def _place(state: LiveState) -> str:
    """Where the drive is; the camera names pure segments only."""
    return state.segment or ("transition" if state.frames else "waiting")


def _figures(state: LiveState) -> Table:
    gain = state.figures.adapted - state.figures.base
    change = "" if np.isnan(gain) else f"  [bold {'green' if gain >= 0 else 'red'}]{gain:+.2f}[/]"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="grey62", no_wrap=True)
    table.add_column(no_wrap=True, min_width=14)
    for name, figure in (
        ("frame rate", f"{state.rate_hz:.1f} Hz"),
        ("latency", _latency(state)),
        ("frames, masks", f"{state.frames}, {state.masks}"),
        ("drift", state.drift or "-"),
        ("generation", f"{state.mix.generation}  ({state.mix.reason})"),
        ("mIoU base", _figure(state.figures.base)),
        ("mIoU adapted", f"[bold]{_figure(state.figures.adapted)}[/]{change}"),
    ):
        table.add_row(name, figure)
    return table


def _latency(state: LiveState) -> str:
    return "-" if state.latency_ms is None else f"{state.latency_ms:.0f} ms"


def _status(state: LiveState) -> Text:
    """What the node says of itself, in one line."""
    level, message = state.status
    style = {"OK": "green", "WARN": "yellow", "ERROR": "red", "STALE": "yellow"}.get(level, "grey62")
    return Text(f"{level or 'no diagnostics yet'}  {message}", style=style, no_wrap=True, overflow="ellipsis")


def _style(domain: str) -> str:
    """The domain's colour, light enough for a dark terminal."""
    red, green, blue = domain_colour(domain)
    lift = max(0, 105 - (299 * red + 587 * green + 114 * blue) // 1000)
    return f"rgb({min(255, red + lift)},{min(255, green + lift)},{min(255, blue + lift)})"


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def _mix(mix: MixEvent) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", min_width=11, no_wrap=True)
    table.add_column(min_width=BAR_WIDTH, no_wrap=True)
    table.add_column(justify="right", min_width=4, no_wrap=True)
    for name, share in mix.shares.items():
        bar = Text("█" * round(share * BAR_WIDTH) or "▏", style=_style(name))
        table.add_row(name, bar, f"{share:.0%}")
    return table


def status_line(state: LiveState) -> str:
    """The same in one line, for logs and terminals without cursor movement."""
    shares = " ".join(f"{name} {share:.0%}" for name, share in list(state.mix.shares.items())[:3])
    return (
        f"{state.elapsed_s:5.1f} s  {_place(state):<12} {state.rate_hz:4.1f} Hz  {_latency(state):>7}  generation "
        f"{state.mix.generation:<3} {shares}  mIoU {_figure(state.figures.base)} -> {_figure(state.figures.adapted)}"
    )
