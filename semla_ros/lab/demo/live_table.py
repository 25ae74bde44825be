"""What the demo shows while the nodes run: a table where the terminal can draw one, else a line now and then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from semla_ros.lab.demo.recording import FrameRecord, Recording, shares_of
from semla_ros.lab.demo.score import LiveFigures
from semla_ros.lab.report.palette import domain_colour
from semla_ros.results import Generation

RECENT_S = 3.0  # window of rate and latency
BAR_WIDTH = 24


def latencies_ms(frames: Sequence[FrameRecord]) -> list[float]:
    """Milliseconds from an image's arrival at the monitor to its mask's, of the answered frames.

    Both travel over DDS to the same process, so one way is counted once. A mask that overtakes its image counts as 0.
    """
    return [
        max(0.0, (frame.mask_s - frame.image_s) * 1e3)
        for frame in frames
        if frame.is_answered and frame.mask_s is not None and frame.image_s is not None
    ]


def observe(
    recording: Recording, figures: LiveFigures, *, now_s: float, elapsed_s: float, duration_s: float
) -> dict[str, str]:
    """What is known by now, by name.

    Args:
        recording: What the monitor has collected.
        figures: mIoU of sampled frames.
        now_s: Monotonic time in seconds.
        elapsed_s: Time of the drive so far.
        duration_s: Length of the drive.
    """
    frames, generation = recording.frames(), recording.latest
    recent = [frame for frame in frames if frame.mask_s is not None and frame.mask_s > now_s - RECENT_S]
    latencies = latencies_ms(recent)
    seen = [frame for frame in frames if frame.image_s is not None]
    gain = figures.adapted - figures.base
    base, adapted = ("-" if math.isnan(value) else f"{value:.2f}" for value in (figures.base, figures.adapted))
    return {
        "drive": f"{elapsed_s:.0f} / {duration_s:.0f} s",
        "place": (seen[-1].segment or "transition") if seen else "waiting",  # the camera names pure segments only
        "frame rate": f"{len(recent) / min(RECENT_S, max(elapsed_s, 0.5)):.1f} Hz",
        "latency": f"{np.median(latencies):.0f} ms" if latencies else "-",
        "frames, masks": f"{len(seen)}, {sum(frame.is_answered for frame in frames)}",
        "drift": recording.diagnostics.values.get("adaptation: Drift", "-"),
        "generation": f"{generation.number} ({generation.reason})",
        "mIoU": f"{base} -> {adapted}" + ("" if math.isnan(gain) else f" ({gain:+.2f})"),
        "node": f"{recording.diagnostics.level or 'no diagnostics yet'} {recording.diagnostics.message}",
    }


def render(state: Mapping[str, str], generation: Generation) -> RenderableType:
    """The table for a terminal of 80 columns or more."""
    figures, bars = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 1))
    for name, value in state.items():
        figures.add_row(Text(name, style="grey62"), Text(value, overflow="ellipsis", no_wrap=True))
    for name, share in shares_of(generation).items():
        bar = Text("█" * round(share * BAR_WIDTH) or "▏", style=_style(name))
        bars.add_row(Text(name, justify="right"), bar, f"{share:.0%}")
    title = "[bold]semla demo[/]  real ROS 2 nodes on a drive through changing weather"
    return Panel(Group(figures, Text(), bars), title=title, border_style="grey50", padding=(1, 2))


def status_line(state: Mapping[str, str], generation: Generation) -> str:
    """The same in one line, for logs and terminals without cursor movement."""
    names = ("drive", "place", "frame rate", "latency")
    shares = " ".join(f"{name} {share:.0%}" for name, share in list(shares_of(generation).items())[:3])
    figures = "  ".join(f"{state[name]:>9}" for name in names)
    return f"{figures}  generation {state['generation']}  {shares}  mIoU {state['mIoU']}"


def _style(domain: str) -> str:
    """The domain's colour, light enough for a dark terminal."""
    red, green, blue = domain_colour(domain)
    lift = max(0, 105 - (299 * red + 587 * green + 114 * blue) // 1000)
    return f"rgb({min(255, red + lift)},{min(255, green + lift)},{min(255, blue + lift)})"
