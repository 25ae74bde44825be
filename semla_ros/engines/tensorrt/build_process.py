"""Plans are built in a process of their own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Sequence

from semla_ros.engines.tensorrt.builder import FAILED, BuildRequest
from semla_ros.errors import EngineError


class SubprocessBuilder:
    """Builds in a process of its own.

    A build needs memory that a small device may not have and minutes of GPU and CPU time, and must not disturb a CUDA
    graph that is being captured: in its own process it can fail, or be ended, without the node.

    Args:
        command: The program; it is given a request in JSON, and its last line tells why it failed. It has to end when
            its input does, as that of a parent that dies.
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

    def build(self, request: BuildRequest) -> None:
        """Write the plan that is asked for.

        Raises:
            EngineError: It could not be built, or the builder was stopped; one line says why.
        """
        process = self._start(request)
        with process:
            try:
                assert process.stdout is not None
                last_line = "it said nothing"
                for line in process.stdout:  # its input stays open meanwhile
                    last_line = line.strip() or last_line
                status = process.wait()
            except BaseException:
                process.kill()
                raise
            finally:
                self._process = None
        if status:
            raise EngineError(
                last_line if status == FAILED else f"the builder ended with status {status} ({last_line})"
            )

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
