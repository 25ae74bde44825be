"""What answers the frames of a replay, one runner for each variant that is compared."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.bags.writer import NANOSECONDS
from semla_ros.lab.evaluation.variants import equal_mix
from semla_ros.lab.replay.comparison import ReplayVariant
from semla_ros.results import AdaptationStep, Frame, Generation, MaskArray, Segmentation, Status
from semla_ros.serving.health import adaptation_report
from semla_ros.serving.scene_speaker import SceneSpeaker

if TYPE_CHECKING:
    from semla_ros.pipeline import PerceptionPipeline  # takes seconds to import, which no other command need wait for

NEAREST = 5  # adapters whose distance is told
_ABSOLUTE_STAMP_S = 1e6  # a larger "frozen@" is a stamp, a smaller one counts from the first frame


@dataclass(frozen=True, eq=False)
class Answer:
    """One mask that a pipeline made.

    Attributes:
        item: The frame that it was made from.
        segmentation: The mask with its generation.
        step: What the adaptation path decided on the frame; None where another camera speaks for the scene.
        nearest: The adapters nearest to the scene of the generation's mix with their distances, nearest first; empty
            where the mix was not retrieved.
        ready_ns: When it was ready, in recording time; the frame's own time where latency does not count.
    """

    item: ReplayFrame
    segmentation: Segmentation
    step: AdaptationStep | None
    nearest: tuple[tuple[str, float], ...]
    ready_ns: int

    @property
    def latency_ms(self) -> dict[str, float]:
        """By stage of both paths."""
        return {**(self.step.latency_ms if self.step else {}), **self.segmentation.latency_ms}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a variant has to say on one frame.

    Attributes:
        answer: The mask to judge: the frame's own, or the newest that was ready when the frame came (realtime); None
            where none was (realtime).
        generation: The generation that made it; the present one where there is none.
        made: Masks that were made since the previous outcome, in order.
    """

    answer: Answer | None
    generation: Generation
    made: tuple[Answer, ...]

    @classmethod
    def own(cls, answer: Answer) -> Outcome:
        """The frame was answered at once."""
        return cls(answer, answer.segmentation.generation, (answer,))

    @property
    def mask(self) -> MaskArray | None:
        """Class index per pixel, shape (H, W)."""
        return self.answer.segmentation.mask if self.answer else None

    def is_of(self, item: ReplayFrame) -> bool:
        """Whether the mask was made from this very frame."""
        return self.answer is not None and self.answer.item is item


