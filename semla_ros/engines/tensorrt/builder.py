"""Builds one TensorRT plan: the program behind `SubprocessBuilder`.

Its argument is a `BuildRequest` in JSON; its last line tells why there is no plan, where there is none. It ends when
its input ends: then the process that asked is gone, and nobody waits for the plan.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semla_ros.engines.gates import make_current
from semla_ros.errors import EngineError, first_line

FAILED, ORPHANED = 1, 3  # exit statuses: there is no plan and the last line tells why; nobody waits for it
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


def build_plan(request: BuildRequest, trt: Any, workspace_bytes: int) -> None:
    """Build a strongly typed plan from an ONNX graph.

    Args:
        request: What to build.
        trt: The TensorRT module.
        workspace_bytes: GPU memory that a layer may use beside its inputs and outputs, while building and in the plan.

    Raises:
        EngineError: The graph or the range of its shapes is refused, or no plan comes out of it.
    """
    reasons: list[str] = []
    logger = _logger(trt, reasons)
    builder = trt.Builder(logger)
    # Version 10 takes the graph's types as they stand only with this flag; 11 knows nothing else, and takes the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(request.graph).read_bytes()):
        told = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise EngineError(f"TensorRT cannot read the graph: {'; '.join(told)[:300] or 'no reason given'}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    profile = builder.create_optimization_profile()
    for name, shapes in request.profiles.items():
        profile.set_shape(name, *map(tuple, shapes))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT refuses the range of shapes {request.profiles}: {_first(reasons)}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT built no plan: {_first(reasons)}")
    Path(request.destination).write_bytes(memoryview(plan))


def _logger(trt: Any, reasons: list[str]) -> Any:
    """A logger that also collects errors: what refuses a graph returns no more than that it does."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # as its bindings want it

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                reasons.append(message)
                print(message, file=sys.stderr)

    return Logger()


def _first(reasons: Sequence[str]) -> str:
    return reasons[0].strip()[:300] if reasons else "no reason given"


def end_with_input(descriptor: int) -> None:
    """End this process, whatever it is doing, as soon as the pipe of that descriptor ends."""

    def watch() -> None:
        while os.read(descriptor, 4096):
            pass
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="semla-orphan-watch", daemon=True).start()


def _half_of_free_memory(device_index: int) -> int:
    """The other half is for the node, which serves beside the build and shares the memory with it."""
    return torch.cuda.mem_get_info(device_index)[0] // 2


def main() -> int:
    """Build what the argument asks for; exit status 1 where that fails, with the reason in the last line."""
    try:
        end_with_input(sys.stdin.fileno())
        request = BuildRequest(**json.loads(sys.argv[1]))
        trt = load_tensorrt()
        make_current(request.device_index)  # a plan is made for the GPU that is current when the builder is
        build_plan(request, trt, workspace_bytes=_half_of_free_memory(request.device_index))
    except Exception as error:
        print(error if isinstance(error, EngineError) else f"{type(error).__name__}: {first_line(error)}", flush=True)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
