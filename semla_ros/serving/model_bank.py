"""The pipelines of a node: one that all cameras share, or one for each; changes reach all of them or none."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semla_ros.config import DriftConfig, RetrievalConfig, SemlaConfig
from semla_ros.results import Frame, Generation, Segmentation
from semla_ros.serving.library_watch import LibraryWatch
from semla_ros.serving.parameters import Settings, explicit_only
from semla_ros.serving.scene_speaker import SceneSpeaker

if TYPE_CHECKING:
    from semla_ros.engines.base import Stage
    from semla_ros.pipeline import PerceptionPipeline

logger = logging.getLogger(__name__)
Load = Callable[[SemlaConfig], "PerceptionPipeline"]


def load_pipeline(config: SemlaConfig) -> PerceptionPipeline:
    """Load the real pipeline. What it is made of takes seconds to import, which the node spends configuring."""
    from semla_ros.pipeline import PerceptionPipeline

    return PerceptionPipeline.load(config)


def device_of(pipeline: object) -> str:
    """Where a pipeline's model is, as torch names it; empty where there is none."""
    model = getattr(pipeline, "model", None)
    return "" if model is None else str(next(model.parameters()).device)


class ModelBank:
    """Loads, starts, changes and closes the pipelines.

    Args:
        load: Makes a pipeline of its settings.

    Attributes:
        pipelines: Camera -> its pipeline, or "" -> the one of all cameras; empty while nothing is loaded.
        recommended: Name -> value of the retrieval and drift settings that the library recommends, or the defaults of
            those it does not; empty before anything was loaded.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._cameras: Sequence[str] = ()
        self._is_shared = True
        self._speaker: SceneSpeaker | None = None  # None where each camera speaks for a scene of its own
        self._failures: dict[str, tuple[int, float]] = {}
        self._watch: LibraryWatch | None = None
        self._is_frozen: bool | None = None  # None where nobody has asked for it
        self._latest: dict[str, Generation] = {}  # scope -> the last generation of the pipelines before
        self.pipelines: dict[str, PerceptionPipeline] = {}
        self.recommended: Mapping[str, Any] = {}

    def open(self, settings: Settings, cameras: Sequence[str]) -> None:
        """Load and warm up.

        Args:
            settings: The node's parameters.
            cameras: Camera names, in the order of the parameter; `("",)` for the only one.

        Raises:
            Exception: Whatever kept a pipeline from being made, a `SemlaError` where settings or files are to blame;
                nothing is loaded then.
        """
        self._is_shared = settings.node.adaptation_scope == "vehicle"
        self._cameras = tuple(cameras)
        self._speaker = SceneSpeaker(cameras) if self._is_shared and len(cameras) > 1 else None
        self._failures.clear()
        # What is given in part is completed by what the library recommends, which is known once it is loaded.
        config = dataclasses.replace(settings.pipeline, retrieval=None, drift=None)
        pipelines: dict[str, PerceptionPipeline] = {}
        try:
            for scope in [""] if self._is_shared else self._cameras:
                pipelines[scope] = pipeline = self._load(config)
                if scope in self._latest:
                    pipeline.count_on(self._latest[scope])
                self.recommended = {**dataclasses.asdict(pipeline.retrieval), **dataclasses.asdict(pipeline.drift)}
                retrieval, drift = explicit_only(settings, RetrievalConfig), explicit_only(settings, DriftConfig)
                if retrieval:
                    pipeline.update(retrieval=dataclasses.replace(pipeline.retrieval, **retrieval))
                if drift:
                    pipeline.update(drift=dataclasses.replace(pipeline.drift, **drift))
                if self._is_frozen is not None:
                    pipeline.freeze(self._is_frozen)
        except BaseException:
            _close(pipelines)
            raise
        self.pipelines = pipelines
        folder = self.library_folder
        self._watch = None if folder is None else LibraryWatch(folder)

    @property
    def any(self) -> PerceptionPipeline:
        """One of them: vocabulary and settings are the same in all."""
        return next(iter(self.pipelines.values()))

    @property
    def library_folder(self) -> Path | None:
        """Where the adapters come from; None while nothing is loaded."""
        library = getattr(self.any, "library", None) if self.pipelines else None
        return None if library is None else Path(library.folder)

    @property
    def stage(self) -> Stage | None:
        """What an engine is doing this moment; None between two frames, or where no engine tells."""
        stages = (getattr(getattr(item, "engine", None), "stage", None) for item in list(self.pipelines.values()))
        return next(filter(None, stages), None)

    @property
    def warm_up_s(self) -> float:
        """How long the slowest model took to warm up."""
        return max((float(getattr(item, "warm_up_s", 0.0)) for item in self.pipelines.values()), default=0.0)

    def library_has_changed(self) -> bool:
        """Look at the library's folder; True once for each completed change."""
        return self._watch is not None and self._watch.has_changed()

    def of(self, camera: str) -> PerceptionPipeline:
        """The pipeline that serves a camera."""
        return self.pipelines["" if self._is_shared else camera]

    def most_at_once(self, wanted: int) -> int:
        """Images that one forward pass may answer.

        Args:
            wanted: 0 = all cameras on a GPU, one on a CPU, where a batch takes as long as its images in turn.
        """
        if not self._is_shared:
            return 1  # each camera has weights of its own
        if wanted:
            return min(wanted, len(self._cameras))
        return len(self._cameras) if device_of(self.any).startswith("cuda") else 1

    def segment(self, frames: Sequence[Frame], want_confidence: bool) -> list[Segmentation]:
        """Show frames to the adaptation path where they speak for their scene, and segment them.

        Args:
            frames: Of cameras that share a pipeline; at least one.
            want_confidence: Also give the probability of the chosen class.
        """
        pipeline = self.of(frames[0].camera)
        for frame in frames:
            if self._speaker is None or self._speaker.speaks(frame.camera, frame.stamp_ns):
                pipeline.offer(frame)
        if len(frames) == 1:
            return [pipeline.segment(frames[0], want_confidence)]
        return pipeline.segment_batch(frames, want_confidence)

    def apply(self, present: Settings, changed: Settings) -> None:
        """Change vocabulary, retrieval and drift settings in all pipelines, or in none.

        Raises:
            Exception: Whatever kept a pipeline from it, a `SemlaError` where the change is to blame; what was in use
                before is in use again.
        """
        undo: list[Callable[[], object]] = []
        try:
            for pipeline in self.pipelines.values():
                if changed.pipeline.classes != present.pipeline.classes:
                    names = pipeline.class_names
                    pipeline.set_classes(changed.pipeline.classes)
                    undo.append(partial(pipeline.set_classes, names))
                if changed.drift != present.drift:
                    pipeline.update(drift=changed.drift)
                    undo.append(partial(pipeline.update, drift=present.drift))
                if changed.retrieval != present.retrieval:
                    pipeline.update(retrieval=changed.retrieval)
                    undo.append(partial(pipeline.update, retrieval=present.retrieval))
        except Exception:
            for step in reversed(undo):
                try:
                    step()
                except Exception:
                    logger.exception("a change that failed could not be taken back in another camera's model")
            raise

    def start(self) -> None:
        """Start the adaptation paths."""
        for pipeline in self.pipelines.values():
            pipeline.start()

    def stop(self) -> None:
        """Stop the adaptation paths; returns when their threads have ended."""
        for pipeline in self.pipelines.values():
            pipeline.stop()

    def freeze(self, is_frozen: bool) -> None:
        """Keep the present mixes, or follow the scene again; pipelines that are opened later do so, too."""
        self._is_frozen = is_frozen
        for pipeline in self.pipelines.values():
            pipeline.freeze(is_frozen)

    def forget_freeze(self) -> None:
        """Let pipelines that are opened later start as they are configured."""
        self._is_frozen = None

    def reset_adaptation(self) -> list[Generation]:
        """Return to the base model."""
        return [pipeline.reset_adaptation() for pipeline in self.pipelines.values()]

    def reload_library(self) -> None:
        """Read the library folder again; raises `SemlaError` where it cannot be used."""
        for pipeline in self.pipelines.values():
            pipeline.reload_library()

    def reset_gate(self, camera: str) -> None:
        """Forget the drift of a camera's scene: its stamps have jumped back."""
        self.of(camera).reset_gate()

    def failure_age_s(self, scope: str, failures: int) -> float | None:
        """Time since a new failure of a pipeline was first seen here; None where there was none.

        Args:
            scope: Which pipeline.
            failures: How many its status counts.
        """
        seen, since_s = self._failures.get(scope, (0, 0.0))
        if failures != seen:
            since_s = time.monotonic()
            self._failures[scope] = (failures, since_s)
        return time.monotonic() - since_s if failures else None

    def close(self) -> None:
        """Stop and release all."""
        pipelines, self.pipelines, self._watch = self.pipelines, {}, None
        self._latest |= {scope: pipeline.generation for scope, pipeline in pipelines.items()}
        _close(pipelines)


def _close(pipelines: Mapping[str, PerceptionPipeline]) -> None:
    for pipeline in pipelines.values():
        pipeline.close()
