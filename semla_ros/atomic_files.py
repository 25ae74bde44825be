"""Files and folders that appear whole or not at all, and who may write them."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes and threads that lock the same file or folder out; waits for them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file (text as UTF-8) in one step: readers see the old one or the new one; a device or a pipe as it is."""
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with atomic_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A hidden file to write beside `path`; it replaces that in one step where the block ends without an error.

    It is as readable as any new file here, whatever the library that writes it makes of it.
    """
    partial = _beside(path)
    try:
        partial.touch(exist_ok=False)
        mode = stat.S_IMODE(partial.stat().st_mode)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
        partial.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(partial)):  # a write that fails names nothing
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # the folder may be read-only by now; the first error counts
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A hidden folder to fill beside `path`, which must not exist; it gets that name as `atomic_file` does.

    Its files are as readable as the folder.
    """
    partial = _beside(path)
    partial.mkdir(parents=True)
    mode = stat.S_IMODE(partial.stat().st_mode) & 0o666
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
