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
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        logger.debug("no glibc: malloc thresholds stay as they are")
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)) and bool(
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    )
