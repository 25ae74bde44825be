"""The torch engine with fixed components that another runtime has taken over, each only after it passed its gates.

For each component every runtime makes its runners, one by one; the gates choose.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from semla_ros.engines.base import EngineOutput
from semla_ros.engines.components import FixedComponent
from semla_ros.engines.gates import AGREEMENT, Measure, Verdict, agreement, judge, one_run_ms
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.errors import SemlaError
from semla_ros.results import ImageArray, MaskArray

logger = logging.getLogger(__name__)

_FEWEST_RUNS, _MOST_RUNS, _ENOUGH_MS = 3, 15, 1000.0  # of whole frames, until the shortest is trusted
_NOISE_RATIO = 1.05  # a whole frame may not take longer than this times torch's


class Runner(Protocol):
    """One component in another runtime. Not thread-safe; each component has one caller.

    Attributes:
        runtime: What runs it, as shown in diagnostics: "onnx", "openvino bf16".
    """

    runtime: str

    def __call__(self, *inputs: Tensor) -> Tensor:
        """fp32 inputs to fp32 output, on the inputs' device."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


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


@dataclass(kw_only=True, eq=False)
class Serving:
    """A component that another runtime serves.

    Attributes:
        component: What is served.
        runner: Who serves it.
        mounted: Closing it gives the component back to torch.
    """

    component: FixedComponent
    runner: Runner
    mounted: ExitStack


