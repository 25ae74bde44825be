"""The torch engine with fixed components in the fastest of several runtimes, each only after it passed its gates.

For each component every runtime makes its runners, one by one; the gates choose.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

from torch import Tensor

from semla_ros.engines.base import AGREEMENT, EngineOutput, Stage, agreement
from semla_ros.engines.components import SCENE_ENCODER
from semla_ros.engines.gates import Measure, Verdict, judge, one_run_ms
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.errors import first_line
from semla_ros.results import ImageArray, MaskArray
from semla_ros.segmentation.fixed_component import DECODER, FixedComponent, Forward

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


Maker = Callable[[], Runner | None]  # raises `SemlaError` where its runner cannot be had; None: it is to come later


class Runtime:
    """Makes runners. What stands here is that of a runtime that needs no files and builds nothing.

    Attributes:
        name: "onnx", "openvino", "tensorrt" or "torch".
        components: Names of those that are worth a try.
        state: What is being built, for people; empty where nothing is.
    """

    name: str
    components: tuple[str, ...] = (SCENE_ENCODER,)
    state: str = ""

    @property
    def notes(self) -> Sequence[str]:
        """What is not as it should be at the moment."""
        return ()

    def makers(self, component: FixedComponent) -> Sequence[Maker]:
        """One for each way to run a component of `components`. Called, as its makers, while that is not mounted."""
        raise NotImplementedError

    def is_built(self, component: FixedComponent) -> bool:  # noqa: ARG002
        """Whether its makers find what they need on disk."""
        return True

    def build(self, component: FixedComponent) -> None:
        """Put on disk what its makers need, unless that is there.

        Raises:
            SemlaError: It cannot be had.
        """

    def start(self) -> None:
        """Begin to build, beside the frames, what makers found missing."""

    def arrivals(self) -> Sequence[tuple[FixedComponent, Maker]]:
        """What has been built since the last call."""
        return ()

    def close(self) -> None:
        """End what goes on beside the frames."""


class ComponentEngine:
    """Serves each fixed component in the fastest runtime that gives torch's answer; an `Engine`.

    Args:
        torch_engine: Serves everything that no runner has taken over.
        components: May be taken over; none of them mounted.
        runtimes: What is tried.
        probe_images: What masks are compared on, uint8 RGB.
        measure: Times a call; for tests.

    Attributes:
        comparisons: What the gates said of every runner.
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
        self.comparisons: list[Verdict] = []
        self._torch = torch_engine
        self._components, self._runtimes = list(components), list(runtimes)
        self._probe_images = list(probe_images)
        self._measure = measure
        self._own_notes: list[str] = []
        self._serving: dict[str, tuple[Verdict, ExitStack]] = {}  # closing it gives the component back to torch
        self._passed: list[tuple[FixedComponent, Runner, Verdict]] = []  # alone; whole frames come next
        self._is_settled = False

    @property
    def name(self) -> str:
        """What serves, as shown in diagnostics: "openvino bf16 (scene_encoder)"; "torch" alone; what is being built."""
        by_runtime: dict[str, list[str]] = defaultdict(list)
        for name, verdict in self.serving.items():
            by_runtime[verdict.runtime].append(name)
        served = (
            ", ".join(f"{runtime} ({', '.join(names)})" for runtime, names in sorted(by_runtime.items())) or "torch"
        )
        return "; ".join([served, *(f"{runtime.name}: {runtime.state}" for runtime in self._runtimes if runtime.state)])

    @property
    def serving(self) -> dict[str, Verdict]:
        """Components that another runtime serves, and what the gates said of it."""
        return {name: verdict for name, (verdict, _) in sorted(self._serving.copy().items())}

    @property
    def notes(self) -> list[str]:
        """What was asked for and could not be had, with the reason; also of the torch engine behind it."""
        return [*self._torch.notes, *self._own_notes, *(note for runtime in self._runtimes for note in runtime.notes)]

    @property
    def precision(self) -> str:
        """Of what torch runs; the name tells those of other runtimes."""
        return self._torch.precision

    @property
    def stage(self) -> Stage | None:
        """See `Engine.stage`."""
        return self._torch.stage

    def segment(self, image: ImageArray, want_confidence: bool = True) -> EngineOutput:
        """Segment one image, see `segment_batch`."""
        (answer,) = self.segment_batch([image], want_confidence)
        return answer

    def segment_batch(self, images: Sequence[ImageArray], want_confidence: bool = True) -> list[EngineOutput]:
        """Segment images, after a decoder that passed alone has been tried in whole frames.

        A runner that fails gives its component back to torch for good. See `Engine.segment_batch`.
        """
        while self._passed:
            component, runner, verdict = self._passed.pop()
            with self._torch.entered("engine check"), self._survived(component.name):
                self._serve(component, runner, verdict)
        answers = self._torch.segment_batch(images, want_confidence)
        if DECODER in self._serving and not self._torch.has_runners:
            self._give_back_to_torch(DECODER)
        return answers

    def catch_up(self) -> None:
        """Load and judge what was built since the last call, see `Engine.catch_up`."""
        arrived = [(runtime.name, *arrival) for runtime in self._runtimes for arrival in runtime.arrivals()]
        for runtime, component, make in arrived:
            with self._torch.entered("engine check"), self._survived(component.name):
                best = self._fastest(component, [(runtime, make)])
                if best is None:
                    continue
                if component.name == DECODER:
                    self._passed.append((component, *best))
                else:
                    self._serve(component, *best)

    def set_text(self, text_features: Tensor) -> None:
        """Take over class embeddings, see `Engine.set_text`."""
        self._torch.set_text(text_features)

    def warm_up(self) -> None:
        """Warm torch up, then let each component be served where that is as right and fastest.

        The first time on a machine this may export the components, which takes seconds each. Plans that have to be
        built follow in the background.
        """
        self._torch.warm_up()
        if self._is_settled:
            return
        self._is_settled = True
        for component in self._components:
            tried = [runtime for runtime in self._runtimes if component.name in runtime.components]
            self._settle(component, ((runtime.name, make) for runtime in tried for make in runtime.makers(component)))
        for runtime in self._runtimes:
            with self._survived(runtime.name):
                runtime.start()

    def release(self) -> None:
        """Give the components back to torch, which goes on, and release the runners."""
        while self._passed:
            self._passed.pop()[1].close()
        for name in list(self._serving):
            self._give_back_to_torch(name)

    def close(self) -> None:
        """End builds in progress, release the runners and close torch."""
        for runtime in self._runtimes:
            runtime.close()
        self.release()
        self._torch.close()

    def _settle(self, component: FixedComponent, makers: Iterable[tuple[str, Maker]]) -> None:
        """Let the fastest runner that passes every gate serve a component that torch serves."""
        with self._survived(component.name):
            if best := self._fastest(component, makers):
                self._serve(component, *best)

    def _fastest(self, component: FixedComponent, makers: Iterable[tuple[str, Maker]]) -> tuple[Runner, Verdict] | None:
        """The fastest runner that gives torch's answer, sooner; where there is none, notes tell why. Others are closed.

        Runners are drawn one after the other, so that no more than two exist at once.
        """
        best: tuple[Runner, Verdict] | None = None
        refused: list[tuple[str, str]] = []  # runtimes and reasons
        for runtime, make in makers:
            try:
                runner = make()
            except Exception as error:  # see `_survived`
                refused.append((runtime, first_line(error)))
                continue
            if runner is None:
                continue
            # The scene encoder serves in fp32 where no runner does.
            serving = self._torch.in_precision if component.name == DECODER else contextlib.nullcontext
            verdict = judge(component, runner, measure=self._measure, serving=serving)
            verdict = dataclasses.replace(verdict, runtime=runner.runtime)
            self.comparisons.append(verdict)
            if not verdict.passed:
                refused.append((runner.runtime, verdict.reason))
            if not verdict.passed or (best is not None and best[1].time_ratio <= verdict.time_ratio):
                runner.close()
                continue
            logger.info("engine %s: %s", runner.runtime, verdict.reason)
            if best is not None:
                best[0].close()
            best = runner, verdict
        if best is not None:
            return best
        are_several = len({runtime for runtime, _ in refused}) > 1
        for runtime, reason in refused:
            self._refuse(f"{runtime}: {reason}" if are_several else reason)
        return None

    def _serve(self, component: FixedComponent, runner: Runner, verdict: Verdict) -> None:
        """Mount a runner, and give back to torch what fails or slows down whole frames."""
        takes_part_in_masks = component.name == DECODER
        expected = self._masks() if takes_part_in_masks else []
        before_ms = self._frame_ms() if takes_part_in_masks else 0.0
        stack = ExitStack()
        stack.callback(runner.close)
        stack.enter_context(component.mount(self._watched(component, runner)))
        self._serving[component.name] = verdict, stack
        if not takes_part_in_masks:
            return
        self._torch.has_runners = True
        if problem := self._frame_problem(expected, before_ms):
            self._give_back_to_torch(component.name)
            self._refuse(f"{component.name}: {problem}")

    def _watched(self, component: FixedComponent, runner: Runner) -> Forward:
        """A runner that torch replaces where it fails.

        Within a forward pass torch's engine sees to that: nobody can look into a captured graph.
        """

        def decode(*inputs: Tensor) -> Tensor:
            return (runner if self._torch.has_runners else component.original)(*inputs)

        def encode(*inputs: Tensor) -> Tensor:
            try:
                output, reason = runner(*inputs), "its values are not finite"
                if bool(output.isfinite().all()):
                    return output
            except Exception as error:  # see `_survived`
                output, reason = None, first_line(error)
            answer = component.original(*inputs)
            if output is not None and not bool(answer.isfinite().all()):
                return answer  # so are torch's: it is not the runner's fault
            self._give_back_to_torch(component.name)
            self._refuse(f"{component.name}: {runner.runtime} failed: {reason}")
            return answer

        return decode if component.name == DECODER else encode

    def _frame_problem(self, expected: list[MaskArray], before_ms: float) -> str:
        try:
            share = agreement(self._masks(), expected)
            engine_ms = self._frame_ms()
        except Exception as error:  # see `_survived`
            return f"a whole frame fails ({first_line(error)})"
        if share < AGREEMENT:
            return f"masks agree with torch on {share:.2%} of the probe pixels, below {AGREEMENT:.1%}"
        if engine_ms > _NOISE_RATIO * before_ms:
            return f"a whole frame takes {engine_ms:.1f} ms, {before_ms:.1f} ms without"
        return ""

    def _give_back_to_torch(self, name: str) -> None:
        _, stack = self._serving.pop(name, (None, contextlib.nullcontext()))
        with contextlib.suppress(Exception), stack:  # closing a runner that is broken may fail, too
            pass
        if name == DECODER:
            self._torch.has_runners = False

    @contextlib.contextmanager
    def _survived(self, name: str) -> Iterator[None]:
        """A runtime can fail in any way, and torch always works."""
        try:
            yield
        except Exception as error:
            self._refuse(f"{name}: {first_line(error)}")

    def _refuse(self, reason: str) -> None:
        """Tell why torch goes on with something."""
        self._own_notes.append(reason)
        logger.warning("engine: torch goes on: %s", reason)

    def _masks(self) -> list[MaskArray]:
        """Masks of the probe images."""
        return [self._torch.attempt([image], want_confidence=False)[0].mask for image in self._probe_images]

    def _frame_ms(self) -> float:
        """The shortest frame in milliseconds, once what serves has run untimed."""
        first = self._probe_images[:1]
        self._torch.attempt(first, want_confidence=False)
        runs: list[float] = []
        while len(runs) < _FEWEST_RUNS or (len(runs) < _MOST_RUNS and sum(runs) < _ENOUGH_MS):
            runs.append(self._measure(lambda: self._torch.attempt(first, want_confidence=False)))
        return min(runs)
