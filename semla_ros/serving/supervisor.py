"""What a supervisor is told, and an end of the process that waits for nothing."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading

HUNG_STATUS = 70  # exit status where the watchdog ends the process


def notify(state: str) -> bool:
    """Tell systemd a state, such as "READY=1", where it asks for that; never waits, never raises.

    Returns:
        False where it could not be told, as while its queue is full.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return False
    return True


def end_at_once(status: int, reason: str) -> None:
    """End the process without waiting for anything; what each thread was doing goes to the standard error."""
    # A reader of the standard error that hangs keeps nobody.
    timer = threading.Timer(0.3, os._exit, [status])
    timer.daemon = True
    timer.start()
    running = ", ".join(thread.name for thread in threading.enumerate() if thread.name.startswith(("Main", "semla-")))
    text = f"[FATAL] semla_ros: {reason}; threads: {running}; exit status {status}\n"
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    os._exit(status)
