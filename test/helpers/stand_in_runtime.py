"""Runtimes whose speed and answers a test decides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from semla_ros.engines.component_engine import Runtime
from semla_ros.engines.components import SCENE_ENCODER
from semla_ros.errors import EngineError
from semla_ros.segmentation.fixed_component import DECODER, FixedComponent


class VirtualClock:
    """A `Measure`: runners book their time on it; a call that books none is torch's and takes 1 ms."""

    def __init__(self) -> None:
        self.booked_ms = 0.0

    def __call__(self, call: Callable[[], object]) -> float:
        before = self.booked_ms
        call()
        return self.booked_ms - before or 1.0


class StandInRunner:
    """Torch's answer with a relative error, in a time of its own."""

    def __init__(self, component: FixedComponent, runtime: str, clock: VirtualClock, ms: float, error: float) -> None:
        self.component, self.runtime, self.clock, self.ms, self.error = component, runtime, clock, ms, error
        self.is_closed = False

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        assert not self.is_closed
        self.clock.booked_ms += self.ms
        answer = self.component.original(*inputs)
        return answer + self.error * answer.flip(-1)

    def close(self) -> None:
        self.is_closed = True


class StandInRuntime(Runtime):
    """A `Runtime`.

    Args:
        name: Of the runtime.
        clock: Of the engine under test.
        ways: Runner's name -> its milliseconds, or None where it cannot be made.
        errors: Runner's name -> its relative error.
        components: What it is tried for.
    """

    def __init__(
        self,
        name: str,
        clock: VirtualClock,
        ways: dict[str, float | None],
        errors: dict[str, float] | None = None,
        components: tuple[str, ...] = (SCENE_ENCODER, DECODER),
    ) -> None:
        self.name, self.clock, self.ways, self.errors, self.components = name, clock, ways, errors or {}, components
        self.made: list[StandInRunner] = []

    def makers(self, component: FixedComponent) -> list[Callable[[], StandInRunner]]:
        return [partial(self._make, component, way) for way in self.ways]

    def _make(self, component: FixedComponent, way: str) -> StandInRunner:
        ms = self.ways[way]
        if ms is None:
            raise EngineError(f"{way} refuses {component.name}")
        self.made.append(StandInRunner(component, way, self.clock, ms, self.errors.get(way, 0.0)))
        return self.made[-1]
