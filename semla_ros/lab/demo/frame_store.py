"""Frames of a drive on disk, exactly as they came, so that memory stays the same however long the drive is."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import cv2
import numpy as np

from semla_ros.errors import ImageError
from semla_ros.results import ImageArray, MaskArray

Key = tuple[str, int]  # kind ("image", "truth", "mask", "base") and stamp in nanoseconds


class _Place(NamedTuple):
    """Where a picture lies in the file; `shape` is None for a PNG."""

    offset: int
    size: int
    shape: tuple[int, ...] | None


class FrameStore:
    """One append-only file and an index in memory. Safe to use from several threads; a context manager that deletes it.

    Masks are kept as PNGs, a twentieth of their size. Camera images hardly shrink, because they are noisy, and cost ten
    milliseconds each to compress, which the nodes would miss on a small machine: they are kept as they are.
    """

    def __init__(self, path: Path) -> None:
        """Create the file, replacing what is there; its folder must exist."""
        self._path = path
        self._file = path.open("w+b")
        self._places: dict[Key, _Place] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, stamp_ns: int, picture: MaskArray) -> None:
        """Keep a uint8 picture, RGB (H, W, 3) or mask (H, W); a second one of the same kind and stamp replaces it.

        Raises:
            ImageError: The picture cannot be compressed (wrong type or empty).
        """
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or 0 in picture.shape:
            raise ImageError(
                f"{kind} at {stamp_ns} ns: expected a uint8 picture, got {picture.dtype} of shape {picture.shape}"
            )
        is_mask = picture.ndim == 2
        data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1] if is_mask else picture
        with self._lock:
            place = _Place(self._file.seek(0, 2), data.nbytes, None if is_mask else picture.shape)
            self._file.write(data.tobytes())
            self._places[kind, stamp_ns] = place

    def get(self, kind: str, stamp_ns: int) -> ImageArray:
        """Read a picture back, exactly as it was added.

        Raises:
            KeyError: Nothing of that kind and stamp was added.
        """
        with self._lock:
            place = self._places[kind, stamp_ns]
            self._file.seek(place.offset)
            data = np.frombuffer(bytearray(self._file.read(place.size)), np.uint8)  # writable
        if place.shape is not None:
            return data.reshape(place.shape)
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.uint8)

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def stamps(self, *kinds: str) -> list[int]:
        """Stamps in order of time of which all of `kinds` are there."""
        with self._lock:
            sets = [{stamp for name, stamp in self._places if name == kind} for kind in kinds]
        return sorted(set.intersection(*sets)) if sets else []

    def __enter__(self) -> FrameStore:
        """Return the store."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)