class ComponentEngine:
    """What `FastestEngine` and `TensorRtEngine` share; an `Engine`.

    Args:
        torch_engine: Serves everything that no runner has taken over.
        components: May be taken over; none of them mounted.
        runtime: "onnx" or "tensorrt", for messages.
        probe_images: What masks are compared on, uint8 RGB.
        measure: Times a call; for tests.

    Attributes:
        notes: What was asked for and could not be had, with the reason.
        verdicts: What the gates said, by component: of the runner that serves, else of the last one that was refused.
        comparisons: What the gates said of every runner.
    """

    def __init__(
        self,
        torch_engine: TorchEngine,
        components: Sequence[FixedComponent],
        *,
        runtime: str,
        probe_images: Sequence[ImageArray],
        measure: Measure = one_run_ms,
    ) -> None:
        self.components = list(components)
        self.verdicts: dict[str, Verdict] = {}
        self.comparisons: list[Verdict] = []
        self._torch = torch_engine
        self._runtime = runtime
        self._probe_images = list(probe_images)
        self._measure = measure
        self._own_notes: list[str] = []
        self._declined: dict[str, list[tuple[str, str]]] = defaultdict(list)  # component -> runtimes and reasons
        self._serving: dict[str, Serving] = {}

    @property
    def name(self) -> str:
        """What serves, as shown in diagnostics: "onnx (guidance_2), openvino bf16 (scene_encoder)"; "torch" alone."""
        by_runtime: dict[str, list[str]] = defaultdict(list)
        for name, item in sorted(self._serving.items()):
            by_runtime[item.runner.runtime].append(name)
        return ", ".join(f"{runtime} ({', '.join(names)})" for runtime, names in sorted(by_runtime.items())) or "torch"

    @property
    def serving(self) -> tuple[str, ...]:
        """Components that the other runtime serves."""
        return tuple(sorted(self._serving))

    @property
    def notes(self) -> list[str]:
        """Of this engine and of the torch engine behind it."""
        return [*self._torch.notes, *self._own_notes]

    def segment(self, image: ImageArray, want_confidence: bool = True) -> EngineOutput:
        """Segment one image, see `Engine.segment`."""
        return self._torch.segment(image, want_confidence)

    def segment_batch(self, images: Sequence[ImageArray], want_confidence: bool = True) -> list[EngineOutput]:
        """Segment the images of several cameras, see `Engine.segment_batch`."""
        return self._torch.segment_batch(images, want_confidence)

    def set_text(self, text_features: Tensor) -> None:
        """Take over class embeddings, see `Engine.set_text`."""
        self._torch.set_text(text_features)

    def warm_up(self) -> None:
        """Warm torch up; subclasses then bring in their runners."""
        self._torch.warm_up()

    def release(self) -> None:
        """Give the components back to torch, which goes on, and release the runners."""
        self._give_back_to_torch(list(self._serving))

    def close(self) -> None:
        """Release the runners and close torch."""
        self.release()
        self._torch.close()

    # For subclasses

    def take_over(self, candidates: Iterable[tuple[FixedComponent, Runner]]) -> tuple[str, ...]:
        """Put those runners into service that pass every gate; close the others.

        Answers are compared with those of torch alone, whatever serves already, so that small differences do not add
        up from plan to plan; the time of a frame is compared with what serves already. Of several runners for one
        component the fastest serves.

        Must not be called while a frame is being segmented.

        Returns:
            Names of the components now served by the runners.
        """
        with self._torch_alone():
            accepted = self._fastest(candidates)
            in_masks = [component.name for component, _ in accepted if component.takes_part_in_masks]
            expected = self._masks() if in_masks else []
        before_ms = self._frame_ms() if in_masks else 0.0
        for component, runner in accepted:
            self._mount(component, runner)
        if in_masks:
            self._judge_masks(in_masks, expected, before_ms)
        return tuple(component.name for component, _ in accepted if component.name in self._serving)

    @contextmanager
    def _torch_alone(self) -> Iterator[None]:
        """Torch computes the masks by itself: a reference that no engine in service has had a part in."""
        lent = [item for item in self._serving.values() if item.component.takes_part_in_masks]
        if not lent:
            yield
            return
        for item in lent:
            item.mounted.close()
        self._torch.forget_graph()
        try:
            yield
        finally:
            for item in lent:
                item.mounted = item.component.mount(item.runner)
            self._torch.forget_graph()

    def refuse(self, reason: str) -> None:
        """Tell why torch goes on with something."""
        self._own_notes.append(reason)
        logger.warning("engine %s: torch goes on: %s", self._runtime, reason)

    def decline(self, component: str, runtime: str, reason: str) -> None:
        """Tell why a runtime does not serve a component; a note where none of the others does."""
        self._declined[component].append((runtime, reason))

    def _fastest(self, candidates: Iterable[tuple[FixedComponent, Runner]]) -> list[tuple[FixedComponent, Runner]]:
        """Of each component's runners the fastest that passes alone; the others are closed.

        Runners are drawn one after the other, so that no more than two of a component exist at once.
        """
        best: dict[str, tuple[FixedComponent, Runner]] = {}
        for component, runner in candidates:
            name, runtime = component.name, runner.runtime
            verdict = dataclasses.replace(judge(component, runner, measure=self._measure), runtime=runtime)
            self.comparisons.append(verdict)
            if not verdict.passed:
                self.decline(name, runtime, verdict.reason)
                runner.close()
                if name not in best:
                    self.verdicts[name] = verdict
                continue
            logger.info("engine %s: %s", runtime, verdict.reason)
            if name in best and self.verdicts[name].time_ratio <= verdict.time_ratio:
                runner.close()
                continue
            if name in best:
                best[name][1].close()
            best[name], self.verdicts[name] = (component, runner), verdict
        self._note_declined(best)
        return list(best.values())

    def _note_declined(self, accepted: Iterable[str]) -> None:
        served = set(accepted)
        for reasons in (reasons for name, reasons in self._declined.items() if name not in served):
            are_several = len({runtime for runtime, _ in reasons}) > 1
            for runtime, reason in reasons:
                self.refuse(f"{runtime}: {reason}" if are_several else reason)
        self._declined.clear()

    def _mount(self, component: FixedComponent, runner: Runner) -> None:
        self._serving[component.name] = Serving(component=component, runner=runner, mounted=component.mount(runner))
        if component.takes_part_in_masks:
            self._torch.forget_graph()

    def _give_back_to_torch(self, names: Sequence[str]) -> None:
        for name in names:
            item = self._serving.pop(name)
            item.mounted.close()
            item.runner.close()
        if names:
            self._torch.forget_graph()

    def _judge_masks(self, names: list[str], expected: list[MaskArray], before_ms: float) -> None:
        """The components together, in whole frames: back to torch with all of them where they fail."""
        try:
            share = agreement(self._masks(), expected)
            engine_ms = self._frame_ms()
        except Exception as error:  # a runtime can fail in any way, and torch always works
            reason = f"a whole frame fails ({error})"
        else:
            if share < AGREEMENT:
                reason = f"masks agree with torch on {share:.2%} of the probe pixels, below {AGREEMENT:.1%}"
            elif engine_ms > _NOISE_RATIO * before_ms:
                reason = f"a whole frame takes {engine_ms:.1f} ms, {before_ms:.1f} ms without"
            else:
                return
        self._give_back_to_torch(names)
        self.refuse(f"{', '.join(names)}: {reason}")

    def _masks(self) -> list[MaskArray]:
        """Masks of the probe images."""
        return [self._torch.segment(image, want_confidence=False).mask for image in self._probe_images]

    def _frame_ms(self) -> float:
        """The shortest frame in milliseconds, once what serves has run untimed."""
        first = self._probe_images[0]
        self._torch.segment(first, want_confidence=False)
        runs: list[float] = []
        while len(runs) < _FEWEST_RUNS or (len(runs) < _MOST_RUNS and sum(runs) < _ENOUGH_MS):
            runs.append(self._measure(lambda: self._torch.segment(first, want_confidence=False)))
        return min(runs)


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
