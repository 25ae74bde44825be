"""The frame path: the newest image of each camera, in turn -> decoded -> segmented -> handed to the outputs. No ROS.

Every image received gets a mask, or is counted as dropped with the reason.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from semla_ros.errors import ImageError
from semla_ros.results import Frame, Segmentation
from semla_ros.serving.camera_statistics import BROKEN, DISABLED, FAILED, OVERTAKEN, STOPPED, TOO_FAST, CameraStatistics
from semla_ros.serving.model_bank import ModelBank
from semla_ros.serving.troubles import Troubles
from semla_ros.timing import Hang, RestartWatch, StageClock

logger = logging.getLogger(__name__)
RESTARTS_TOLD_EVERY_S = 5.0
UNKNOWN_PIXELS = 7680 * 4320  # of a compressed image before it is decoded: allow for the largest that is usual


class Outputs(Protocol):
    """Where masks go."""

    def wants(self, camera: str, name: str) -> bool:
        """Whether anyone listens to an output of a camera, such as "confidence"."""

    def publish(self, message: Any, frame: Frame, result: Segmentation) -> None:
        """Publish what is asked for of an image message's frame and its segmentation."""


@dataclass(eq=False)
class Turn:
    """One image on its way, and how long each stage of it has taken."""

    camera: str
    message: Any
    latency_ms: dict[str, float] = field(default_factory=dict)
    frame: Frame = field(init=False)
    has_stamp: bool = True
    result: Segmentation | None = None
    _lap_s: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """End a stage, which began where the one before ended."""
        now_s = time.perf_counter()
        self.latency_ms[stage] = 1e3 * (now_s - self._lap_s)
        self._lap_s = now_s


class CameraSlots:
    """Where images wait: one place per camera. A new one takes the place of the one that waits. Thread-safe.

    Args:
        cameras: Their names; the order is the order of turns.
    """

    def __init__(self, cameras: Sequence[str]) -> None:
        self._cameras = tuple(cameras)
        self._waiting: dict[str, Turn] = {}
        self._next = 0  # index of the camera whose turn it is
        self._is_closed = False
        self._condition = threading.Condition()

    def put(self, turn: Turn) -> Turn | None:
        """Let an image wait; returns the one whose place it took. After `close`, that is the image itself."""
        with self._condition:
            if self._is_closed:
                return turn
            overtaken = self._waiting.get(turn.camera)
            self._waiting[turn.camera] = turn
            self._condition.notify()
            return overtaken

    def take(self, most: int = 1) -> list[Turn]:
        """Wait for an image, and take at most so many of those that wait, one of each camera, in the order of turns.

        Returns:
            At least one; none after `close`.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._is_closed)
            in_turn = (*self._cameras[self._next :], *self._cameras[: self._next])
            taken = [self._waiting.pop(camera) for camera in [name for name in in_turn if name in self._waiting][:most]]
            if taken:
                self._next = (self._cameras.index(taken[-1].camera) + 1) % len(self._cameras)
            return taken

    def close(self) -> list[Turn]:
        """Wake up who waits in `take` and refuse further images; returns those that still waited."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
            remaining, self._waiting = list(self._waiting.values()), {}
            return remaining


