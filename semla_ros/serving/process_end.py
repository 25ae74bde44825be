"""How the process ends in time after a signal, whatever hangs; no ROS."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from semla_ros.serving.supervisor import end_at_once, notify

ORDERLY_S = 4.0  # how long threads may take to end
AT_LAST_S = 4.7  # when the kernel ends the process by SIGALRM, should nothing else be able to
LOOK_S = 0.1  # between two looks at what there is still to wait for
ECHO_S = 0.25  # a terminal and a launch program may both pass on one Ctrl-C


def is_importing() -> bool:
    """Some thread is in the middle of an import, which can be neither interrupted nor hurried."""
    for frame in sys._current_frames().values():
        inner: FrameType | None = frame
        while inner is not None:
            if inner.f_code.co_filename == "<frozen importlib._bootstrap>":
                return True
            inner = inner.f_back
    return False


class EndGuard:
    """Takes SIGINT and SIGTERM, in a thread that needs no other: the first one begins an orderly end.

    Where that takes longer than `ORDERLY_S`, or another signal comes, the process ends at once with the status of the
    first signal, 128 + its number; without a word where no image is served and modules are being imported. To be made
    in the main thread; takes the place of other handlers.

    Args:
        shut_down: Begins the orderly end; called in a thread of its own.
        doing: Says what hangs, as far as that is known.
        is_changing: No image is served just now, as while a model loads.
    """

    def __init__(
        self, shut_down: Callable[[], object], doing: Callable[[], str], is_changing: Callable[[], bool] = bool
    ) -> None:
        self._shut_down, self._doing, self._is_changing = shut_down, doing, is_changing
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # the number goes to the socket, also where this thread hangs
        threading.Thread(target=self._run, name="semla-end", daemon=True).start()

    def ended(self) -> None:
        """All has ended in order: signals that still come change the exit status no more; in the main thread.

        Python ends by the first signal that comes while it takes itself down, otherwise. Should that hang, the kernel
        still ends the process.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _run(self) -> None:
        first = signal.Signals(self._receiver.recv(1)[0])
        began_s = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, AT_LAST_S)
        threading.Thread(target=self._shut_down, name="semla-shut-down", daemon=True).start()
        notify("STOPPING=1")
        reason = f"not ended {ORDERLY_S:g} s after {first.name}"
        while (left_s := began_s + ORDERLY_S - time.monotonic()) > 0:
            if self._is_changing() and is_importing():
                os._exit(128 + first)
            if select.select([self._receiver], [], [], min(left_s, LOOK_S))[0]:
                again = signal.Signals(self._receiver.recv(1)[0])
                if time.monotonic() - began_s > ECHO_S:
                    reason = f"{again.name} while ending by {first.name}"
                    break
        end_at_once(128 + first, f"{reason}; {self._doing()}")
