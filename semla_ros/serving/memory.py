"""The process's memory: how much it holds, and what the allocators of glibc and torch keep or give back."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from typing import Any

import psutil

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from malloc.h
MMAP_THRESHOLD_BYTES = 256 << 20
TRIM_THRESHOLD_BYTES = 512 << 20
GIVE_BACK_EVERY_S = 20.0  # a frame is some 10 % longer after it, which is one frame in many


def keep_large_blocks() -> bool:
    """Let glibc serve blocks below 256 MiB from one heap, and keep up to 512 MiB of it when they are freed.

    By default each image of a few MB is its own mapping: the kernel clears and unmaps every page of every message.
    `bench` measures what this is worth on a machine. And by default threads have up to eight heaps per core, each of
    which keeps what its threads once needed: every activation starts threads, and would leave a frame's memory behind
    in yet another one.

    Returns:
        Whether it was done; it is not on systems without glibc.
    """
    libc = _glibc()
    if libc is None:
        logger.debug("no glibc: malloc thresholds stay as they are")
        return False
    settings = (
        (_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
        (_M_ARENA_MAX, 1),
    )
    return all(libc.mallopt(*setting) for setting in settings)


def give_back_memory() -> None:
    """Return what a released model held: torch keeps a GPU's memory, and malloc the system's, until they are told."""
    gc.collect()
    torch = _loaded_torch()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    give_back_free_pages()


def give_back_free_pages() -> None:
    """Return the pages that malloc keeps for blocks to come; takes a millisecond or two, in any thread."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def resident_mb() -> float:
    """Physical memory that this process holds, MB."""
    return float(psutil.Process().memory_info().rss) / 1e6


def gpu_mb() -> float | None:
    """Memory that torch holds on all GPUs, MB, without starting CUDA; None where nobody uses one."""
    torch = _loaded_torch()
    if torch is None or not torch.cuda.is_initialized():
        return None
    return float(sum(map(torch.cuda.memory_reserved, range(torch.cuda.device_count())))) / 1e6


def _loaded_torch() -> Any:
    """The torch module; None while nobody has imported it, or another thread is still in the middle of that."""
    torch = sys.modules.get("torch")
    return None if torch is None or getattr(torch.__spec__, "_initializing", False) else torch


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
