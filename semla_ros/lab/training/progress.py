"""Progress bars of long training work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[tuple[Callable[[int], None], Callable[[int, float], None]]]:
    """A bar with time left; yields `advance(count)` and `on_step(step, loss)`.

    In a log file, where no bar can be drawn, a line is printed about every twentieth of the work. Work that ends
    without an error shows as complete, also where a former run had done it and no step was left.
    """
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=total, note="")
        average = 0.0
        every = max(1, total // 20)

        def advance(count: int) -> None:
            progress.update(task, advance=count)

        def on_step(step: int, loss: float) -> None:
            nonlocal average
            average = loss if average == 0.0 else 0.95 * average + 0.05 * loss
            progress.update(task, completed=step + 1, note=f"loss {average:.3f}")
            if not progress.console.is_terminal and (step + 1) % every == 0:
                progress.console.print(f"{title}: step {step + 1}/{total}, loss {average:.3f}")

        yield advance, on_step
        progress.update(task, completed=total)
