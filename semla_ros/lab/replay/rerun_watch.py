"""A replay as a Rerun recording."""

from __future__ import annotations

from collections.abc import Mapping

from semla_ros.config import SemlaConfig
from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.replay.comparison import ReplayVariant, choose_primary
from semla_ros.lab.replay.runners import Outcome
from semla_ros.lab.replay.scores import FrameScore
from semla_ros.lab.report.embedding_map import scenery_of
from semla_ros.lab.report.rerun_log import RerunLog
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.serving.model_bank import Load, load_pipeline


class RerunWatch:
    """Writes down each frame of a replay; give `load` and `watch` to it.

    Args:
        log: Where to.
        variants: Of the replay; the mix is that of the primary one.
        load: Makes a pipeline.
    """

    def __init__(self, log: RerunLog, variants: tuple[ReplayVariant, ...], load: Load = load_pipeline) -> None:
        self._log, self._load = log, load
        self._primary = choose_primary(variants).name
        self._pipelines: list[PerceptionPipeline] = []

    def load(self, config: SemlaConfig) -> PerceptionPipeline:
        """Make a pipeline; the first one gives classes and library."""
        pipeline = self._load(config)
        if not self._pipelines:
            self._log.classes(pipeline.class_names)
            self._log.library(scenery_of(pipeline.library))
        self._pipelines.append(pipeline)
        return pipeline

    def watch(
        self, item: ReplayFrame, seconds: float, outcomes: Mapping[str, Outcome], scores: Mapping[str, FrameScore]
    ) -> None:
        """Write one frame down."""
        log, camera = self._log, item.frame.camera or "camera"
        log.time(seconds)
        log.image(camera, item.frame.image)
        for name, outcome in outcomes.items():
            if outcome.mask is not None:
                log.mask(camera, outcome.mask, name)
        if item.truth is not None:
            log.mask(camera, item.truth, "truth")
        for what in ("miou", "confidence", "flicker"):
            log.figures(what, {name: getattr(score, what) for name, score in scores.items()})
        generation = outcomes[self._primary].generation
        log.mix(generation.mix.shares())
        for pipeline in self._pipelines:
            if pipeline.generation is generation and (scene := pipeline.scene) is not None:
                log.scene(scene)
