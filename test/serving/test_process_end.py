"""The end of the process, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

HANGING_MAIN = """
import threading, time
from semla_ros.serving.process_end import EndGuard
guard = EndGuard({shut_down}, lambda: "doing something"{more})
print("ready", flush=True)
{main}
"""


def started(main: str, shut_down: str = "lambda: None", more: str = "") -> subprocess.Popen[str]:
    code = HANGING_MAIN.format(main=main, shut_down=shut_down, more=more)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_main_thread_that_hangs_is_ended_with_the_status_of_the_signal_and_named(number: signal.Signals) -> None:
    process = started("threading.Lock().acquire() and threading.Event().wait()")
    began_s = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate(timeout=60.0)
    assert process.returncode == 128 + number
    assert 3.9 < time.monotonic() - began_s < 5.0
    assert f"not ended 4 s after {number.name}; doing something; threads: MainThread" in told
    assert "in wait" in told  # what it was doing


def test_a_thread_that_never_gives_the_interpreter_back_is_ended_by_the_kernel() -> None:
    process = started("threading.Event().wait()", shut_down="lambda: sum(range(10**12))")
    began_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60.0)
    assert process.returncode == -signal.SIGALRM
    assert time.monotonic() - began_s < 5.0


def test_a_second_signal_ends_at_once_with_the_status_of_the_first_but_an_echo_does_not() -> None:
    process = started("threading.Event().wait()")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # passed on by two
    time.sleep(0.5)
    assert process.poll() is None
    began_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60.0)
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began_s < 1.0
    assert "SIGINT while ending by SIGTERM" in told


def test_a_standard_error_that_nobody_reads_keeps_no_process_from_its_end() -> None:
    process = started("import os; os.set_blocking(2, True)\nwhile True: os.write(2, b'x' * 4096)")
    process.send_signal(signal.SIGINT)
    assert process.wait(60.0) == 128 + signal.SIGINT


IMPORTING = """
import sys
class Endless:
    def find_spec(self, name, path, target=None):
        if name == "endless":
            print("importing", flush=True)
            while True: time.sleep(0.01)
sys.meta_path.insert(0, Endless())
threading.Thread(target=lambda: __import__("endless")).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_import_while_nothing_is_served_is_left_at_once_and_without_a_word(number: signal.Signals) -> None:
    process = started(IMPORTING, more=", is_changing=lambda: True")
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    began_s = time.monotonic()
    process.send_signal(number)
    assert process.communicate(timeout=60.0) == ("", "")
    assert process.returncode == 128 + number
    assert time.monotonic() - began_s < 2.0


def test_while_images_are_served_an_import_is_waited_for_as_all_else() -> None:
    process = started(IMPORTING, more=", is_changing=lambda: False")
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    began_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60.0)
    assert time.monotonic() - began_s > 3.9
    assert "not ended 4 s after SIGINT" in told


def test_an_orderly_end_is_left_alone() -> None:
    process = started("event.wait(); time.sleep(0.3)", shut_down="(event := threading.Event()).set")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60.0) == ("", "")
    assert process.returncode == 0


def test_a_second_signal_while_the_interpreter_takes_itself_down_changes_no_status() -> None:
    main = """
import atexit
atexit.register(time.sleep, 1.0)
event.wait(); guard.ended(); print("ended", flush=True)
"""
    process = started(main, shut_down="(event := threading.Event()).set")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ended\n"
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60.0)
    assert process.returncode == 0
