"""Keep the memory of large messages instead of mapping and unmapping it for each one."""

from __future__ import annotations

import ctypes
import logging
import sys

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
MMAP_THRESHOLD_BYTES = 256 << 20
TRIM_THRESHOLD_BYTES = 512 << 20


def keep_large_blocks() -> bool:
    """Let glibc serve blocks below 256 MiB from its heap, and keep up to 512 MiB of it when they are freed.

    By default each image of a few MB is its own mapping: the kernel clears and unmaps every page of every message.
    `bench` measures what this is worth on a machine.

    Returns:
        Whether it was done; it is not on systems without glibc.
    """
    libc = _glibc()
    if libc is None:
        logger.debug("no glibc: malloc thresholds stay as they are")
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)) and bool(
        libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    )


def give_back_free_blocks() -> None:
    """Let glibc return to the system what it has kept, as when a model has been released."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
