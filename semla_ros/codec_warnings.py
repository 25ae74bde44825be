"""What libjpeg and libpng print while OpenCV decodes a picture: caught, because it is the only word that they give.

Both print to C's `stderr`, OpenCV offers no other way to hear of it, and Pillow drops it. While a picture is decoded,
the stream behind that name is another one. File descriptor 2 stays what it is, because a process that another thread
starts meanwhile would inherit it. What other threads print through C meanwhile is passed on.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import cv2

UNBUFFERED = 2  # _IONBF of stdio.h
_SILENT = 0  # LOG_LEVEL_SILENT of OpenCV
_OWN = re.compile(
    rb"Corrupt JPEG data|Premature end of|Inconsistent progression|Invalid (SOS|crop)|Unknown Adobe|Unsupported marker|"
    rb"Application transferred|Warning: unknown JFIF|Must downscale|libpng (warning|error)"
)
_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@functools.cache
def _catcher() -> tuple[ctypes.c_void_p, int, int] | None:
    """C's variable `stderr`, the stream to put there, and the descriptor of its file; None where there is no glibc."""
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - elsewhere the variable may be a constant
        variable = ctypes.c_void_p.in_dll(libc, "stderr")
        descriptor = os.memfd_create("codec-warnings")
    except (AttributeError, ValueError, OSError):
        return None
    libc.fdopen.restype, libc.fdopen.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_char_p)
    libc.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    stream = libc.fdopen(descriptor, b"a")
    libc.setvbuf(stream, None, UNBUFFERED, 0)
    return variable, stream, descriptor


def _set_log_level(level: int) -> int:
    """OpenCV's own log level, which has moved since 4.11; returns the one before."""
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    return int(set_level(level))


@contextmanager
def caught_warnings() -> Iterator[list[str]]:
    """Gives a list that holds the warnings once the block has ended; one block at a time, other threads wait."""
    warnings: list[str] = []
    with _lock:
        level = _set_log_level(_SILENT)
        catcher = _catcher()
        original = None if catcher is None else catcher[0].value
        try:
            if catcher is not None:
                catcher[0].value = catcher[1]
            yield warnings
        finally:
            _set_log_level(level)
            if catcher is not None:
                catcher[0].value = original
                warnings += _drained(catcher[2])


def _drained(descriptor: int) -> list[str]:
    """Empty the file; what is not of the codecs goes where it was meant to."""
    size = os.fstat(descriptor).st_size
    if not size:
        return []
    lines = os.pread(descriptor, size, 0).splitlines(keepends=True)
    os.ftruncate(descriptor, 0)
    own = [line for line in lines if _OWN.match(line)]
    if others := b"".join(line for line in lines if line not in own):
        with suppress(OSError):  # a daemon may have closed it
            os.write(2, others)
    return [line.decode(errors="replace").strip() for line in own]
