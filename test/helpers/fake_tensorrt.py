"""Stand-ins for TensorRT: a toolkit whose plans are names, and a module with the calls that the package makes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from semla_ros.engines.tensorrt.builder import BuildRequest
from semla_ros.errors import EngineError


def component_of(request: BuildRequest) -> str:
    """What a plan is asked for."""
    return Path(request.destination).name.lstrip(".").split("-")[0]


class FakeBuilder:
    """Writes a plan that holds the component's name; may wait, fail, or write nothing."""

    def __init__(self) -> None:
        self.requests: list[BuildRequest] = []
        self.failing: dict[str, str] = {}  # component -> reason
        self.gate: threading.Event | None = None
        self.was_stopped = False

    def build(self, request: BuildRequest) -> None:
        name = component_of(request)
        self.requests.append(request)
        if self.gate is not None:
            assert self.gate.wait(20)
        if self.was_stopped:
            raise EngineError("ended")
        if name in self.failing:
            raise EngineError(self.failing[name])
        Path(request.destination).write_text(name)

    def stop(self) -> None:
        self.was_stopped = True
        if self.gate is not None:
            self.gate.set()


class FakeRunner:
    """Answers as torch does, or as `answer` changes it."""

    runtime = "tensorrt"

    def __init__(self, original: Callable[..., torch.Tensor], toolkit: FakeToolkit, name: str) -> None:
        self.original, self.toolkit, self.name = original, toolkit, name
        self.calls = 0
        self.is_closed = False

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        assert not self.is_closed
        self.calls += 1
        return self.toolkit.answer(self.name, self.original(*inputs))

    def close(self) -> None:
        self.is_closed = True


class FakeToolkit:
    """A toolkit for given components."""

    def __init__(self, components, version: str = "10.3.0") -> None:
        self.version, self.device = version, "Orin sm_87"
        self.device_index = 0
        self.builder = FakeBuilder()
        self.originals = {component.name: component.original for component in components}
        self.answer = lambda name, output: output
        self.refused: dict[str, Exception] = {}  # component -> what its next load raises
        self.refused_always: dict[str, Exception] = {}  # component -> what each of its loads raises
        self.runners: dict[str, FakeRunner] = {}

    def load(self, path, input_names) -> FakeRunner:
        name = path.read_text()
        if name in self.refused_always:
            raise self.refused_always[name]
        if name in self.refused:
            raise self.refused.pop(name)
        self.runners[name] = FakeRunner(self.originals[name], self, name)
        return self.runners[name]


def fake_module(**behaviour):
    """The part of the TensorRT module that is used, with a record of what was called.

    Args:
        behaviour: `version`; `parses`; `plan` (bytes or None); `takes_profile`.
    """
    settings = {
        "version": "10.3.0",
        "parses": True,
        "plan": b"plan",
        "takes_profile": True,
        **behaviour,
    }
    log: list[tuple] = []

    class Profile:
        def set_shape(self, *shapes):
            log.append(("set_shape", *shapes))

    class Config:
        def set_memory_pool_limit(self, pool, size):
            log.append(("set_memory_pool_limit", pool, size))

        def add_optimization_profile(self, profile):
            log.append(("add_optimization_profile",))
            return 0 if settings["takes_profile"] else -1

    class Builder:
        def __init__(self, logger):
            pass

        def create_network(self, flags):
            log.append(("create_network", flags))
            return "network"

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            return settings["plan"]

    class Parser:
        num_errors = 1

        def __init__(self, network, logger):
            assert network == "network"

        def parse(self, content):
            log.append(("parse", content))
            return settings["parses"]

        def get_error(self, index):
            return SimpleNamespace(desc=lambda: "operator Foo is not known")

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    return SimpleNamespace(
        __version__=settings["version"],
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        ILogger=ILogger,
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        Builder=Builder,
        OnnxParser=Parser,
        log=log,
    )
