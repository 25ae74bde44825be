"""Child processes that never outlive this one: output in log files, watched while they run, ended by their own pid."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from semla_ros.errors import SemlaError

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_INTERRUPTS = {signal.SIGINT}


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

    They are spawned: a forked child would inherit the locks of torch's and OpenCV's threads. SIGINT, which a terminal
    sends to all, raises KeyboardInterrupt in the tasks that run, and none begins after it; it disturbs no worker that
    is starting or between tasks.

    Args:
        workers: How many.
        threads: Of torch, in each of them; 0 = as it chooses.
    """
    return _Pool(workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(), threads))


class _Pool(ProcessPoolExecutor):
    def submit(self, work: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        # A worker inherits what is held back here, for as long as it has no handler. The tracker's start lets it pass.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        try:
            return super().submit(_run_task, work, *args, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown(cancel_futures=kind is not None)


class _Interrupts:
    """Of a worker: whether one came, and whether a task runs that is to know of it."""

    def __init__(self) -> None:
        self.came = self.has_task = False

    def watch(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
            signal.signal(signal.SIGINT, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)

    def _note(self, *_: object) -> None:
        self.came = True
        if self.has_task:
            raise KeyboardInterrupt


_interrupts = _Interrupts()


def _run_task(work: Callable[..., T], /, *args: Any, **options: Any) -> T:
    _interrupts.has_task = True
    try:
        if _interrupts.came:
            raise KeyboardInterrupt
        return work(*args, **options)
    finally:
        _interrupts.has_task = False


def _start_worker(parent: int, threads: int) -> None:
    _interrupts.watch()
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
