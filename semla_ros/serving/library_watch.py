"""Notice that an adapter library's folder has changed, and wait until the change is complete."""

from __future__ import annotations

import os
from pathlib import Path

Fingerprint = tuple[tuple[str, int, int], ...]


class LibraryWatch:
    """Compares a folder with what it was.

    A change counts once two looks in a row see the same: an adapter that is still being copied is left alone.

    Args:
        folder: The library.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settled = self._latest = _fingerprint(folder)

    def has_changed(self) -> bool:
        """Look; True once for each completed change."""
        before, self._latest = self._latest, _fingerprint(self._folder)
        if self._latest == self._settled or self._latest != before:
            return False
        self._settled = self._latest
        return True


def _fingerprint(folder: Path) -> Fingerprint:
    """Path, size and time of each file, down to the files of each adapter."""
    entries = []
    for directory, folders, files in os.walk(folder):
        if Path(directory) != folder:
            folders.clear()  # adapters are folders right below the library
        for name in files:
            path = Path(directory, name)
            try:
                status = path.stat()
            except OSError:  # removed meanwhile
                continue
            entries.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return tuple(sorted(entries))
