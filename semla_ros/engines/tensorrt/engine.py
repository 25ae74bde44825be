"""Fixed components as TensorRT plans, built in the background while torch serves.

A plan serves only after it gave torch's answer on a probe and was faster. What goes wrong on the way, a missing
installation, a build that fails, a plan of another version, leaves torch in service with the reason in `notes`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from semla_ros.engines.base import EngineOutput
from semla_ros.engines.cache import EngineCache
from semla_ros.engines.component_engine import ComponentEngine, Runner
from semla_ros.engines.components import FixedComponent
from semla_ros.engines.gates import Measure, first_line, one_run_ms
from semla_ros.engines.tensorrt.build import BackgroundBuild, BuildJob, Toolkit, make_job, plan_key
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.errors import EngineError, SemlaError
from semla_ros.results import ImageArray

logger = logging.getLogger(__name__)


class TensorRtEngine(ComponentEngine):
    """The torch engine with components in TensorRT.

    Args:
        torch_engine: Serves everything else, and everything until plans are ready.
        components: See `fixed_components`.
        toolkit: Builds and loads plans.
        probe_images: What masks are compared on, uint8 RGB.
        cache: Where graphs and plans are kept.
        precision: "fp16", or "fp32".
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
        builds: bool = True,
        measure: Measure = one_run_ms,
    ) -> None:
        super().__init__(torch_engine, components, runtime="tensorrt", probe_images=probe_images, measure=measure)
        self._toolkit = toolkit
        self._cache = cache or EngineCache()
        self._precision = precision
        self._builds = builds
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
            return self._toolkit.load(path, component.input_names)
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
                candidates.append((component, self._toolkit.load(item.path, component.input_names)))
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