class VariantRunner:
    """Drives one pipeline per variant (or per variant and camera) over the frames.

    Args:
        variant: How to adapt.
        make_pipeline: Makes a pipeline at generation 0; its maker closes it.
        camera_names: The cameras, those that speak for the scene first.
        scope: "vehicle": one scene estimate for all cameras; "camera": one each.

    Attributes:
        dropped: Frames that a newer one replaced (realtime only).

    Raises:
        ConfigError: The library lacks what the variant needs.
    """

    def __init__(
        self,
        variant: ReplayVariant,
        make_pipeline: Callable[[], PerceptionPipeline],
        camera_names: Sequence[str] = ("",),
        *,
        scope: Literal["vehicle", "camera"] = "vehicle",
    ) -> None:
        self.dropped = 0
        self._variant = variant
        self._is_shared = scope == "vehicle"
        self._camera_names = tuple(camera_names)
        self._speaker = SceneSpeaker(camera_names)
        self._nearest: dict[str, tuple[int, tuple[tuple[str, float], ...]]] = {}  # scope -> generation, adapters
        self._first_stamp_ns: int | None = None
        self._pipelines: dict[str, PerceptionPipeline] = {}
        for name in ("",) if self._is_shared else self._camera_names:
            self._pipelines[name] = pipeline = make_pipeline()
            names = variant.adapters(pipeline.library.names)
            if names:
                pipeline.apply_mix(equal_mix(names), variant.kind)
            pipeline.freeze(not variant.adapts)

    def run(self, item: ReplayFrame) -> Outcome:
        """Treat one frame."""
        return Outcome.own(self._answer(item))

    def finish(self) -> tuple[Answer, ...]:
        """Answer what still waits."""
        return ()

    def facts(self) -> dict[str, Any]:
        """What is known of the whole replay at its end: entries for the variant's summary."""
        return {"dropped": self.dropped}

    def reports(self) -> list[Status]:
        """What the node would say of its adaptation in its diagnostics."""
        return [
            adaptation_report("perception", scope, pipeline.status(), failure_age_s=None, hold_s=0.0)
            for scope, pipeline in self._pipelines.items()
        ]

    def _scope(self, camera: str) -> str:
        return "" if self._is_shared else camera

    def _answer(self, item: ReplayFrame) -> Answer:
        frame, scope = item.frame, self._scope(item.frame.camera)
        pipeline = self._pipelines[scope]
        if self._variant.kind == "frozen":
            pipeline.freeze(self._is_past(frame.stamp_ns))
        step = pipeline.adapt(frame) if self._speaks_for_scene(frame) else None
        segmentation = pipeline.segment(frame)
        number = segmentation.generation.number
        if self._variant.adapts and self._nearest.get(scope, (-1,))[0] != number:
            self._nearest[scope] = number, tuple(pipeline.scene_distances().items())[:NEAREST]
        _, nearest = self._nearest.get(scope, (number, ()))
        return Answer(item, segmentation, step, nearest, item.log_ns)

    def _speaks_for_scene(self, frame: Frame) -> bool:
        """As in the node: with one scene for several cameras, the first one that delivers looks at it."""
        return not self._is_shared or self._speaker.speaks(frame.camera, frame.stamp_ns)

    def _is_past(self, stamp_ns: int) -> bool:
        if self._first_stamp_ns is None:
            self._first_stamp_ns = stamp_ns
        origin_ns = 0 if self._variant.until_s > _ABSOLUTE_STAMP_S else self._first_stamp_ns
        return stamp_ns - origin_ns > self._variant.until_s * NANOSECONDS


@dataclass
class _Camera:
    """What waits, and what was answered."""

    waiting: ReplayFrame | None = None
    answered: deque[Answer] = field(default_factory=deque)
    present: Answer | None = None


class RealtimeRunner(VariantRunner):
    """Emulates arrival: a frame that comes while the model is busy waits, and a newer one of its camera replaces it.

    What counts at a frame's arrival is the newest mask that was ready.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cameras = {name: _Camera() for name in self._camera_names}
        self._busy_until_ns = 0

    def run(self, item: ReplayFrame) -> Outcome:
        """Serve what could be served before this frame came, then let it wait; answer with what is ready now."""
        camera = self._cameras[item.frame.camera]
        made = self._serve_until(item.log_ns)
        self.dropped += camera.waiting is not None
        camera.waiting = item
        while camera.answered and camera.answered[0].ready_ns <= item.log_ns:
            camera.present = camera.answered.popleft()
        if camera.present is None:
            return Outcome(None, self._pipelines[self._scope(item.frame.camera)].generation, made)
        return Outcome(camera.present, camera.present.segmentation.generation, made)

    def finish(self) -> tuple[Answer, ...]:
        """Answer what still waits."""
        return self._serve_until(None)

    def _serve_until(self, now_ns: int | None) -> tuple[Answer, ...]:
        made: list[Answer] = []
        while now_ns is None or self._busy_until_ns <= now_ns:
            waiting = [(camera.waiting, camera) for camera in self._cameras.values() if camera.waiting is not None]
            if not waiting:
                break
            item, camera = min(waiting, key=lambda pair: pair[0].log_ns)
            camera.waiting = None
            answer = self._answer(item)
            # The adaptation path runs beside the frame path in the vehicle: only the latter keeps the model busy.
            took_ns = round(answer.segmentation.latency_ms["total"] * 1e6)
            self._busy_until_ns = max(self._busy_until_ns, item.log_ns) + took_ns
            answer = replace(answer, ready_ns=self._busy_until_ns)
            camera.answered.append(answer)
            made.append(answer)
        return tuple(made)
