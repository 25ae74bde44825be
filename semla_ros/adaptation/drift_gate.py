"""When a scene counts as changed: throttled, smoothed, with hysteresis and a shortest life of a mix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semla_ros.config import DriftConfig
from semla_ros.errors import ImageError
from semla_ros.results import FloatArray
from semla_ros.timing import JUMP_BACK_NS

JITTER = 0.02  # part of a period by which a frame may come early and still count: cameras do not tick exactly
SETTLING_CONSTANTS = 4.0  # time constants after which smoothing has followed a step to 2 %


@dataclass(frozen=True, kw_only=True, eq=False)
class GateDecision:
    """What the gate makes of one scene embedding.

    Attributes:
        has_drifted: The scene has changed and may be retrieved for now.
        is_dwelling: The scene has changed, but the present mix is too young to be replaced.
        drift: Distance between the smoothed embedding and the one that the present mix was made for, relative to the
            latter's length; None where there is no such mix yet.
        smoothed: The smoothed embedding, shape (D,), float32; retrieve for this one.
    """

    has_drifted: bool
    is_dwelling: bool
    drift: float | None
    smoothed: NDArray[np.float32]


class DriftGate:
    """Follows one stream of scene embeddings; time is the images' own.

    A change begins where the smoothed embedding has moved by more than `drift_threshold`. While it is under way, mixes
    are renewed at smaller moves already, so that the last one fits the scene that the change ends in. It ends where
    the move falls below `release_threshold`, or, since noise alone may stay above that, once smoothing has had the
    time to follow. A steady scene whose noise stays below `drift_threshold` is therefore left alone.

    Not thread-safe.

    Args:
        config: Rate, thresholds, dwell and smoothing.
    """

    def __init__(self, config: DriftConfig | None = None) -> None:
        self.config = config or DriftConfig()
        self.reset()

    def reset(self) -> None:
        """Start over: the next embedding counts as changed."""
        self._claimed_ns: int | None = None  # stamp of the last frame that was let through
        self._updated_ns: int | None = None
        self._accepted_ns: int | None = None
        self._smoothed: NDArray[np.float32] | None = None
        self._reference: NDArray[np.float32] | None = None  # smoothed embedding that the present mix was made for
        self._change_ends_ns: int | None = None  # None while no change is under way

    def should_embed(self, stamp_ns: int) -> bool:
        """Whether this frame is to be embedded; saying so claims the slot, so ask once per frame.

        A stamp that jumps back resets the gate.
        """
        if self._claimed_ns is not None and stamp_ns < self._claimed_ns - JUMP_BACK_NS:
            self.reset()
        period_ns = 1e9 / self.config.retrieval_rate_hz
        if self._claimed_ns is not None and stamp_ns - self._claimed_ns < period_ns * (1 - JITTER):
            return False
        self._claimed_ns = stamp_ns
        return True

    def update(self, embedding: FloatArray, stamp_ns: int) -> GateDecision:
        """Take in the scene embedding of one frame.

        Args:
            embedding: Shape (D,).
            stamp_ns: The frame's stamp.

        Returns:
            Whether to retrieve; after a new mix was put into use, call `accept`.

        Raises:
            ImageError: The embedding is not finite; the gate stays as it was.
        """
        embedding = np.asarray(embedding, np.float32).reshape(-1)
        if not np.isfinite(embedding).all():
            raise ImageError("scene embedding has values that are not finite; check the image and the scene encoder")
        if self._updated_ns is not None and stamp_ns < self._updated_ns - JUMP_BACK_NS:
            self.reset()
        smoothed = self._smooth(embedding, stamp_ns)
        if self._reference is None or self._accepted_ns is None:
            return GateDecision(has_drifted=True, is_dwelling=False, drift=None, smoothed=smoothed)
        drift = _relative_move(smoothed, self._reference)
        has_moved = self._has_moved(drift, stamp_ns)
        is_young = stamp_ns - self._accepted_ns < self.config.min_dwell_s * 1e9 * (1 - JITTER)
        return GateDecision(
            has_drifted=has_moved and not is_young, is_dwelling=has_moved and is_young, drift=drift, smoothed=smoothed
        )

    def accept(self, stamp_ns: int) -> None:
        """A mix for the latest smoothed embedding is in use since this stamp."""
        if self._reference is None:
            self._begin_change(stamp_ns)  # the first mix is made for a single embedding, noise and all
        self._reference = self._smoothed
        self._accepted_ns = stamp_ns

    def _smooth(self, embedding: NDArray[np.float32], stamp_ns: int) -> NDArray[np.float32]:
        """Exponential smoothing by the time that has passed."""
        share = 1.0
        if self._smoothed is not None and self._updated_ns is not None and self.config.smoothing_s > 0:
            elapsed_s = max(0, stamp_ns - self._updated_ns) / 1e9
            share = 1.0 - math.exp(-elapsed_s / self.config.smoothing_s)
        previous = embedding if self._smoothed is None else self._smoothed
        self._smoothed = (previous + np.float32(share) * (embedding - previous)).astype(np.float32)
        self._updated_ns = max(stamp_ns, self._updated_ns or stamp_ns)
        return self._smoothed

    def _has_moved(self, drift: float, stamp_ns: int) -> bool:
        if drift > self.config.drift_threshold:
            self._begin_change(stamp_ns)
            return True
        if self._change_ends_ns is None:
            return False
        if drift <= self.config.release_threshold or stamp_ns > self._change_ends_ns:
            self._change_ends_ns = None
            return False
        return True

    def _begin_change(self, stamp_ns: int) -> None:
        settling_s = SETTLING_CONSTANTS * self.config.smoothing_s + 1.0 / self.config.retrieval_rate_hz
        self._change_ends_ns = stamp_ns + int(settling_s * 1e9)


def _relative_move(vector: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    length = float(np.linalg.norm(reference))
    move = float(np.linalg.norm(vector - reference))
    if length == 0.0:
        return 0.0 if move == 0.0 else math.inf
    return move / length
