"""Plans are built in a process of their own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from semla_ros.engines.component_engine import Report
from semla_ros.engines.tensorrt.builder import BuildRequest
from semla_ros.errors import EngineError


class SubprocessBuilder:
    """Builds in a process of its own.

    A build needs memory that a small device may not have and minutes of GPU and CPU time, and must not disturb a CUDA
    graph that is being captured: in its own process it can fail, or be ended, without the node.

    Args:
        command: The program; it is given a request in JSON and writes one JSON object per line. It has to end when its
            input does, as that of a parent that dies.
        grace_s: From asking the program to end until it is killed.
    """

    def __init__(
        self,
        command: Sequence[str] = (sys.executable, "-m", "semla_ros.engines.tensorrt.builder"),
        *,
        grace_s: float = 5.0,
    ) -> None:
        self._command = list(command)
        self._grace_s = grace_s
        self._lock = threading.Lock()  # `stop` sees a process that is starting, or the start sees the stop
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def build(self, request: BuildRequest, report: Report) -> None:
        """Write the plan that is asked for.

        Raises:
            EngineError: It could not be built, or the builder was stopped; one line says why.
        """
        process = self._start(request)
        with process:
            try:
                failure, last_line = _follow(process, report)
                status = process.wait()
            except BaseException:
                process.kill()
                raise
            finally:
                self._process = None
        if failure or status:
            raise EngineError(failure or f"the builder ended with status {status} ({last_line or 'it said nothing'})")

    def stop(self) -> None:
        """End the build in progress, from another thread; builds that are asked for later are refused.

        Returns when the process has ended.
        """
        with self._lock:
            self._is_stopped = True
            process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(self._grace_s)
        except subprocess.TimeoutExpired:  # it hangs in a driver, or holds the signal back
            process.kill()

    def _start(self, request: BuildRequest) -> subprocess.Popen[str]:
        command, pipe = [*self._command, json.dumps(dataclasses.asdict(request))], subprocess.PIPE
        with self._lock:
            if self._is_stopped:
                raise EngineError("the builder was stopped")
            try:
                self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
            except OSError as error:
                raise EngineError(f"the builder cannot be started ({error})") from None
            return self._process


def _follow(process: subprocess.Popen[str], report: Report) -> tuple[str, str]:
    """Pass progress on until the program ends; the failure that it tells, and the last line that is no message."""
    assert process.stdout is not None
    failure = last_line = ""
    for line in process.stdout:
        message = _message(line)
        if "progress" in message:
            report(float(message["progress"]), str(message.get("phase", "")))
        failure = str(message.get("error", failure))
        if not message:
            last_line = line.strip() or last_line
    return failure, last_line


def _message(line: str) -> dict[str, Any]:
    """One line of the builder; what is not a JSON object is something a library printed."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
