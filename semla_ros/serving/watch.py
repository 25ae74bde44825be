"""What guards the node: jobs at periods of the steady clock, in a thread that waits for nothing else; hangs."""

from __future__ import annotations

import faulthandler
import logging
import threading
import time
from collections.abc import Callable

from semla_ros.serving.frame_loop import FrameLoop
from semla_ros.serving.supervisor import HUNG_STATUS, end_at_once, notify

logger = logging.getLogger(__name__)
LOOK_S = 0.25


class SteadyJobs:
    """Runs jobs in one thread, each at a period of its own. No other clock, and no other thread, keeps them from it.

    Args:
        jobs: Period in seconds and job; what one raises is logged.
        is_ending: Whether the process has been told to end: what fails then comes of that.
    """

    def __init__(self, jobs: list[tuple[float, Callable[[], object]]], is_ending: Callable[[], bool]) -> None:
        self._jobs, self._is_ending = jobs, is_ending
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="semla-watch", daemon=True)

    def start(self) -> None:
        """Begin; each job runs for the first time after its period."""
        self._thread.start()

    def close(self) -> None:
        """End after the job under way."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        due_s = [time.monotonic() + period_s for period_s, _ in self._jobs]
        while not self._end.wait(max(0.0, min(due_s) - time.monotonic())):
            for index, (period_s, job) in enumerate(self._jobs):
                if (now_s := time.monotonic()) < due_s[index]:
                    continue
                due_s[index] = max(due_s[index] + period_s, now_s)
                try:
                    job()
                except Exception:
                    if not self._is_ending():
                        logger.exception("unexpected error")


class HangWatch:
    """Tells where the frame path hangs as soon as it is known, and ends the process where that is asked for.

    Args:
        frames: The frame path.
        watchdog_s: How long it may hang before the process ends with `HUNG_STATUS`; 0 = for ever.
        report: Reports on /diagnostics at once.

    Attributes:
        is_ready: Whether systemd may be told so: the node has started, whatever came of it.
    """

    def __init__(self, frames: FrameLoop, watchdog_s: float, report: Callable[[], object]) -> None:
        self._frames, self._watchdog_s, self._report = frames, watchdog_s, report
        self._is_told = self._was_ready = False
        self.is_ready = False

    def close(self) -> None:
        """Look no more."""
        if self._watchdog_s:
            faulthandler.cancel_dump_traceback_later()

    def look(self) -> None:
        """Look once, at least every `LOOK_S`."""
        if self._watchdog_s and self.is_ready:  # should nobody come here again, since a thread keeps the interpreter
            faulthandler.dump_traceback_later(self._watchdog_s + 5.0, exit=True)
        hang = self._frames.hang()
        if hang is None:
            if self.is_ready:
                was_heard = notify("WATCHDOG=1" if self._was_ready else "READY=1")
                self._was_ready = self._was_ready or was_heard
            if self._is_told:
                logger.info("the frame path goes on")
        elif self._watchdog_s and self._is_told and hang.for_s > self._watchdog_s:  # a stopped process may go on
            end_at_once(HUNG_STATUS, f"watchdog_s ({self._watchdog_s:g}): {hang}")
        if self._is_told != (hang is not None):
            self._is_told = hang is not None
            self._report()
            if hang is not None:
                logger.error("%s", hang)
