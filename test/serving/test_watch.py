"""What guards goes by the steady clock, whatever its neighbours do; a hang is told once, at once, and may end all."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from semla_ros.serving import watch
from semla_ros.serving.watch import HangWatch, SteadyJobs
from semla_ros.timing import Hang, StageClock

HANG = Hang("segment", 3.0, 2.3, ", there in 'forward' for 3.0 s")


def test_jobs_run_at_their_periods_and_one_that_fails_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[str] = []
    enough = threading.Event()

    def fails() -> None:
        runs.append("fails")
        raise RuntimeError("broken")

    def counts() -> None:
        runs.append("counts")
        if runs.count("counts") >= 5:
            enough.set()

    monkeypatch.setattr("time.time", lambda: 0.0)  # the system's clock has been set back, and stands
    jobs = SteadyJobs([(0.01, fails), (0.02, counts), (1e6, lambda: runs.append("never"))], lambda: False)
    jobs.start()
    assert enough.wait(20.0)
    jobs.close()
    assert runs.count("fails") >= 5
    assert "never" not in runs
    assert "RuntimeError: broken" in caplog.text


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    told: list[Any] = []
    monkeypatch.setattr(watch, "notify", lambda state: told.append(state) or True)
    monkeypatch.setattr(watch, "end_at_once", lambda status, reason: told.append((status, reason)))
    return told


def test_a_hang_is_reported_when_it_begins_and_ends_and_systemd_hears_nothing_meanwhile(told: list[Any]) -> None:
    hang: list[Hang | None] = [None]
    looking = HangWatch(SimpleNamespace(hang=lambda: hang[0]), 0.0, lambda: told.append("report"))  # type: ignore[arg-type]
    looking.look()
    assert told == []  # still loading
    looking.is_ready = True
    for state in (None, None, HANG, HANG, None):
        hang[0] = state
        looking.look()
    assert told == ["READY=1", "WATCHDOG=1", "report", "WATCHDOG=1", "report"]


def test_ready_is_told_until_it_is_heard(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, True, False, True])
    monkeypatch.setattr(watch, "notify", lambda state: told.append(state) or next(answers))
    looking = HangWatch(SimpleNamespace(hang=lambda: None), 0.0, lambda: None)  # type: ignore[arg-type]
    looking.is_ready = True
    for _ in range(5):
        looking.look()
    assert told == ["READY=1"] * 3 + ["WATCHDOG=1"] * 2


def test_the_watchdog_ends_the_process_where_a_hang_lasts_as_long_as_it_allows(told: list[Any]) -> None:
    for watchdog_s, is_ended in ((0.0, False), (3.5, False), (2.5, True), (0.1, True)):
        told.clear()
        looking = HangWatch(SimpleNamespace(hang=lambda: HANG), watchdog_s, lambda: None)  # type: ignore[arg-type]
        looking.look()
        assert told == []  # the process may have been stopped: the frame path gets a chance
        looking.look()
        assert [item[0] for item in told] == [70] * is_ended
    assert "there in 'forward' for 3.0 s" in told[0][1]


class Time:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("semla_ros.timing.time", SimpleNamespace(monotonic=lambda: self.now_s))

    def run(self, stages: StageClock, stage: str, seconds: float, pixels: float = 0.0) -> None:
        stages.enter(stage, pixels)
        self.now_s += seconds


@pytest.mark.parametrize(
    ("usual_s", "pixels", "bound_s"),
    [
        (0.02, 640 * 480, 2.3),
        (0.4, 1920 * 1080, 2.3),  # a model whose frames take less than half a second is told within 3 s
        (2.0, 640 * 480, 10.0),  # a slow machine is not
        (0.02, 7680 * 4320, 2.3 + 31_104_000 / 8e6),  # nor an image that is large
    ],
)
def test_a_stage_hangs_where_it_takes_longer_than_it_ever_should(
    monkeypatch: pytest.MonkeyPatch, usual_s: float, pixels: float, bound_s: float
) -> None:
    clock = Time(monkeypatch)
    stages = StageClock()
    for _ in range(5):
        clock.run(stages, "decode", 0.001)
        clock.run(stages, "segment", usual_s)
        clock.run(stages, "", 100.0)  # no image comes: that is no hang
        assert stages.hang() is None
    clock.run(stages, "segment", bound_s - 0.01, pixels)
    assert stages.hang() is None
    clock.now_s += 0.02
    assert stages.hang() == Hang("segment", pytest.approx(bound_s + 0.01), pytest.approx(bound_s))
    stages.enter("publish")
    assert stages.hang() is None


def test_a_first_frame_may_be_as_slow_as_the_warm_up_and_later_ones_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time(monkeypatch)
    stages = StageClock(first_s=10.0)  # compilation
    for _ in range(2):
        for stage in ("segment", "segment of 2"):  # another number of images is compiled for
            clock.run(stages, stage, 49.0)
            assert stages.hang() is None
            for _ in range(8):
                clock.run(stages, stage, 0.1)
            clock.run(stages, stage, 2.4)
            assert stages.hang() is not None
        stages.forget()  # other classes


def test_a_thread_that_keeps_the_interpreter_for_itself_ends_the_process_where_that_is_asked_for() -> None:
    code = (
        "from types import SimpleNamespace\n"
        "from semla_ros.serving.watch import HangWatch\n"
        "watch = HangWatch(SimpleNamespace(hang=lambda: None), 0.1, print)\n"
        "watch.is_ready = True\n"
        "watch.look()\n"
        "sum(range(10**12))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120.0, check=False)
    assert run.returncode == 1
    assert 'File "<string>", line 6' in run.stderr  # what it was doing
