"""Progress bars of long work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from semla_ros.lab.report.experiment_log import log_scalars


def progress(console: Console | None = None, *, stays: bool = False) -> Progress:
    """Bars with count and time left on the error output, which vanish when done; none where that is no terminal.

    Args:
        console: Where to draw them instead.
        stays: Bars stay when done, and are written at the end where that is no terminal.
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=not stays,
        disable=not (stays or console.is_terminal),
    )


@contextmanager
def training_progress(title: str, total: int) -> Iterator[tuple[Callable[[int], None], Callable[[int, float], None]]]:
    """A bar on the standard output that stays; yields `advance(count)` and `on_step(step, loss)`.

    Losses go to the present `experiment_log`, too. In a log file, where no bar can be drawn, a line is printed about
    every twentieth of the work. Work that ends
    without an error shows as complete, also where a former run had done it and no step was left.
    """
    with progress(Console(), stays=True) as bars:
        task = bars.add_task(title, total=total)
        average = 0.0
        every = max(1, total // 20)

        def on_step(step: int, loss: float) -> None:
            nonlocal average
            average = loss if average == 0.0 else 0.95 * average + 0.05 * loss
            bars.update(task, completed=step + 1, description=f"{title}, loss {average:.3f}")
            log_scalars({f"{title}/loss": loss, f"{title}/mean loss": average}, step)
            if not bars.console.is_terminal and (step + 1) % every == 0:
                bars.console.print(f"{title}: step {step + 1}/{total}, loss {average:.3f}")

        yield lambda count: bars.advance(task, count), on_step
        bars.update(task, completed=total)
