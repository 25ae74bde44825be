"""Child processes that never outlive this one: output in log files, watched while they run, ended by their own pid."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from semla_ros.errors import SemlaError

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


class ChildError(SemlaError):
    """A child process could not start, or ended when it should have gone on."""


def end_with_parent(parent: int = 0) -> None:
    """Ask Linux to end this child when its parent is killed in a way that it cannot handle.

    With the parent's process id, what happened before is noticed, too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if parent and os.getppid() != parent:
            os._exit(1)


def worker_pool(workers: int, *, threads: int = 0) -> ProcessPoolExecutor:
    """Processes for independent work that end with this one, however it ends.

    They are spawned: a forked child would inherit the locks of torch's and OpenCV's threads.

    Args:
        workers: How many.
        threads: Of torch, in each of them; 0 = as it chooses.
    """
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(), threads)
    )


def _start_worker(parent: int, threads: int) -> None:
    end_with_parent(parent)
    if threads:
        import torch

        torch.set_num_threads(threads)


def terminate_like_interrupt() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that what was done is kept and no child outlives it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


class Child:
    """One process in a session of its own, so that Ctrl-C in the terminal reaches it only through `stop`.

    Attributes:
        name: What messages call it.
        log: File with everything that it printed.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start the process.

        Raises:
            ChildError: The program cannot be started.
        """
        self.name, self.log = name, log
        with log.open("wb") as output:
            try:
                self._process = subprocess.Popen(
                    list(command),
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
            except OSError as error:
                raise ChildError(f"{name} cannot be started with {command[0]}: {error}") from None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative where a signal ended it; None while it runs."""
        return self._process.poll()

    def last_lines(self, count: int = 20) -> str:
        """The end of what it printed."""
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
        except OSError as error:
            return f"(no log: {error})"

    def stop(self, grace_s: float = 5.0) -> int:
        """End the process and what it started: interrupt first, as Ctrl-C does, then terminate, then kill.

        Args:
            grace_s: Seconds to wait after each of the first two.

        Returns:
            Exit status, negative where a signal ended it.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                break
            self._send(number)
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                continue
        return self._process.wait()

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.killpg(self._process.pid, number)  # its own session: the group holds only what this child started
