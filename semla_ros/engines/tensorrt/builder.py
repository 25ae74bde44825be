"""Builds one TensorRT plan: the program behind `SubprocessBuilder`.

Reads a request, one line, on its input; writes progress, and an error if there is one, as one JSON object per line.
Ends when its input ends: then the process that asked is gone, and nobody waits for the plan.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from typing import Any

from semla_ros.engines.cache import replace_bytes
from semla_ros.engines.gates import first_line, make_current
from semla_ros.engines.tensorrt.build import BuildRequest, Report
from semla_ros.errors import EngineError

_ORPHANED = 3  # exit status
OLDEST, TOO_NEW = (10, 3), (12, 0)  # strong typing from the graph, one interface for both major versions


def load_tensorrt() -> Any:
    """The TensorRT module, of a version that this package is written for.

    Raises:
        EngineError: It is not installed, or of another version.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise EngineError(
            f"engine tensorrt needs TensorRT 10.3 to 11 ({first_line(error)}): it comes with JetPack 6.1 or later, "
            "elsewhere 'pip install tensorrt'; or choose engine torch or onnx"
        ) from None
    check_version(str(tensorrt.__version__))
    return tensorrt


def check_version(version: str) -> None:
    """Refuse versions outside 10.3 to 11.

    Raises:
        EngineError: Says which came.
    """
    numbers = tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])
    if not OLDEST <= numbers < TOO_NEW:
        raise EngineError(f"engine tensorrt needs TensorRT 10.3 to 11, found {version}; choose engine torch or onnx")


def build_plan(request: BuildRequest, report: Report, trt: Any = None) -> None:
    """Build a strongly typed plan from an ONNX graph.

    Args:
        request: What to build.
        report: Gets the share done and the phase.
        trt: The TensorRT module, for tests; None = the installed one.

    Raises:
        EngineError: The graph or the range of its shapes is refused, or no plan comes out of it.
    """
    trt = trt or load_tensorrt()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # Version 10 takes the graph's types as they stand only with this flag; from 11 on there is nothing else.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(request.graph.read_bytes()):
        reasons = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise EngineError(f"TensorRT cannot read the graph: {'; '.join(reasons)[:300] or 'no reason given'}")
    config = builder.create_builder_config()
    if request.profiles:
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in request.profiles.items():
            profile.set_shape(name, smallest, usual, largest)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT refuses the range of shapes {request.profiles}")
    timing = _attach_timing_cache(config, request)
    monitor = _progress_monitor(trt, report)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError("TensorRT built no plan; out of memory or an operator without implementation on this GPU")
    request.destination.write_bytes(memoryview(plan))
    if timing is not None:
        with contextlib.suppress(OSError):  # a lost timing cache costs the next build time, nothing else
            replace_bytes(request.timing_cache, bytes(memoryview(timing.serialize())))


def _attach_timing_cache(config: Any, request: BuildRequest) -> Any:
    """The timing cache of earlier builds, or an empty one where that is missing or not of this version."""
    earlier = request.timing_cache.read_bytes() if request.timing_cache.is_file() else b""
    for content in (earlier, b""):
        timing = config.create_timing_cache(content)
        if timing is not None and config.set_timing_cache(timing, ignore_mismatch=False):
            return timing
    return None


def _progress_monitor(trt: Any, report: Report) -> Any:
    """Share of the outermost phase that is done."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()  # TensorRT calls from several threads
            self._outermost: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                if parent_phase is None:
                    self._outermost[phase_name] = max(1, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                steps = self._outermost.get(phase_name)
            if steps is not None:
                report(min(1.0, (step + 1) / steps), phase_name)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._outermost.pop(phase_name, None)

    return Monitor()


def end_with_input(descriptor: int) -> None:
    """End this process, whatever it is doing, as soon as the pipe of that descriptor ends."""

    def watch() -> None:
        while os.read(descriptor, 4096):
            pass
        os._exit(_ORPHANED)

    threading.Thread(target=watch, name="semla-orphan-watch", daemon=True).start()


def main() -> int:
    """Build what is asked for on the standard input; exit status 1 where that fails."""

    def tell(**values: object) -> None:
        print(json.dumps(values), flush=True)

    try:
        request = BuildRequest.from_json(sys.stdin.readline())
        end_with_input(sys.stdin.fileno())
        trt = load_tensorrt()
        make_current(request.device_index)  # a plan is made for the GPU that is current when the builder is
        build_plan(request, lambda share, phase: tell(progress=share, phase=phase), trt)
    except Exception as error:
        tell(error=str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {first_line(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
