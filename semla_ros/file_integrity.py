"""How files are read, and the digests that they are held to."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

FileMark = tuple[int, int, int]  # inode, size and time of change: another one is another content, or may be


def mark_of(status: os.stat_result) -> FileMark:
    """Tells a file from what replaces it."""
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading; never waits, as a pipe would make one do.

    Raises:
        OSError: It is not there, not readable, or no regular file.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield file


def foreign(start: bytes) -> str:
    """What stands in place of a file's content, by its first bytes; empty where nothing does."""
    return "a git-lfs pointer, not the file itself: run 'git lfs pull'" if start.startswith(b"version ") else ""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open_regular(path) as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()
