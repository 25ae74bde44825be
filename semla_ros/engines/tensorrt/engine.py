"""Fixed components as TensorRT plans, built in the background while torch serves.

A plan serves only after it gave torch's answer on a probe and was faster. What goes wrong on the way, a missing
installation, a build that fails, a plan of another version, leaves torch in service with the reason in `notes`.

Optional: the whole segmenter as a plan whose weights are replaced with each generation (refit).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from semla_ros.engines.base import EngineOutput
from semla_ros.engines.cache import EngineCache
from semla_ros.engines.component_engine import ComponentEngine, Runner
from semla_ros.engines.components import SEGMENTER, FixedComponent, segmenter
from semla_ros.engines.gates import (
    Measure,
    first_line,
    largest_deviation,
    one_run_ms,
    parity_problem,
    smallest_cosine,
)
from semla_ros.engines.tensorrt.build import BackgroundBuild, BuildJob, Toolkit, make_job, plan_key
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.errors import EngineError, SemlaError
from semla_ros.results import ImageArray
from semla_ros.segmentation.inference import whole_view
from semla_ros.segmentation.model import CatSeg

logger = logging.getLogger(__name__)

_HALF_PREFIX = "module."  # of weight names in a graph exported in fp16


class TensorRtEngine(ComponentEngine):
    """The torch engine with components in TensorRT.

    Args:
        torch_engine: Serves everything else, and everything until plans are ready.
        components: See `fixed_components`.
        toolkit: Builds and loads plans.
        probe_images: What masks are compared on, uint8 RGB; two or more.
        cache: Where graphs and plans are kept.
        precision: "fp16", or "fp32".
        refit_model: Also try the whole segmenter, refitted with each generation; None = do not.
        builds: Build what is missing or cannot be loaded; False = only what the cache holds serves.
        measure: Times a call; for tests.
    """

    def __init__(
        self,
        torch_engine: TorchEngine,
        components: Sequence[FixedComponent],
        toolkit: Toolkit,
        *,
        probe_images: Sequence[ImageArray],
        cache: EngineCache | None = None,
        precision: str = "fp16",
        refit_model: CatSeg | None = None,
        builds: bool = True,
        measure: Measure = one_run_ms,
    ) -> None:
        super().__init__(torch_engine, components, runtime="tensorrt", probe_images=probe_images, measure=measure)
        self._toolkit = toolkit
        self._cache = cache or EngineCache()
        self._precision = precision
        self._refit_model = refit_model
        self._builds = builds
        self._text: Tensor | None = None
        self._build: BackgroundBuild | None = None
        self._discarded: dict[str, str] = {}  # component -> why its plan is built anew
        self._is_settled = False

    @property
    def name(self) -> str:
        """What serves, and what is being built."""
        state = self._build.state if self._build is not None else ""
        return f"{super().name}; tensorrt: {state}" if state else super().name

    @property
    def notes(self) -> list[str]:
        """See `ComponentEngine.notes`; also which plans could not be loaded and are built anew, until they are."""
        return [*super().notes, *self._discarded.values()]

    @property
    def is_building(self) -> bool:
        """Whether plans are still to come."""
        return self._build is not None and self._build.is_running

    def warm_up(self) -> None:
        """Warm torch up, let the plans that the cache holds take over, and start building the others."""
        super().warm_up()
        if self._is_settled:
            return
        self._is_settled = True
        if self._refit_model is not None and self._text is not None:
            views = [
                whole_view(torch.from_numpy(image.copy()).permute(2, 0, 1), self._refit_model.config)
                for image in self._probe_images
            ]
            probe = torch.cat(views).to(self._torch.device)
            self.components.append(segmenter(self._refit_model, probe, self._text))
        candidates: list[tuple[FixedComponent, Runner]] = []
        jobs: list[BuildJob] = []
        for component in self.components:
            try:
                runner = self._from_cache(component)
                if runner is None:
                    # Exported here and not in the thread: a component is exported before anything is mounted.
                    jobs.append(make_job(component, self._toolkit, self._cache, self._precision))
                else:
                    candidates.append((component, runner))
            except SemlaError as error:
                self._discarded.pop(component.name, None)
                self.refuse(str(error))
        self.take_over(candidates)
        if jobs:
            self._build = BackgroundBuild(jobs, self._toolkit.builder, self._cache)
            self._build.start()

    def segment(self, image: ImageArray, want_confidence: bool = True) -> EngineOutput:
        """Segment one image; plans that were finished since the last one are checked and take over before it."""
        if self._build is not None:
            self._adopt_finished(self._build)
        return super().segment(image, want_confidence)

    def segment_batch(self, images: Sequence[ImageArray], want_confidence: bool = True) -> list[EngineOutput]:
        """Segment the images of several cameras, after taking over what was finished; see `segment`."""
        if self._build is not None:
            self._adopt_finished(self._build)
        return super().segment_batch(images, want_confidence)

    def set_text(self, text_features: Tensor) -> None:
        """Take over class embeddings and, where the segmenter is refitted, the model's present weights."""
        super().set_text(text_features)
        self._text = text_features.detach().to(self._torch.device, torch.float32)
        if SEGMENTER in self._serving:
            self._refit_in_service(self._text)

    def close(self) -> None:
        """End a build in progress and release the plans."""
        if self._build is not None:
            self._build.stop()
        super().close()

    def wait_until_built(self, timeout_s: float) -> bool:
        """Wait for the background build; whether it ended. The next `segment` takes over what came out of it."""
        return self._build is None or self._build.wait(timeout_s)

    def _from_cache(self, component: FixedComponent) -> Runner | None:
        """A plan of the cache, ready to run; None where one has to be built.

        Raises:
            EngineError: There is none that can be loaded, and none is to be built.
        """
        key = plan_key(component, self._toolkit, self._precision)
        path = self._cache.find(key)
        if path is None:
            reason = self._cache.given_up(key) or ("" if self._builds else "it has not been built")
            if reason:
                raise EngineError(f"{component.name}: no plan ({reason}); 'semla engine build' tries again")
            return None
        try:
            return self._loaded(component, path)
        except Exception as error:  # the runtime has no error family of its own
            if not self._builds:
                raise EngineError(f"{component.name}: its plan cannot be loaded ({first_line(error)})") from error
            # Other versions have other keys, so this is another driver, or there was no memory: a new one replaces it.
            reason = f"{component.name}: its plan cannot be loaded and is built anew ({first_line(error)})"
            logger.warning("engine tensorrt: %s", reason)
            self._discarded[component.name] = reason
            self._cache.remove(key)
            return None

    def _adopt_finished(self, build: BackgroundBuild) -> None:
        candidates: list[tuple[FixedComponent, Runner]] = []
        for item in build.collect():
            component = item.job.component
            is_second = self._discarded.pop(component.name, None) is not None
            if item.path is None:
                self.refuse(f"the build of {item.reason}")
                continue
            try:
                candidates.append((component, self._loaded(component, item.path)))
            except Exception as error:  # as above
                reason = f"{component.name}: its new plan cannot be loaded ({first_line(error)})"
                if is_second:
                    # The one before could not be loaded either. Another start would build a third.
                    self._cache.remove(item.job.key)
                    self._cache.give_up(item.job.key, f"two in a row could not be loaded, {first_line(error)}")
                    reason += "; not built again until 'semla engine build' is run"
                self.refuse(reason)
        if candidates:
            self.take_over(candidates)

    def _loaded(self, component: FixedComponent, path: Path) -> Runner:
        return self._prepared(component, self._toolkit.load(path, component.input_names))

    # Refit

    def _prepared(self, component: FixedComponent, runner: Runner) -> Runner:
        """A runner with the weights of now."""
        if component.is_refitted:
            try:
                self._refit(runner)
            except Exception as error:
                runner.close()  # perhaps refitted in part
                raise EngineError(f"{component.name}: {first_line(error)}") from error
        return runner

    def _refit(self, runner: Runner) -> None:
        assert self._refit_model is not None
        prefix, kind = (_HALF_PREFIX, torch.float16) if self._precision == "fp16" else ("", torch.float32)
        weights = {f"{prefix}{name}": item.detach().to(kind) for name, item in self._refit_model.state_dict().items()}
        refit = getattr(runner, "refit", None)
        if refit is None:
            raise EngineError("this runner cannot be refitted")
        refit(weights)

    def _refit_in_service(self, text: Tensor) -> None:
        """Follow the model's weights; a plan that fails, or answers otherwise than torch after it, is dropped."""
        runner, component = self._serving[SEGMENTER].runner, self._serving[SEGMENTER].component
        inputs = (component.inputs[0], text)
        if not component.accepts(inputs):
            classes = component.inputs[1].shape[0]
            self._drop_segmenter(f"built for {classes} classes, there are {len(text)} now")
            return
        try:
            self._refit(runner)
            with self._torch_alone(), torch.inference_mode():
                given, expected = runner(*inputs), component.original(*inputs)
            problem = parity_problem(smallest_cosine(given, expected), largest_deviation(given, expected))
        except Exception as error:  # weights may be replaced in part: nothing of this plan can be trusted
            self._drop_segmenter(first_line(error))
            return
        if problem:
            # Some versions leave a bias out of a plan that can be refitted.
            self._drop_segmenter(f"after a refit: {problem}")
            return
        self._torch.forget_graph()

    def _drop_segmenter(self, reason: str) -> None:
        self._give_back_to_torch([SEGMENTER])
        self.refuse(f"{SEGMENTER}: {reason}")
