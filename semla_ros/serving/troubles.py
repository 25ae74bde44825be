"""What keeps the node from its work or was refused: gathered where it happens, told on /diagnostics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from semla_ros.errors import SemlaError

logger = logging.getLogger(__name__)


class Troubles:
    """What is wrong with the node as a whole, for people.

    Args:
        is_ending: Whether the process has been told to end: what fails then comes of that.

    Attributes:
        problem: Why the latest transition failed; empty where it did not.
        progress: What a transition under way is doing; empty outside transitions.
        library_problem: Why the library on disk is not the one in use; empty where it is.
    """

    def __init__(self, is_ending: Callable[[], bool]) -> None:
        self.is_ending = is_ending
        self.problem = self.progress = self.library_problem = ""
        self._refused, self._refused_s = "", 0.0

    def refuse(self, what: str, error: Exception) -> str:
        """Log and remember what was not done, and why; returns the reason."""
        reason = self.reason(error)
        self._refused, self._refused_s = f"{what}: {reason}", time.monotonic()
        logger.warning(self._refused)
        return reason

    def latest_refusal(self, hold_s: float) -> str:
        """What was refused last; empty where that is longer ago than `hold_s`."""
        return self._refused if time.monotonic() - self._refused_s <= hold_s else ""

    def reason(self, error: Exception) -> str:
        """What an error says; one that nobody expected is named by its type and logged with its traceback."""
        if isinstance(error, SemlaError):
            return str(error)
        if not self.is_ending():
            logger.error("unexpected error", exc_info=error)
        return f"{type(error).__name__}: {error}"
