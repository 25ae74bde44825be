"""The processes of one benchmark."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from semla_ros.lab.processes import Child, ChildError


class Children:
    """Several processes; leaving the context ends all that still run, last started first."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
        """Start one; see `Child`."""
        child = Child(name, command, environment, log)
        self._children.append(child)
        return child

    def check(self) -> None:
        """Make sure that all still run.

        Raises:
            ChildError: One has ended; the message holds the end of its output.
        """
        for child in self._children:
            status = child.status
            if status is not None:
                cause = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
                raise ChildError(
                    f"{child.name} (pid {child.pid}) ended with {cause}; the end of {child.log}:\n{child.last_lines()}"
                )

    def stop(self, grace_s: float = 5.0) -> None:
        """End all that still run."""
        for child in reversed(self._children):
            child.stop(grace_s)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
