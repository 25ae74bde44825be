"""The frame path without ROS: every image received is answered, or dropped for a reason, whatever happens to one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from semla_ros.errors import EngineError, ImageError
from semla_ros.results import AdapterMix, Frame, Generation, Segmentation
from semla_ros.serving import camera_statistics as drops
from semla_ros.serving.frame_loop import CameraSlots, FrameLoop, Turn
from semla_ros.serving.troubles import Troubles

GENERATION = Generation(number=0, mix=AdapterMix(), class_names=("road",), vocabulary_version=0)
SECOND_NS = 1_000_000_000
ANSWER_S = 20.0


@dataclass
class Message:
    """An image message; `breaks` names the stage that it fails in, `text` what it fails with."""

    stamp_ns: int = SECOND_NS
    breaks: str = ""
    error: Exception | None = None

    def pass_through(self, stage: str) -> None:
        if self.breaks == stage:
            raise self.error or RuntimeError("out of memory")


class Bank:
    """Stands for `ModelBank`: remembers what it was asked; may be held until a test lets it go on."""

    warm_up_s = 0.0
    stage: Any = None

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.resets: list[str] = []
        self.wanted_confidence: list[bool] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def segment(self, frames: Sequence[Frame], want_confidence: bool) -> list[Segmentation]:
        self.batches.append([frame.camera for frame in frames])
        self.wanted_confidence.append(want_confidence)
        self.entered.set()
        assert self.go_on.wait(ANSWER_S)
        for frame in frames:
            MESSAGES[frame.frame_id].pass_through("segment")
        mask = np.zeros((2, 2), np.uint8)
        return [
            Segmentation(
                mask=mask,
                confidence=None,
                generation=GENERATION,
                stamp_ns=frame.stamp_ns,
                camera=frame.camera,
                frame_id=frame.frame_id,
                latency_ms={},
            )
            for frame in frames
        ]

    def reset_gate(self, camera: str) -> None:
        self.resets.append(camera)


MESSAGES: dict[str, Message] = {}  # by the frame id that stands for them


class Outputs:
    """Remembers what is published, by camera."""

    def __init__(self) -> None:
        self.published: list[tuple[str, int]] = []
        self.listened: set[str] = set()  # cameras whose confidence someone listens to

    def wants(self, camera: str, name: str) -> bool:
        return name == "confidence" and camera in self.listened

    def publish(self, message: Message, frame: Frame, result: Segmentation) -> None:
        message.pass_through("publish")
        assert (result.camera, result.stamp_ns) == (frame.camera, frame.stamp_ns)
        self.published.append((frame.camera, message.stamp_ns))


def decode(camera: str, message: Message) -> Frame:
    message.pass_through("decode")
    MESSAGES[str(id(message))] = message
    return Frame(
        image=np.zeros((2, 2, 3), np.uint8), stamp_ns=message.stamp_ns, camera=camera, frame_id=str(id(message))
    )


class Clock:
    set_back_ns = 0

    def now(self) -> Any:
        return SimpleNamespace(nanoseconds=max(time.time_ns() - self.set_back_ns, 0))


class Rig:
    """A loop with stand-ins around it."""

    def __init__(self, cameras: Sequence[str], most: int = 1) -> None:
        self.bank, self.outputs = Bank(), Outputs()
        self.is_ending = False
        self.loop = FrameLoop(cameras, decode, self.outputs, Clock(), Troubles(lambda: self.is_ending))
        self.loop.start(self.bank, most)  # type: ignore[arg-type]

    def account(self, camera: str = "") -> tuple[int, int, dict[str, int]]:
        """Images received, answered, and dropped by reason."""
        snapshot = self.loop.statistics[camera].snapshot(time.monotonic(), 60.0)
        return snapshot.received, snapshot.answered, dict(snapshot.dropped)

    def is_settled(self) -> bool:
        accounts = [self.account(camera) for camera in self.loop.statistics]
        return all(received == answered + sum(dropped.values()) for received, answered, dropped in accounts)

    def send(self, message: Message, camera: str = "") -> None:
        """Send an image and wait until all so far are accounted for."""
        self.loop.receive(camera, message)
        wait_for(self.is_settled)

    def send_together(self, **messages: Message) -> None:
        """Let images of several cameras wait at the same time: the loop is held by an image of the first camera."""
        first = next(iter(self.loop.statistics))
        self.bank.go_on.clear()
        self.bank.entered.clear()
        self.loop.receive(first, Message())
        assert self.bank.entered.wait(ANSWER_S)
        for camera, message in messages.items():
            self.loop.receive(camera, message)
        self.bank.go_on.set()
        wait_for(self.is_settled)


def wait_for(condition: Callable[[], Any]) -> None:
    end_s = time.monotonic() + ANSWER_S
    while not condition():
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.002)


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*cameras: str, most: int = 1) -> Rig:
        made.append(Rig(cameras or ("",), most))
        return made[-1]

    yield make
    for item in made:
        item.bank.go_on.set()
        item.loop.stop()
    MESSAGES.clear()


def test_an_image_is_answered_and_each_stage_of_it_is_timed(rig: Callable[..., Rig]) -> None:
    loop = rig()
    loop.send(Message(stamp_ns=time.time_ns()))
    assert loop.account() == (1, 1, {})
    snapshot = loop.loop.statistics[""].snapshot(time.monotonic(), 60.0)
    assert list(snapshot.latency_ms) == ["wait", "decode", "segment", "publish", "total"]
    stages = [snapshot.latency_ms[stage].max for stage in ("wait", "decode", "segment", "publish")]
    assert snapshot.latency_ms["total"].max == pytest.approx(sum(stages))
    assert snapshot.age_ms is not None
    assert 0 <= snapshot.age_ms.max < 1e3 * ANSWER_S


@pytest.mark.parametrize("stage", ["decode", "segment", "publish"])
@pytest.mark.parametrize(
    ("error", "reason", "text"),
    [
        (ImageError("rgb8 image with step 5"), drops.BROKEN, "rgb8 image with step 5"),
        (EngineError("the engine is gone"), drops.FAILED, "the engine is gone"),
        (MemoryError("nothing left"), drops.FAILED, "MemoryError: nothing left"),
    ],
)
def test_a_stage_that_fails_costs_its_image_and_no_other(
    rig: Callable[..., Rig], stage: str, error: Exception, reason: str, text: str
) -> None:
    loop = rig()
    loop.send(Message(breaks=stage, error=error))
    loop.send(Message())
    assert loop.account() == (2, 1, {reason: 1})
    assert loop.loop.statistics[""].snapshot(time.monotonic(), 60.0).last_error == text


def test_an_image_that_a_newer_one_overtakes_and_one_that_waits_at_the_end_are_dropped(rig: Callable[..., Rig]) -> None:
    loop = rig()
    loop.bank.go_on.clear()
    loop.loop.receive("", Message(stamp_ns=1))
    assert loop.bank.entered.wait(ANSWER_S)
    for stamp_ns in (2, 3, 4):
        loop.loop.receive("", Message(stamp_ns=stamp_ns))
    stopping = threading.Thread(target=loop.loop.stop)
    stopping.start()
    wait_for(lambda: drops.STOPPED in loop.account()[2])
    loop.bank.go_on.set()
    stopping.join(ANSWER_S)
    assert not stopping.is_alive()
    assert loop.account() == (4, 1, {drops.OVERTAKEN: 2, drops.STOPPED: 1})
    loop.loop.receive("", Message())  # one that was under way to the callback
    assert loop.account() == (5, 1, {drops.OVERTAKEN: 3, drops.STOPPED: 1})


def test_a_loop_that_is_switched_off_drops_images_and_goes_on_where_it_is_switched_on(rig: Callable[..., Rig]) -> None:
    loop = rig()
    loop.loop.is_enabled = False
    loop.send(Message())
    assert (loop.account(), loop.bank.batches) == ((1, 0, {drops.DISABLED: 1}), [])
    loop.loop.is_enabled = True
    loop.send(Message())
    assert loop.account() == (2, 1, {drops.DISABLED: 1})


@pytest.mark.parametrize("camera_hz", [5, 10, 11, 30, 100])
def test_a_rate_is_not_exceeded_and_images_that_come_too_fast_are_counted(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, camera_hz: int
) -> None:
    loop = rig("front", "left")
    loop.loop.max_rate_hz = 10.0
    rng, steady_s = np.random.default_rng(camera_hz), [1000.0]
    monkeypatch.setattr("semla_ros.serving.frame_loop.time.monotonic", lambda: steady_s[0])
    received = camera_hz * 20
    for index in range(received):  # for 20 s, as irregular as cameras are
        steady_s[0] = 1000.0 + (index + rng.uniform(-0.3, 0.3)) / camera_hz
        loop.loop.receive("front", Message())
    front = loop.account("front")
    taken = received - front[2].get(drops.TOO_FAST, 0)
    assert min(camera_hz, 10) * 20 * 0.97 <= taken <= 10 * 20 + 2
    loop.loop.receive("left", Message())
    assert drops.TOO_FAST not in loop.account("left")[2]


def test_cameras_that_wait_are_answered_in_one_forward_pass_up_to_a_number(rig: Callable[..., Rig]) -> None:
    loop = rig("front", "left", "right", most=2)
    loop.outputs.listened = {"left"}
    loop.send_together(front=Message(), left=Message(), right=Message())
    assert loop.bank.batches == [["front"], ["left", "right"], ["front"]]
    assert loop.bank.wanted_confidence == [False, True, False]
    assert [camera for camera, _ in loop.outputs.published] == ["front", "left", "right", "front"]


def test_a_broken_image_costs_its_own_camera_only_and_a_failing_pass_all_of_its_cameras(
    rig: Callable[..., Rig],
) -> None:
    loop = rig("front", "left", most=2)
    loop.send_together(left=Message(breaks="decode", error=ImageError("broken")), front=Message())
    assert (loop.account("front"), loop.account("left")) == ((2, 2, {}), (1, 0, {drops.BROKEN: 1}))
    loop.send_together(left=Message(breaks="segment"), front=Message())
    assert (loop.account("front")[2], loop.account("left")[2]) == (
        {drops.FAILED: 1},
        {drops.BROKEN: 1, drops.FAILED: 1},
    )
    loop.send_together(left=Message(breaks="publish"), front=Message())
    assert loop.account("front") == (6, 5, {drops.FAILED: 1})
    assert loop.account("left")[2] == {drops.BROKEN: 1, drops.FAILED: 2}


def test_stamps_that_jump_back_start_a_camera_anew_and_those_that_come_late_do_not(rig: Callable[..., Rig]) -> None:
    loop = rig("front", "left")
    for stamp_s in (10.0, 10.4, 10.1, 4.0, 4.1):
        loop.send(Message(stamp_ns=int(stamp_s * SECOND_NS)), "front")
    loop.send(Message(stamp_ns=20 * SECOND_NS), "left")
    assert loop.bank.resets == ["front"]
    assert loop.loop.statistics["front"].snapshot(time.monotonic(), 60.0).recent_restarts == 1
    assert loop.account("front") == (5, 5, {})
    loop.loop.stop()
    loop.loop.start(loop.bank, 1)  # type: ignore[arg-type]
    loop.send(Message(stamp_ns=SECOND_NS), "front")  # the camera may be another one since
    assert loop.bank.resets == ["front"]


def test_an_image_without_a_stamp_gets_the_time_it_is_taken_and_has_no_age(rig: Callable[..., Rig]) -> None:
    loop = rig()
    before_ns = time.time_ns()
    loop.send(Message(stamp_ns=0))
    assert loop.outputs.published == [("", 0)]  # the message stays what it is
    snapshot = loop.loop.statistics[""].snapshot(time.monotonic(), 60.0)
    assert (snapshot.has_stamps, snapshot.age_ms) == (False, None)
    loop.send(Message(stamp_ns=before_ns))  # which is no jump back
    assert loop.bank.resets == []


@pytest.mark.parametrize("set_back_ns", [3600 * SECOND_NS, 10**20], ids=["an hour", "for ever"])
def test_a_clock_that_is_set_back_or_silent_changes_ages_and_nothing_else(
    rig: Callable[..., Rig], set_back_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = rig()
    for _ in range(3):
        loop.send(Message(stamp_ns=time.time_ns()))
    monkeypatch.setattr(Clock, "set_back_ns", set_back_ns)
    loop.loop.clear_ages()  # as where rclpy tells of the jump
    for _ in range(3):
        loop.send(Message(stamp_ns=time.time_ns()))
    snapshot = loop.loop.statistics[""].snapshot(time.monotonic(), 60.0)
    assert (snapshot.received, snapshot.answered, snapshot.latency_ms["total"].count) == (6, 6, 6)
    assert snapshot.has_stamps
    assert snapshot.mask_rate_hz > 0
    assert snapshot.silence_s is not None
    assert 0 <= snapshot.silence_s < ANSWER_S
    if set_back_ns == 10**20:
        assert snapshot.age_ms is None
    else:
        assert snapshot.age_ms is not None
        assert snapshot.age_ms.p50 == pytest.approx(-3.6e6, rel=0.1)
    loop.send(Message(stamp_ns=0))
    assert loop.account() == (7, 7, {})


@pytest.mark.parametrize("stage", ["decode", "segment", "publish"])
def test_a_stage_that_does_not_end_is_named_until_it_does(
    rig: Callable[..., Rig], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semla_ros.timing.StageClock.LEAST_S", 0.05)
    loop = rig()
    loop.bank.stage = SimpleNamespace(name="forward", since_s=time.monotonic())
    loop.send(Message())
    assert loop.loop.hang() is None
    go_on = threading.Event()
    message = Message(breaks=stage)
    message.pass_through = lambda entered: entered == stage and go_on.wait(ANSWER_S)  # type: ignore[method-assign]
    monkeypatch.setattr("semla_ros.timing.StageClock.PIXELS_PER_S", 1e12)
    loop.loop.receive("", message)
    wait_for(loop.loop.hang)
    hang = loop.loop.hang()
    assert hang is not None
    assert (hang.stage, "'forward'" in hang.inside) == (stage, stage == "segment")
    go_on.set()
    wait_for(loop.is_settled)
    wait_for(lambda: loop.loop.hang() is None)
    assert loop.account() == (2, 2, {})


def test_what_fails_while_the_process_ends_is_not_told_and_the_loop_ends(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    loop = rig()
    loop.is_ending = True
    loop.loop.receive("", Message(breaks="publish"))
    wait_for(lambda: not loop.loop._thread.is_alive())
    assert (loop.account(), caplog.text) == ((1, 0, {}), "")


def slots_of(*cameras: str) -> tuple[CameraSlots, Callable[[str, int], Any], Callable[..., list[tuple[str, int]]]]:
    """Slots, and how to put a number into them and take numbers out."""
    slots = CameraSlots(cameras)

    def put(camera: str, number: int) -> int | None:
        overtaken = slots.put(Turn(camera, number))
        return None if overtaken is None else overtaken.message

    return slots, put, lambda most=1: [(turn.camera, turn.message) for turn in slots.take(most)]


def test_the_newest_image_of_each_camera_is_served_in_turn() -> None:
    _, put, take = slots_of("front", "left", "right")
    assert put("front", 1) is None
    assert put("front", 2) == 1
    put("right", 10)
    assert take() == [("front", 2)]
    put("front", 3)  # a fast camera does not keep the others out
    assert take() == [("right", 10)]
    assert take() == [("front", 3)]


def test_cameras_that_wait_are_taken_together_up_to_a_number_and_in_turn() -> None:
    _, put, take = slots_of("front", "left", "right")
    for number, camera in enumerate(("front", "left", "right")):
        put(camera, number)
    assert take(2) == [("front", 0), ("left", 1)]
    put("front", 3)
    assert take(5) == [("right", 2), ("front", 3)]
    put("front", 4)
    put("left", 5)
    assert take(1) == [("left", 5)]


def test_closing_wakes_the_taker_and_returns_what_waited() -> None:
    slots, put, take = slots_of("")
    taken: list[object] = []
    taker = threading.Thread(target=lambda: taken.append(take()))
    taker.start()
    assert slots.close() == []
    taker.join(5.0)
    assert taken == [[]]
    assert put("", 5) == 5
    waiting, put, _ = slots_of("")
    put("", 7)
    assert [turn.message for turn in waiting.close()] == [7]


def test_waiting_for_an_image_costs_no_processor_time() -> None:
    slots = CameraSlots([""])
    taker = threading.Thread(target=slots.take)
    before = time.process_time()
    taker.start()
    time.sleep(0.2)
    slots.close()
    taker.join()
    assert time.process_time() - before < 0.1
