"""Slow service calls beside the executor, in a process of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from semla_ros.nodes.aside import Aside


@pytest.fixture
def aside() -> Iterator[Aside]:
    context = SimpleNamespace(ok=lambda: True)
    aside = Aside(SimpleNamespace(executor=None, context=context))
    yield aside
    aside.close()


def answer_of(aside: Aside, callback: Any, response: Any) -> Any:
    """Drive the coroutine as an executor does, until it returns."""
    coroutine = aside.serving(callback)("request", response)
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value


def test_an_answer_is_made_in_another_thread(aside: Aside) -> None:
    def callback(request: str, response: dict) -> dict:
        return response | {"request": request, "thread": threading.current_thread().name}

    answer = answer_of(aside, callback, {"success": True})
    assert answer["request"] == "request"
    assert answer["success"]
    assert answer["thread"].startswith("semla-changes")


def test_a_callback_that_raises_is_logged_and_its_response_goes_out(
    aside: Aside, caplog: pytest.LogCaptureFixture
) -> None:
    def callback(request: str, response: dict) -> dict:
        raise RuntimeError("out of memory")

    response = {"success": False}
    assert answer_of(aside, callback, response) is response
    assert "RuntimeError: out of memory" in caplog.text


def test_work_that_nobody_waits_for_is_logged_where_it_fails(aside: Aside, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        raise OSError("no space left")

    aside.run(work)
    aside.close()
    assert "OSError: no space left" in caplog.text


def test_what_fails_because_the_process_ends_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    aside = Aside(SimpleNamespace(executor=None, context=SimpleNamespace(ok=lambda: False)))
    aside.run(lambda: 1 / 0)
    aside.close()
    assert not caplog.text
