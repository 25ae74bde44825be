"""The torch engine with fixed components in whichever of several runtimes is fastest.

For each component every runtime makes its runners, one by one; the gates choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from semla_ros.engines.component_engine import ComponentEngine, Runner
from semla_ros.engines.components import FixedComponent
from semla_ros.engines.gates import Measure, one_run_ms
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.errors import SemlaError
from semla_ros.results import ImageArray


class Runtime(Protocol):
    """Makes runners.

    Attributes:
        name: "onnx", "openvino" or "torch".
    """

    name: str

    def makers(self, component: FixedComponent) -> Sequence[Callable[[], Runner]]:
        """One for each way to run the component that is worth a try; none where it is not tried.

        A maker is called while nothing is mounted, and raises `SemlaError` where its runner cannot be had.
        """
        ...


class FastestEngine(ComponentEngine):
    """Serves each component in the fastest runtime that gives torch's answer.

    Args:
        torch_engine: Serves everything that no runner has taken over.
        components: See `fixed_components`.
        runtimes: What is tried.
        probe_images: What masks are compared on, uint8 RGB.
        measure: Times a call; for tests.
    """

    def __init__(
        self,
        torch_engine: TorchEngine,
        components: Sequence[FixedComponent],
        runtimes: Sequence[Runtime],
        *,
        probe_images: Sequence[ImageArray],
        measure: Measure = one_run_ms,
    ) -> None:
        names = " or ".join(runtime.name for runtime in runtimes)
        super().__init__(torch_engine, components, runtime=names, probe_images=probe_images, measure=measure)
        self._runtimes = list(runtimes)
        self._is_settled = False

    def warm_up(self) -> None:
        """Warm torch up, then let each component be served where that is as right and fastest.

        The first time on a machine this exports the components, which takes seconds each.
        """
        super().warm_up()
        if self._is_settled:
            return
        self._is_settled = True
        self.take_over(self._candidates())

    def _candidates(self) -> Iterator[tuple[FixedComponent, Runner]]:
        for component in self.components:
            for runtime in self._runtimes:
                for make in runtime.makers(component):
                    try:
                        runner = make()
                    except SemlaError as error:
                        self.decline(component.name, runtime.name, str(error))
                    else:
                        yield component, runner
