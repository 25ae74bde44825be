from __future__ import annotations

import threading
import time

from semla_ros.adaptation.swap_gate import SwapGate


def test_a_swap_waits_for_the_frame_in_progress() -> None:
    gate, order = SwapGate(), []
    entered = threading.Event()

    def frame() -> None:
        with gate.frame():
            entered.set()
            time.sleep(0.05)
            order.append("frame")

    thread = threading.Thread(target=frame)
    thread.start()
    entered.wait()
    with gate.swap():
        order.append("swap")
    thread.join()
    assert order == ["frame", "swap"]


def test_a_loop_of_frames_without_a_pause_does_not_keep_a_swap_out() -> None:
    gate, stop, frames = SwapGate(), threading.Event(), [0]

    def loop() -> None:
        while not stop.is_set():
            with gate.frame():
                frames[0] += 1
                time.sleep(0.002)

    thread = threading.Thread(target=loop)
    thread.start()
    while not frames[0]:
        time.sleep(0.001)
    waited = []
    for _ in range(10):
        before = frames[0]
        with gate.swap():
            waited.append(frames[0] - before)
        time.sleep(0.001)
    stop.set()
    thread.join()
    assert max(waited) <= 2  # the one in progress, and one that had passed the turnstile


def test_frames_go_on_after_a_swap_that_failed() -> None:
    gate = SwapGate()
    try:
        with gate.swap():
            raise ValueError
    except ValueError:
        pass
    with gate.frame():
        pass
