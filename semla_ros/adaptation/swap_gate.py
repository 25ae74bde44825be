"""Let frames and swaps take turns: a swap runs between two frames, never during one, and never starves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SwapGate:
    """A lock around "forward pass" and "swap" that hands itself to a waiting swap first.

    A plain lock would not do: a loop of frames that releases and takes it again at once can keep a swap out for long.
    """

    def __init__(self) -> None:
        self._in_use = threading.Lock()
        self._turnstile = threading.Lock()  # held by a swap that waits: the next frame queues behind it

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Hold off swaps while one frame goes through the model."""
        with self._turnstile:
            pass
        with self._in_use:
            yield

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Wait for the frame in progress and hold off the next one."""
        with self._turnstile, self._in_use:
            yield
