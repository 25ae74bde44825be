"""Where images wait for the one thread that segments: the newest of each camera, served in turn."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class CameraSlots(Generic[Item]):
    """One place per camera. A new item takes the place of the one that waits: what is taken is the newest.

    Thread-safe.

    Args:
        cameras: Their names; the order is the order of turns.
    """

    def __init__(self, cameras: Iterable[str]) -> None:
        self._cameras = list(cameras)
        self._waiting: dict[str, Item] = {}
        self._next = 0  # index of the camera whose turn it is
        self._is_closed = False
        self._condition = threading.Condition()

    def put(self, camera: str, item: Item) -> Item | None:
        """Let an item wait; returns the one whose place it took. After `close`, that is the item itself."""
        with self._condition:
            if self._is_closed:
                return item
            overtaken = self._waiting.get(camera)
            self._waiting[camera] = item
            self._condition.notify()
            return overtaken

    def take(self, most: int = 1) -> list[tuple[str, Item]]:
        """Wait for an item, and take those that wait, going round the cameras that have one.

        Args:
            most: Items taken at most, >= 1.

        Returns:
            Cameras and their items, in the order of turns, at least one; nothing after `close`.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._is_closed)
            taken: list[tuple[str, Item]] = []
            if self._is_closed:
                return taken
            first = self._next
            for offset in range(len(self._cameras)):
                index = (first + offset) % len(self._cameras)
                camera = self._cameras[index]
                if camera in self._waiting:
                    self._next = (index + 1) % len(self._cameras)
                    taken.append((camera, self._waiting.pop(camera)))
                    if len(taken) == most:
                        break
            if not taken:
                raise KeyError(f"items wait for {sorted(self._waiting)}, which are none of the cameras {self._cameras}")
            return taken

    def close(self) -> dict[str, Item]:
        """Wake up who waits in `take` and refuse further items; returns those that still waited."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
            remaining, self._waiting = self._waiting, {}
            return remaining
