from __future__ import annotations

import os
import sys
import threading

import pytest
import torch

from semla_ros.adaptation.background import NICENESS, NewestWins


def test_the_newest_item_replaces_the_one_that_waits() -> None:
    seen: list[int] = []
    busy, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work(item: int) -> None:
        seen.append(item)
        if item == 1:
            busy.set()
            go_on.wait(5)
        if item == 4:
            done.set()

    worker = NewestWins(work, "test")
    worker.offer(1)
    assert busy.wait(5)
    for item in (2, 3, 4):
        worker.offer(item)
    go_on.set()
    assert done.wait(5)
    worker.stop()
    assert seen == [1, 4]
    assert worker.replaced == 2


def test_stop_waits_for_the_item_in_progress_and_drops_the_next() -> None:
    seen: list[int] = []
    busy, go_on = threading.Event(), threading.Event()

    def work(item: int) -> None:
        busy.set()
        go_on.wait(5)
        seen.append(item)

    worker = NewestWins(work, "test")
    worker.offer(1)
    assert busy.wait(5)
    worker.offer(2)
    threading.Timer(0.05, go_on.set).start()
    worker.stop()
    assert seen == [1]


def test_an_unexpected_error_is_logged_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def work(item: int) -> None:
        if item == 1:
            raise ZeroDivisionError("on purpose")
        done.set()

    worker = NewestWins(work, "test")
    worker.offer(1)
    while not caplog.records:
        threading.Event().wait(0.01)
    worker.offer(2)
    assert done.wait(5)
    worker.stop()
    assert "ZeroDivisionError: on purpose" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_the_thread_runs_at_low_priority_on_one_core_and_leaves_other_threads_alone() -> None:
    before = torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, 0)
    found: list[tuple[int, int]] = []
    done = threading.Event()

    def work(_: int) -> None:
        found.append((torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        done.set()

    worker = NewestWins(work, "test")
    worker.offer(1)
    assert done.wait(5)
    worker.stop()
    assert found[0][0] == 1
    assert found[0][1] == min(before[1] + NICENESS, 19) or found[0][1] == NICENESS
    assert (torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, 0)) == before
    seen_by_new_thread: list[int] = []
    thread = threading.Thread(target=lambda: seen_by_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen_by_new_thread == [before[0]]
