"""Builds one TensorRT plan: the program behind `SubprocessBuilder`.

Its argument is a `BuildRequest` in JSON; it writes progress, and an error if there is one, as one JSON object per line.
It ends when its input ends: then the process that asked is gone, and nobody waits for the plan.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semla_ros.engines.gates import first_line, make_current
from semla_ros.errors import EngineError

_ORPHANED = 3  # exit status
OLDEST, TOO_NEW = (10, 3), (12, 0)  # strong typing from the graph, one interface for both major versions

Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """One plan to build.

    Attributes:
        graph: ONNX file, its types as they shall run.
        destination: The plan is written here.
        profiles: Input name -> smallest, usual and largest shape; inputs of a fixed shape are not named.
        device_index: GPU to build on and for, as CUDA counts them.
    """

    graph: str
    destination: str
    profiles: Mapping[str, Shapes]
    device_index: int = 0


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


def build_plan(request: BuildRequest, report: Callable[[float, str], None], trt: Any) -> None:
    """Build a strongly typed plan from an ONNX graph.

    Args:
        request: What to build.
        report: Gets the share done and the phase.
        trt: The TensorRT module.

    Raises:
        EngineError: The graph or the range of its shapes is refused, or no plan comes out of it.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # Version 10 takes the graph's types as they stand only with this flag; from 11 on there is nothing else.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(request.graph).read_bytes()):
        reasons = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise EngineError(f"TensorRT cannot read the graph: {'; '.join(reasons)[:300] or 'no reason given'}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shapes in request.profiles.items():
        profile.set_shape(name, *map(tuple, shapes))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT refuses the range of shapes {request.profiles}")
    monitor = _progress_monitor(trt, report)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError("TensorRT built no plan; out of memory or an operator without implementation on this GPU")
    Path(request.destination).write_bytes(memoryview(plan))


def _progress_monitor(trt: Any, report: Callable[[float, str], None]) -> Any:
    """Share of the outermost phase that is done."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost: dict[str, int] = {}  # phase -> steps; TensorRT calls from several threads

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outermost[phase_name] = max(1, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self._outermost.get(phase_name)
            if steps is not None:
                report(min(1.0, (step + 1) / steps), phase_name)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
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
    """Build what the argument asks for; exit status 1 where that fails."""

    def tell(**values: object) -> None:
        print(json.dumps(values), flush=True)

    try:
        end_with_input(sys.stdin.fileno())
        request = BuildRequest(**json.loads(sys.argv[1]))
        trt = load_tensorrt()
        make_current(request.device_index)  # a plan is made for the GPU that is current when the builder is
        build_plan(request, lambda share, phase: tell(progress=share, phase=phase), trt)
    except Exception as error:
        tell(error=str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {first_line(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
