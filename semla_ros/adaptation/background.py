"""Work beside the frames: a low-priority thread that works on the newest item only, and a stream of a GPU."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
logger = logging.getLogger(__name__)

NICENESS = 10  # of the thread, so that frames win the cores


class NewestWins(Generic[Item]):
    """Runs `work(item)` in a thread of its own; an item that comes while it is busy replaces the one that waits.

    The thread has a low priority where the system lets threads have one, and uses one core, so that the forward passes
    of other threads keep the rest.

    Args:
        work: Called with each item; an exception is logged with its traceback, and the thread goes on.
        name: Name of the thread.
    """

    def __init__(self, work: Callable[[Item], object], name: str) -> None:
        self._work = work
        self._condition = threading.Condition()
        self._waiting: Item | None = None
        self._is_stopping = False
        self._ready = threading.Event()
        self.replaced = 0  # items that a newer one replaced before they were worked on
        threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._ready.wait()
        # The thread's own setting is also what threads to come would inherit: give them back what was set before.
        torch.set_num_threads(threads)

    def offer(self, item: Item) -> None:
        """Hand over the newest item; returns at once."""
        with self._condition:
            self.replaced += self._waiting is not None
            self._waiting = item
            self._condition.notify()

    def stop(self) -> None:
        """Let the item in progress end, drop the one that waits, and join the thread."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        _lower_priority()
        torch.get_num_threads()  # the first call in a thread adopts the process's setting; later ones leave ours alone
        torch.set_num_threads(1)
        self._ready.set()
        while (item := self._take()) is not None:
            try:
                self._work(item)
            except Exception:
                logger.exception("%s: unexpected error", self._thread.name)

    def _take(self) -> Item | None:
        with self._condition:
            self._condition.wait_for(lambda: self._waiting is not None or self._is_stopping)
            item, self._waiting = self._waiting, None
            return None if self._is_stopping else item


def background_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream of a GPU for work beside the frames, behind what has been loaded so far; None for another device."""
    if device.type != "cuda":
        return None
    # 0 is the lowest priority there is.
    stream: torch.cuda.Stream = torch.cuda.Stream(device, priority=0)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _lower_priority() -> None:
    """On Linux a thread id is a valid "process" of setpriority; elsewhere, or where refused, priorities stay equal."""
    if sys.platform != "linux":
        return
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    except OSError:
        logger.debug("thread priority could not be lowered")
