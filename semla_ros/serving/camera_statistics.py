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
        image_rate_hz: Images per second within the window.
        mask_rate_hz: Masks per second within the window.
        silence_s: Time since the latest image; None before the first.
        latency_ms: By stage, within the window; the latest one where that is older.
        age_ms: Time between stamp and publication, likewise; None before the first mask.
        has_stamps: Whether the latest answered image carried a stamp.
        recent_restarts: How often its stamps jumped back within the window.
        last_error: Latest error; empty where there was none.
    """

    received: int
    answered: int
    dropped: Mapping[str, int]
    recent_received: int
    recent_dropped: Mapping[str, int]
    image_rate_hz: float
    mask_rate_hz: float
    silence_s: float | None
    latency_ms: Mapping[str, LatencySummary] = field(default_factory=dict)
    age_ms: LatencySummary | None = None
    has_stamps: bool = True
    recent_restarts: int = 0
    last_error: str = ""


class CameraStatistics:
    """Counts for one camera. Thread-safe; all times are seconds of the node's clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = 0
        self._answered = 0
        self._dropped: Counter[str] = Counter()
        self._last_error = ""
        self._latest_s: float | None = None  # arrival of the latest image
        self._has_stamps = True
        self._restarts: deque[float] = deque(maxlen=4096)
        self._forget()

    def _forget(self) -> None:
        self._arrivals: deque[float] = deque(maxlen=4096)
        self._answers: deque[float] = deque(maxlen=4096)
        self._drops: deque[tuple[float, str]] = deque(maxlen=4096)
        self._latency, self._age = LatencyWindow(), LatencyWindow()

    def clear(self) -> None:
        """Forget rates and latencies, as when the clock jumps back; the counters go on."""
        with self._lock:
            self._forget()

    def restart(self, now_s: float) -> None:
        """The camera's stamps have jumped back: count that, and forget what `clear` does."""
        with self._lock:
            self._forget()
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

    def answer(self, now_s: float, latency_ms: Mapping[str, float], age_ms: float | None) -> None:
        """Count a published mask; its age is None where the image carried no stamp."""
        with self._lock:
            self._answered += 1
            self._answers.append(now_s)
            self._has_stamps = age_ms is not None
            if age_ms is not None:
                self._age.add({"age": age_ms}, now_s)
            self._latency.add(latency_ms, now_s)

    def snapshot(self, now_s: float, window_s: float) -> CameraSnapshot:
        """Everything at once, with rates over the last `window_s` seconds."""
        with self._lock:
            since = now_s - window_s
            if self._latest_s is not None:
                self._latest_s = min(self._latest_s, now_s)  # the clock may have jumped back since
            recent = Counter(reason for time_s, reason in self._drops if time_s >= since)
            return CameraSnapshot(
                received=self._received,
                answered=self._answered,
                dropped=dict(self._dropped),
                recent_received=sum(time_s >= since for time_s in self._arrivals),
                recent_dropped=dict(recent),
                image_rate_hz=_rate_hz(self._arrivals, since),
                mask_rate_hz=_rate_hz(self._answers, since),
                silence_s=None if self._latest_s is None else now_s - self._latest_s,
                latency_ms=self._latency.summary(since),
                age_ms=self._age.summary(since).get("age"),
                has_stamps=self._has_stamps,
                recent_restarts=sum(since <= time_s <= now_s for time_s in self._restarts),
                last_error=self._last_error,
            )


def _rate_hz(times_s: deque[float], since_s: float) -> float:
    """Events per second between the first and the last one since `since_s`."""
    recent = [time_s for time_s in times_s if time_s >= since_s]
    if len(recent) < 2 or recent[-1] <= recent[0]:
        return 0.0
    return (len(recent) - 1) / (recent[-1] - recent[0])
