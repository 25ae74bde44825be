"""Log lines of the core, which uses Python's logging, as log lines of the node."""

from __future__ import annotations

import logging
from typing import Any


class RosLogHandler(logging.Handler):
    """Hands each record to a node's logger, so that it reaches the console, the log file and /rosout.

    Args:
        ros_logger: What `Node.get_logger()` returns.
    """

    def __init__(self, ros_logger: Any) -> None:
        super().__init__()
        self._logger = ros_logger

    def emit(self, record: logging.LogRecord) -> None:
        """Forward one record."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        # rclpy keeps one severity per calling line, so each severity is called from a line of its own.
        try:
            if record.levelno >= logging.ERROR:
                self._logger.error(text)
            elif record.levelno >= logging.WARNING:
                self._logger.warning(text)
            elif record.levelno >= logging.INFO:
                self._logger.info(text)
            else:
                self._logger.debug(text)
        except Exception:
            self.handleError(record)


def forward_logs(ros_logger: Any) -> RosLogHandler:
    """Send what `semla_ros` logs to a node's logger; the returned handler is removed with `stop_forwarding`."""
    handler = RosLogHandler(ros_logger)
    core = logging.getLogger("semla_ros")
    core.addHandler(handler)
    core.setLevel(logging.DEBUG if ros_logger.get_effective_level() <= 10 else logging.INFO)
    core.propagate = False
    return handler


def stop_forwarding(handler: RosLogHandler) -> None:
    """Undo `forward_logs`."""
    core = logging.getLogger("semla_ros")
    core.removeHandler(handler)
    core.propagate = True
