"""What became of each image of a camera: every one received is answered, or dropped for a reason."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from semla_ros.timing import LatencySummary, LatencyWindow

OVERTAKEN = "overtaken"  # a newer image of the camera came before this one's turn
BROKEN = "broken image"
DISABLED = "disabled"  # by the enable service
TOO_FAST = "too fast"  # above max_rate_hz
FAILED = "failed"  # the segmentation raised an error
STOPPED = "stopped"  # the node was deactivated while it waited


@dataclass(frozen=True, kw_only=True)
class CameraSnapshot:
    """The state of one camera's statistics at one moment.

    Attributes:
        received: Images that arrived, ever.
        answered: Masks published, ever.
        dropped: Reason -> images, ever.
        recent_received: Images within the window.
        recent_dropped: Reason -> images within the window.
        image_rate_hz: Images per second, up to this moment.
        mask_rate_hz: Masks per second, likewise.
        span_s: Seconds that the rates are of: the window, or the time since the first image.
        silence_s: Time since the latest image; None before the first.
        latency_ms: By stage, within the window; the latest one where that is older.
        age_ms: Time between stamp and publication, likewise; None before the first mask.
        has_stamps: Whether the latest answered image carried a stamp.
        recent_restarts: How often its stamps jumped back within the window.
        lost: Images that the middleware says it lost on the way, ever.
        recent_lost: Likewise within the window.
        recent_late: How often no image came within the deadline that was asked for, within the window.
        is_alive: Whether a publisher asserts its liveliness, where that was asked for.
        last_error: Latest error; empty where there was none.
    """

    received: int
    answered: int
    dropped: Mapping[str, int]
    recent_received: int
    recent_dropped: Mapping[str, int]
    image_rate_hz: float
    mask_rate_hz: float
    span_s: float
    silence_s: float | None
    latency_ms: Mapping[str, LatencySummary] = field(default_factory=dict)
    age_ms: LatencySummary | None = None
    has_stamps: bool = True
    recent_restarts: int = 0
    lost: int = 0
    recent_lost: int = 0
    recent_late: int = 0
    is_alive: bool = True
    last_error: str = ""


class CameraStatistics:
    """Counts for one camera. Thread-safe; all times are seconds of the steady clock, `time.monotonic`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = 0
        self._answered = 0
        self._dropped: Counter[str] = Counter()
        self._last_error = ""
        self._latest_s: float | None = None  # arrival of the latest image
        self._has_stamps = True
        self._restarts: deque[float] = deque(maxlen=4096)
        self._age = LatencyWindow()
        self._lost = 0
        self._is_alive = True
        self._forget()

    def _forget(self) -> None:
        self._arrivals: deque[float] = deque(maxlen=4096)
        self._answers: deque[float] = deque(maxlen=4096)
        self._drops: deque[tuple[float, str]] = deque(maxlen=4096)
        self._latency = LatencyWindow()
        self._losses: deque[tuple[float, int]] = deque(maxlen=4096)
        self._misses: deque[tuple[float, int]] = deque(maxlen=4096)

    def clear(self) -> None:
        """Forget rates, latencies and ages, as at a new start; the counters go on."""
        with self._lock:
            self._forget()
        self.clear_ages()

    def clear_ages(self) -> None:
        """Forget the ages of frames, as where the clock that they go by has jumped."""
        self._age.clear()

    def restart(self, now_s: float) -> None:
        """The camera's stamps have jumped back: count that, and forget the ages."""
        self.clear_ages()
        with self._lock:
            self._restarts.append(now_s)

    def receive(self, now_s: float) -> None:
        """Count an image that arrived."""
        with self._lock:
            self._received += 1
            self._arrivals.append(now_s)
            self._latest_s = now_s

    def drop(self, now_s: float, reason: str, error: str = "") -> None:
        """Count an image that gets no mask, and why."""
        with self._lock:
            self._dropped[reason] += 1
            self._drops.append((now_s, reason))
            if error:
                self._last_error = error

    def lose(self, now_s: float, images: int) -> None:
        """Count images that were sent and lost on the way; they are not among those received."""
        with self._lock:
            self._lost += images
            self._losses.append((now_s, images))

    def miss_deadline(self, now_s: float, times: int) -> None:
        """Count how often no image came within the deadline."""
        with self._lock:
            self._misses.append((now_s, times))

    def tell_alive(self, is_alive: bool) -> None:
        """Note whether a publisher asserts its liveliness."""
        self._is_alive = is_alive

    def answer(
        self, now_s: float, latency_ms: Mapping[str, float], age_ms: float | None, has_stamp: bool = True
    ) -> None:
        """Count a published mask; its age is None where no clock tells it, and means nothing without a stamp."""
        with self._lock:
            self._answered += 1
            self._answers.append(now_s)
            self._has_stamps = has_stamp
            if age_ms is not None and has_stamp:
                self._age.add({"age": age_ms}, now_s)
            self._latency.add(latency_ms, now_s)

    def snapshot(self, now_s: float, window_s: float) -> CameraSnapshot:
        """Everything at once, with rates over the last `window_s` seconds, or since the first image."""
        with self._lock:
            since = now_s - window_s
            start_s = max(since, self._arrivals[0]) if self._arrivals else now_s
            recent = Counter(reason for time_s, reason in self._drops if time_s >= since)
            return CameraSnapshot(
                received=self._received,
                answered=self._answered,
                dropped=dict(self._dropped),
                recent_received=sum(time_s >= since for time_s in self._arrivals),
                recent_dropped=dict(recent),
                image_rate_hz=_rate_hz(self._arrivals, start_s, now_s),
                mask_rate_hz=_rate_hz(self._answers, start_s, now_s),
                span_s=now_s - start_s,
                silence_s=None if self._latest_s is None else now_s - self._latest_s,
                latency_ms=self._latency.summary(since),
                age_ms=self._age.summary(since).get("age"),
                has_stamps=self._has_stamps,
                recent_restarts=sum(since <= time_s <= now_s for time_s in self._restarts),
                lost=self._lost,
                recent_lost=sum(images for time_s, images in self._losses if time_s >= since),
                recent_late=sum(times for time_s, times in self._misses if time_s >= since),
                is_alive=self._is_alive,
                last_error=self._last_error,
            )


def _rate_hz(times_s: deque[float], start_s: float, now_s: float) -> float:
    """Events per second after `start_s` until now: where nothing happens any more, it falls."""
    if len(times_s) == times_s.maxlen:  # earlier ones have been forgotten
        start_s = max(start_s, times_s[0])
    return sum(time_s > start_s for time_s in times_s) / (now_s - start_s) if now_s > start_s else 0.0