class FrameLoop:
    """Answers images in a thread of its own between `start` and `stop`, and keeps each camera's account for good.

    Args:
        cameras: Their names; the order is the order of turns.
        outputs: Where masks go.
        clock: What stamps go by; `now().nanoseconds`, as rclpy's, which is 0 as long as there is none. Everything else
            goes by the steady clock.
        troubles: Knows what an error says, and whether the process is being ended.

    Attributes:
        make_frame: Decodes a camera's image message; stamp 0 where it has none; raises `ImageError`.
        image_codec: Name of what decodes, for reports.
        statistics: What became of each camera's images.
        is_enabled: Whether images are answered; else they are dropped as they come.
        max_rate_hz: How many images of a camera are taken per second on average; 0 = all.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        make_frame: Callable[[str, Any], Frame],
        outputs: Outputs,
        clock: Any,
        troubles: Troubles,
    ) -> None:
        self._cameras = tuple(cameras)
        self._outputs, self._clock, self._troubles = outputs, clock, troubles
        self.make_frame, self.image_codec = make_frame, "built in"
        self.statistics = {camera: CameraStatistics() for camera in cameras}
        self.is_enabled, self.max_rate_hz = True, 0.0
        self._due_s: dict[str, float] = {}  # when a camera's next image is taken, by `time.monotonic`
        self._restarts: dict[str, RestartWatch] = {}
        self._told_s = -math.inf  # when a restart was logged last
        self._slots = CameraSlots(())
        self._stages = StageClock()
        self._bank: ModelBank | None = None
        self._thread: threading.Thread | None = None

    def start(self, bank: ModelBank, most: int) -> None:
        """Answer images by the bank's models, at most so many in one forward pass."""
        self._slots = CameraSlots(self._cameras)
        self._restarts = {camera: RestartWatch() for camera in self._cameras}
        for statistics in self.statistics.values():
            statistics.clear()
        self._bank, self._stages = bank, StageClock(bank.warm_up_s)  # the first frame may be as slow
        self._thread = threading.Thread(target=self._run, args=(bank, most), name="semla-frames")
        self._thread.start()

    def stop(self) -> None:
        """Take no more images, finish those under way, and join the thread."""
        for turn in self._slots.close():
            self.statistics[turn.camera].drop(time.monotonic(), STOPPED)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def clear_ages(self) -> None:
        """Forget the ages of frames, which mean nothing once the clock has jumped."""
        for statistics in self.statistics.values():
            statistics.clear_ages()

    def expect_slow(self) -> None:
        """Let the next frame be as slow as the first one: other classes may have to be compiled for."""
        self._stages.forget()

    def hang(self) -> Hang | None:
        """The stage of the images under way, where it takes too long; inside the model, what its engine tells."""
        hang, bank = self._stages.hang(), self._bank
        if hang is None or not hang.stage.startswith("segment") or bank is None or (inner := bank.stage) is None:
            return hang
        return hang._replace(inside=f", there in '{inner.name}' for {time.monotonic() - inner.since_s:.1f} s")

    def receive(self, camera: str, message: Any) -> None:
        """Let an image wait for its turn; returns at once."""
        now_s, statistics = time.monotonic(), self.statistics[camera]
        statistics.receive(now_s)
        if not self.is_enabled:
            statistics.drop(now_s, DISABLED)
        elif self.max_rate_hz and self._is_too_fast(camera):
            statistics.drop(now_s, TOO_FAST)
        elif self._slots.put(Turn(camera, message)) is not None:
            statistics.drop(now_s, OVERTAKEN)

    def _is_too_fast(self, camera: str) -> bool:
        """Whether an image comes before its time; one that came late lets the next one come as much earlier."""
        now_s, period_s = time.monotonic(), 1.0 / self.max_rate_hz
        due_s = self._due_s.get(camera, now_s)
        if now_s < due_s:
            return True
        self._due_s[camera] = max(due_s, now_s - period_s) + period_s
        return False

    def _run(self, bank: ModelBank, most: int) -> None:
        """Answer images until the slots are closed. Whatever one image brings about, the next one gets its turn."""
        while taken := self._slots.take(most):
            decoded: list[Turn] = []
            for turn in taken:
                with self._dropping(turn):
                    self._decode(turn)
                    decoded.append(turn)
            # A failure is that of all of them: they had one forward pass.
            with self._dropping(*decoded):
                if decoded:
                    self._segment(bank, decoded)
            for turn in decoded:
                if turn.result is not None:
                    with self._dropping(turn):
                        self._publish(turn, turn.result)
            self._stages.enter("")
            if self._troubles.is_ending():
                return

    @contextmanager
    def _dropping(self, *turns: Turn) -> Iterator[None]:
        """Count what fails inside as an image of each camera that was dropped, with the reason."""
        try:
            yield
        except Exception as error:
            if self._troubles.is_ending():
                return
            reason, text = BROKEN if isinstance(error, ImageError) else FAILED, self._troubles.reason(error)
            for turn in turns:
                self.statistics[turn.camera].drop(time.monotonic(), reason, text)

    def _decode(self, turn: Turn) -> None:
        turn.lap("wait")
        self._stages.enter("decode", _pixels_of(turn.message))
        frame = self.make_frame(turn.camera, turn.message)
        turn.has_stamp = bool(frame.stamp_ns)
        # Adaptation goes by stamps; the mask's header stays what it is.
        turn.frame = frame if turn.has_stamp else self._stamped(frame)
        turn.lap("decode")

    def _stamped(self, frame: Frame) -> Frame:
        return replace(frame, stamp_ns=self._clock.now().nanoseconds or time.time_ns())

    def _segment(self, bank: ModelBank, turns: Sequence[Turn]) -> None:
        stage = "segment" if len(turns) == 1 else f"segment of {len(turns)}"  # another number may be compiled anew
        self._stages.enter(stage, sum(turn.frame.image.size / 3 for turn in turns))
        for turn in turns:
            self._notice_restart(bank, turn.camera, turn.frame.stamp_ns)
        wants_confidence = any(self._outputs.wants(turn.camera, "confidence") for turn in turns)
        results = bank.segment([turn.frame for turn in turns], wants_confidence)
        for turn, result in zip(turns, results, strict=True):
            turn.result = result
            turn.lap("segment")

    def _notice_restart(self, bank: ModelBank, camera: str, stamp_ns: int) -> None:
        """Start over where a camera's stamps jump back, as they do when a recording loops."""
        if jump_s := self._restarts[camera].jump_s(stamp_ns):
            if time.monotonic() - self._told_s > RESTARTS_TOLD_EVERY_S:
                self._told_s = time.monotonic()
                logger.info("stamps jumped back by %.1f s: statistics start anew", jump_s)
            bank.reset_gate(camera)
            self.statistics[camera].restart(time.monotonic())

    def _publish(self, turn: Turn, result: Segmentation) -> None:
        self._stages.enter("publish", turn.frame.image.size / 3)
        self._outputs.publish(turn.message, turn.frame, result)
        turn.lap("publish")
        latency_ms = {**turn.latency_ms, "total": sum(turn.latency_ms.values())}
        age_ms = (now_ns - turn.frame.stamp_ns) / 1e6 if (now_ns := self._clock.now().nanoseconds) else None
        self.statistics[turn.camera].answer(time.monotonic(), latency_ms, age_ms, turn.has_stamp)


def _pixels_of(message: Any) -> float:
    """Size that an image message claims; of a compressed one that is not known."""
    return float(message.width * message.height) if hasattr(message, "width") else UNKNOWN_PIXELS
