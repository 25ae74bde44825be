"""Pictures into an H.264 mp4 that every browser and README viewer plays."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from semla_ros.errors import SemlaError
from semla_ros.results import ImageArray


class VideoWriter:
    """Writes frames as they come; use it as a context manager, or call `close`.

    Attributes:
        path: The mp4 file.
        frames: Number of frames written so far.
    """

    def __init__(self, path: Path, rate_hz: float, *, quality: int = 23) -> None:
        """Open the file.

        Args:
            path: File to write; its folder must exist.
            rate_hz: Frames per second of the video, > 0.
            quality: Constant rate factor of x264, lower is better; 18 to 28 is the useful range.

        Raises:
            SemlaError: The folder does not exist, or the rate is not positive.
        """
        if rate_hz <= 0:
            raise SemlaError(f"video {path}: frame rate must be positive, got {rate_hz}")
        self.path = path
        self.frames = 0
        self._shape: tuple[int, ...] = ()
        self._quality = quality
        self._rate = Fraction(rate_hz).limit_denominator(1000)
        if not path.parent.is_dir():  # av opens the file with the first picture, which is late to find out
            raise SemlaError(f"video {path} cannot be written: there is no folder {path.parent}")
        self._container = av.open(str(path), "w", options={"movflags": "+faststart"})
        self._stream: Any = None  # made with the first picture, which sets the size

    def write(self, image: ImageArray) -> None:
        """Append one RGB picture (H, W, 3); all must have one shape. Odd sizes lose their last row or column.

        Raises:
            SemlaError: The picture's shape differs from the first one's.
        """
        if self._stream is None:
            self._shape = image.shape
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.height, self._stream.width = (size // 2 * 2 for size in image.shape[:2])
            self._stream.pix_fmt = "yuv420p"  # what browsers and hardware decoders play
            self._stream.options = {"crf": str(self._quality), "preset": "veryfast"}
        if image.shape != self._shape:
            raise SemlaError(f"video {self.path}: expected pictures of shape {self._shape}, got {image.shape}")
        even = np.ascontiguousarray(image[: self._stream.height, : self._stream.width])
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")):
            self._container.mux(packet)
        self.frames += 1

    def close(self) -> None:
        """Finish the file; without a frame there is none to finish, and the empty file is removed."""
        if self._stream is not None:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()
        if self._stream is None:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        """Return the open writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, also after an error, so that what was written can be watched."""
        self.close()
