"""Fixed components as TensorRT plans, built in the background while torch serves.

What goes wrong on the way, a build that fails, a plan that cannot be loaded, leaves torch in service with the reason.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from semla_ros.engines.cache import EngineCache, EngineKey
from semla_ros.engines.component_engine import Maker, Runner, Runtime
from semla_ros.engines.components import SCENE_ENCODER
from semla_ros.engines.export import EXPORT_REVISION, exported
from semla_ros.engines.tensorrt.builder import BuildRequest, Shapes
from semla_ros.engines.tensorrt.runner import TensorRtToolkit
from semla_ros.errors import EngineError, first_line
from semla_ros.segmentation.fixed_component import DECODER, FixedComponent

logger = logging.getLogger(__name__)

_PRECISION = "fp16"  # inputs and output are fp32
_OPTIMISED_FOR_MAPS = 16  # class maps that the decoder is tuned for, where it takes so many


class BuildJob(NamedTuple):
    """A component whose plan is missing, the plan's place in the cache, and the exported component."""

    component: FixedComponent
    key: EngineKey
    graph: Path


class TensorRtRuntime(Runtime):
    """Plans of the cache at once, those that are missing or cannot be loaded once they are built; a `Runtime`.

    Args:
        toolkit: Builds and loads plans on one GPU.
        cache: Where graphs and plans are kept.
        builds: Build what is missing in the background; False = only what the cache holds serves.
    """

    name = "tensorrt"
    components = (SCENE_ENCODER, DECODER)

    def __init__(self, toolkit: TensorRtToolkit, *, cache: EngineCache, builds: bool = True) -> None:
        self._toolkit, self._cache, self._builds = toolkit, cache, builds
        self._jobs: list[BuildJob] = []
        self._finished: queue.SimpleQueue[tuple[BuildJob, str]] = queue.SimpleQueue()  # with the reason of a failure
        self._discarded: dict[str, str] = {}  # component -> why its plan is built anew
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def notes(self) -> Sequence[str]:
        """Which plans could not be loaded and are built anew, until they are."""
        return list(self._discarded.values())

    def key(self, component: FixedComponent, attempt: int = 1) -> EngineKey:
        """Cache key of a component's plan.

        Args:
            component: What the plan is for.
            attempt: 2 for the plan that replaces one which could not be loaded; nothing replaces that by itself, or
                every start would build it once more.
        """
        return EngineKey(
            component=component.name,
            model_digest=component.digest,
            runtime=self.name,
            runtime_version=self._toolkit.version,
            device=self._toolkit.device,
            precision=_PRECISION,
            shapes=component.shapes(),
            export_revision=str(EXPORT_REVISION),
            attempt=attempt,
        )

    def makers(self, component: FixedComponent) -> Sequence[Maker]:
        """See `Runtime.makers`."""
        return [partial(self._from_cache, component)]

    def is_built(self, component: FixedComponent) -> bool:
        """See `Runtime.is_built`."""
        return self._find(component)[1] is not None

    def build(self, component: FixedComponent) -> None:
        """Build the plan now unless there is one that can be loaded, see `Runtime.build`."""
        _, path = self._find(component)
        if path is not None:
            try:
                self._toolkit.load(path, component.input_names).close()
                return
            except Exception as error:  # whatever it was, a new plan is the remedy
                logger.info("engine tensorrt: %s: its plan is built anew (%s)", component.name, first_line(error))
        self._run(self._job(component, attempt=1))
        self._cache.remove(self.key(component, attempt=2))

    def start(self) -> None:
        """See `Runtime.start`."""
        if self._jobs:
            self._thread = threading.Thread(target=self._build_all, name="semla-engine-build", daemon=True)
            self._thread.start()

    def wait_until_built(self, timeout_s: float) -> bool:
        """Wait for the background builds; whether they ended. `arrivals` tells what came out of them."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def arrivals(self) -> Sequence[tuple[FixedComponent, Maker]]:
        """See `Runtime.arrivals`."""
        arrived: list[tuple[FixedComponent, Maker]] = []
        while not self._finished.empty():
            job, failure = self._finished.get()
            self._discarded.pop(job.component.name, None)
            arrived.append((job.component, partial(self._built, job, failure)))
        return arrived

    def close(self) -> None:
        """End the build in progress and build nothing more."""
        self._is_closed = True
        self._toolkit.builder.stop()
        self.wait_until_built(10.0)

    def _find(self, component: FixedComponent) -> tuple[EngineKey, Path | None]:
        second = self.key(component, attempt=2)
        if (path := self._cache.find(second)) is not None:
            return second, path
        first = self.key(component)
        return first, self._cache.find(first)

    def _from_cache(self, component: FixedComponent) -> Runner | None:
        key, path = self._find(component)
        if path is None:
            if not self._builds:
                raise EngineError(f"{component.name}: no plan; 'semla engine build' makes it")
            self._jobs.append(self._job(component, attempt=1))
            return None
        try:
            return self._toolkit.load(path, component.input_names)
        except Exception as error:  # the runtime has no error family of its own
            # Other versions have other keys, so this is another driver, or there was no memory: a new one replaces it.
            reason = first_line(error)
        if not self._builds or key.attempt > 1:
            raise EngineError(
                f"{component.name}: its plan cannot be loaded ({reason}); 'semla engine build' makes another"
            )
        self._jobs.append(self._job(component, attempt=2))
        self._cache.remove(key)
        self._discarded[component.name] = f"{component.name}: its plan cannot be loaded and is built anew ({reason})"
        logger.warning("engine tensorrt: %s", self._discarded[component.name])
        return None

    def _built(self, job: BuildJob, failure: str) -> Runner:
        """A plan that the background build has finished."""
        name, path = job.component.name, self._cache.find(job.key)
        if failure or path is None:
            raise EngineError(f"the build of {name}: {failure or 'its plan is gone'}")
        try:
            return self._toolkit.load(path, job.component.input_names)
        except Exception as error:  # as above
            rest = "; not built again until 'semla engine build' is run" if job.key.attempt > 1 else ""
            raise EngineError(f"{name}: its new plan cannot be loaded ({first_line(error)}){rest}") from error

    def _job(self, component: FixedComponent, attempt: int) -> BuildJob:
        """Export a component, which must not be mounted, for a build."""
        graph = exported(component, self._cache, _PRECISION)
        return BuildJob(component, self.key(component, attempt), graph)

    def _build_all(self) -> None:
        for number, job in enumerate(self._jobs, start=1):
            self.state = f"building {job.component.name} ({number} of {len(self._jobs)})"
            failure = ""
            try:
                self._run(job)
            except Exception as error:  # a builder can fail in any way, and torch goes on
                failure = first_line(error)
            if self._is_closed:
                break
            self._finished.put((job, failure))
        self.state = ""

    def _run(self, job: BuildJob) -> None:
        """Build into the cache."""

        def write(path: Path) -> None:
            request = BuildRequest(
                graph=str(job.graph),
                destination=str(path),
                profiles=profiles_of(job.component),
                device_index=self._toolkit.device_index,
            )
            self._toolkit.builder.build(request)
            if not path.is_file() or not path.stat().st_size:
                raise EngineError("the builder reported success but wrote no plan")

        self._cache.store(job.key, write)


def profiles_of(component: FixedComponent) -> dict[str, Shapes]:
    """Smallest, usual and largest shape of the input whose leading axis varies."""
    rest = tuple(component.inputs[0].shape[1:])
    usual = min(_OPTIMISED_FOR_MAPS, component.max_batch) if component.name == DECODER else 1
    return {component.input_names[0]: ((1, *rest), (usual, *rest), (component.max_batch, *rest))}
