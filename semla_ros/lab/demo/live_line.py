"""What the demo says while the drive goes on: one line that changes in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.replay.output import LEAST_VISIBLE
from semla_ros.lab.replay.runners import Outcome
from semla_ros.lab.replay.scores import FrameScore, overlap_miou

LINE_EVERY_S = 5.0
MOST_NAMED = 3  # adapters of a mix


class LiveLine:
    """Watches a replay of `base` and `semla`; use it as a context manager.

    Args:
        console: Where to write.
        duration_s: Length of the drive.
    """

    def __init__(self, console: Console, duration_s: float) -> None:
        self._console, self._duration_s = console, duration_s
        self._status = console.status("starting the node and loading the model")
        self._overlaps: dict[str, Any] = {"base": 0, "semla": 0}
        self._next_line_s = 0.0

    def watch(
        self, item: ReplayFrame, seconds: float, outcomes: Mapping[str, Outcome], scores: Mapping[str, FrameScore]
    ) -> None:
        """See `Replay`."""
        for name, score in scores.items():
            if score.overlaps is not None:
                self._overlaps[name] = self._overlaps[name] + score.overlaps
        line = self._line(item.segment, seconds, outcomes["semla"])
        if self._console.is_terminal:
            self._status.update(Text(line))
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + LINE_EVERY_S
            self._console.print(Text(line), soft_wrap=True)

    def _line(self, segment: str, seconds: float, outcome: Outcome) -> str:
        """What is known by now."""
        figures = [None if isinstance(sums, int) else overlap_miou(sums) for sums in self._overlaps.values()]
        base, adapted = ("-" if figure is None else f"{figure:.2f}" for figure in figures)
        latency = f"{outcome.answer.latency_ms['total']:.0f} ms" if outcome.answer else "-"
        shares = [item for item in outcome.generation.mix.shares().items() if item[1] > LEAST_VISIBLE]
        mix = " ".join(f"{name} {share:.0%}" for name, share in shares[:MOST_NAMED])
        made = f"generation {outcome.generation.number} ({outcome.generation.reason})"
        drive = f"{seconds:.0f} / {self._duration_s:.0f} s"
        return f"{drive:>10}  {segment:>10}  {latency:>7}  {made}  {mix}  mIoU so far {base} → {adapted}"

    def __enter__(self) -> LiveLine:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()
