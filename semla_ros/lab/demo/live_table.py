"""What the demo shows while the drive goes on: a table where the terminal can draw one, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.status import Status as Spinner
from rich.table import Table
from rich.text import Text

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.replay.output import LEAST_VISIBLE
from semla_ros.lab.replay.runners import Outcome
from semla_ros.lab.replay.scores import FrameScore, overlap_miou
from semla_ros.lab.report.palette import domain_colour
from semla_ros.results import Level, Status

if TYPE_CHECKING:
    from semla_ros.lab.replay.live_node import LiveRunner  # needs ROS, which a table does not

LINE_EVERY_S = 5.0
BAR_WIDTH = 24


class LiveTable:
    """Watches a replay of `base` and `semla`; use it as a context manager.

    Args:
        console: Where to draw.
        duration_s: Length of the drive.
    """

    def __init__(self, console: Console, duration_s: float) -> None:
        self._console, self._duration_s = console, duration_s
        self.node: LiveRunner | None = None
        self._display: Live | Spinner = console.status("starting the node and loading the model")
        self._masks = 0
        self._overlaps: dict[str, Any] = {"base": 0, "semla": 0}
        self._next_line_s = 0.0

    def watch(
        self, item: ReplayFrame, seconds: float, outcomes: Mapping[str, Outcome], scores: Mapping[str, FrameScore]
    ) -> None:
        """See `Replay`."""
        now_s, outcome = time.monotonic(), outcomes["semla"]
        self._masks += 1
        for name, score in scores.items():
            if score.overlaps is not None:
                self._overlaps[name] = self._overlaps[name] + score.overlaps
        state = self._state(item, seconds, outcome)
        shares = {name: share for name, share in outcome.generation.mix.shares().items() if share > LEAST_VISIBLE}
        if self._console.is_terminal:
            self._live().update(render(state, shares))
        elif now_s >= self._next_line_s:
            self._next_line_s = now_s + LINE_EVERY_S
            self._console.print(status_line(state, shares), highlight=False, soft_wrap=True)

    def _state(self, item: ReplayFrame, seconds: float, outcome: Outcome) -> dict[str, str]:
        """What is known by now, by name."""
        answer, generation = outcome.answer, outcome.generation
        dropped, reports = (self.node.dropped, self.node.all_reports()) if self.node else (0, [])
        figures = [None if isinstance(sums, int) else overlap_miou(sums) for sums in self._overlaps.values()]
        base, adapted = ("-" if figure is None else f"{figure:.2f}" for figure in figures)
        told = {key: value for status in reports for key, value in status.values.items()}
        worst = max(reports, key=lambda status: status.level, default=Status(message="no report yet", name=""))
        return {
            "drive": f"{seconds:.0f} / {self._duration_s:.0f} s",
            "place": item.segment,
            "mask rate": f"{told.get('Mask rate (Hz)', '-')} Hz",
            "latency": f"{answer.latency_ms['total']:.0f} ms" if answer else "-",
            "frames, masks": f"{self._masks + dropped}, {self._masks}",
            "drift": told.get("Drift", "-"),
            "generation": f"{generation.number} ({generation.reason})",
            "mIoU so far": f"{base} → {adapted}",
            "node": f"{Level(worst.level).name} {worst.message}",
        }

    def _live(self) -> Live:
        if not isinstance(self._display, Live):
            self._display.stop()
            self._display = Live(console=self._console, refresh_per_second=4)
            self._display.start()
        return self._display

    def __enter__(self) -> LiveTable:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()


def render(state: Mapping[str, str], shares: Mapping[str, float]) -> RenderableType:
    """The table for a terminal of 80 columns or more."""
    figures, bars = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 1))
    for name, value in state.items():
        figures.add_row(Text(name, style="grey62"), Text(value, overflow="ellipsis", no_wrap=True))
    for name, share in shares.items():
        bar = Text("█" * round(share * BAR_WIDTH) or "▏", style=_style(name))
        bars.add_row(Text(name, justify="right"), bar, f"{share:.0%}")
    title = "[bold]semla demo[/]  a real ROS 2 node on a drive through changing weather"
    return Panel(Group(figures, Text(), bars), title=title, border_style="grey50", padding=(1, 2))


def status_line(state: Mapping[str, str], shares: Mapping[str, float]) -> str:
    """The same in one line, for logs and terminals without cursor movement."""
    figures = "  ".join(f"{state[name]:>10}" for name in ("drive", "place", "mask rate", "latency"))
    mix = " ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:3])
    return f"{figures}  generation {state['generation']}  {mix}  mIoU {state['mIoU so far']}"


def _style(domain: str) -> str:
    """The domain's colour, light enough for a dark terminal."""
    red, green, blue = domain_colour(domain)
    lift = max(0, 105 - (299 * red + 587 * green + 114 * blue) // 1000)
    return f"rgb({min(255, red + lift)},{min(255, green + lift)},{min(255, blue + lift)})"
