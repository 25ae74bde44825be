"""What a replay compares: the ways a vehicle's pipeline could have treated the same frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import ConfigError
from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.bags.writer import NANOSECONDS
from semla_ros.lab.evaluation.variants import equal_mix
from semla_ros.results import AdaptationStep, Frame, Generation, MaskArray, Segmentation, Status
from semla_ros.serving.health import adaptation_report
from semla_ros.serving.model_bank import SCENE_HANDOVER_NS

if TYPE_CHECKING:
    from semla_ros.pipeline import PerceptionPipeline  # takes seconds to import, which no other command need wait for

Kind = Literal["base", "uniform", "semla", "oracle", "frozen"]
NEAREST = 5  # adapters whose distance is told
_ABSOLUTE_STAMP_S = 1e6  # a larger "frozen@" is a stamp, a smaller one counts from the first frame


@dataclass(frozen=True)
class ReplayVariant:
    """One way of adapting.

    Attributes:
        name: As asked for; key in the results.
        kind: "base": no adapter; "uniform": all adapters, equal weights; "semla": follows the scene; "oracle": one
            adapter throughout; "frozen": follows the scene up to a moment, then keeps its mix.
        adapter: For "oracle".
        until_s: For "frozen": seconds after the first frame, or a stamp in seconds.
    """

    name: str
    kind: Kind
    adapter: str = ""
    until_s: float = 0.0

    @property
    def adapts(self) -> bool:
        """Whether its mix follows the scene."""
        return self.kind in ("semla", "frozen")


def parse_variants(text: str) -> tuple[ReplayVariant, ...]:
    """Read `--compare`, such as "base,uniform,semla,oracle:fog,frozen@12.5".

    Raises:
        ConfigError: A variant is unknown, incomplete or named twice.
    """
    variants: dict[str, ReplayVariant] = {}
    for name in (item.strip() for item in text.split(",")):
        if name in ("base", "uniform", "semla"):
            variant = ReplayVariant(name, name)  # type: ignore[arg-type]
        elif name.startswith("oracle:") and len(name) > len("oracle:"):
            variant = ReplayVariant(name, "oracle", adapter=name.partition(":")[2])
        elif name.startswith("frozen@"):
            try:
                variant = ReplayVariant(name, "frozen", until_s=_seconds(name.partition("@")[2]))
            except ValueError:
                raise ConfigError(
                    f"--compare: '{name}' needs a time: frozen@12.5 (seconds after the first frame) or a stamp"
                ) from None
        else:
            raise ConfigError(
                f"--compare: unknown variant '{name}'; known: base, uniform, semla, oracle:NAME, frozen@SECONDS"
            )
        if name in variants:
            raise ConfigError(f"--compare names '{name}' twice")
        variants[name] = variant
    return tuple(variants.values())


def _seconds(text: str) -> float:
    value = float(text)
    if not np.isfinite(value) or value < 0:
        raise ValueError(text)
    return value / NANOSECONDS if value > 1e15 else value  # stamps are often written in nanoseconds


def choose_primary(variants: Sequence[ReplayVariant]) -> ReplayVariant:
    """The variant that report and bag are about: the first that adapts, else the last."""
    return next((variant for variant in variants if variant.adapts), variants[-1])


@dataclass(frozen=True, eq=False)
class Made:
    """One mask that the pipeline made.

    Attributes:
        item: The frame that it was made from.
        segmentation: What the pipeline answered.
        ready_ns: When it was ready, in recording time; the frame's own time where latency does not count.
        step: What the adaptation path decided on the frame; None where it was not shown to it.
    """

    item: ReplayFrame
    segmentation: Segmentation
    ready_ns: int
    step: AdaptationStep | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a variant has to say on one frame.

    Attributes:
        mask: Class index per pixel, shape (H, W); None where no mask was ready (realtime only).
        confidence: 0..255, shape of `mask`.
        generation: The generation that made the mask.
        step: What the adaptation path decided; None where the frame was not shown to it: another camera speaks for
            the scene, or the frame waits (realtime only).
        latency_ms: By stage; of the run that made the mask.
        is_own: The mask was made from this very frame. False: it is the newest one that was ready when the frame
            arrived (realtime only).
        made: Masks that became due since the previous outcome, in order of making.
        nearest: The adapters nearest to the scene of the generation's mix with their distances, nearest first; empty
            where the mix was not retrieved.
    """

    mask: MaskArray | None
    confidence: NDArray[np.uint8] | None
    generation: Generation
    step: AdaptationStep | None
    latency_ms: Mapping[str, float]
    is_own: bool
    made: tuple[Made, ...] = ()
    nearest: tuple[tuple[str, float], ...] = ()


@dataclass
class _Camera:
    """Realtime state of one camera: what waits, and what was answered."""

    waiting: ReplayFrame | None = None
    answered: list[tuple[int, Outcome]] = field(default_factory=list)  # (ready ns, outcome)
    present: Outcome | None = None


class VariantRunner:
    """Drives one pipeline per variant (or per variant and camera) over the frames.

    Args:
        variant: How to adapt.
        make_pipeline: Makes a pipeline at generation 0.
        adapter_names: The library's adapters.
        camera_names: The cameras, those that speak for the scene first.
        scope: "vehicle": one scene estimate for all cameras; "camera": one each.
        is_realtime: Emulate arrival: a frame that comes while the model is busy waits, a newer one of its camera takes
            its place, and what counts at a frame's arrival is the newest mask that was ready.

    Attributes:
        variant: How it adapts.
        dropped: Frames that a newer one replaced (realtime only).
        pipelines: By camera; one under "" where all cameras share it.

    Raises:
        ConfigError: The variant's adapter is not in the library.
    """

    def __init__(
        self,
        variant: ReplayVariant,
        make_pipeline: Callable[[], PerceptionPipeline],
        adapter_names: Sequence[str],
        camera_names: Sequence[str] = ("",),
        *,
        scope: Literal["vehicle", "camera"] = "vehicle",
        is_realtime: bool = False,
    ) -> None:
        if variant.kind == "oracle" and variant.adapter not in adapter_names:
            raise ConfigError(
                f"--compare {variant.name}: the library has no adapter '{variant.adapter}'; "
                f"it has {', '.join(adapter_names) or 'none'}"
            )
        if variant.kind == "uniform" and not adapter_names:
            raise ConfigError("--compare uniform: the library has no adapters")
        self.variant = variant
        self.dropped = 0
        self._make_pipeline = make_pipeline
        self._adapter_names = tuple(adapter_names)
        self._scope = scope
        self._is_realtime = is_realtime
        self._camera_names = tuple(camera_names)
        self._newest_stamp_ns: dict[str, int] = {}
        self._nearest: dict[int, tuple[int, tuple[tuple[str, float], ...]]] = {}  # pipeline -> generation, adapters
        self.pipelines: dict[str, PerceptionPipeline] = {}
        self._first_stamp_ns: int | None = None
        self._cameras: OrderedDict[str, _Camera] = OrderedDict()
        self._busy_until_ns = 0

    def prepare(self) -> None:
        """Make the pipelines now rather than with the first frame."""
        for camera in self._camera_names if self._scope == "camera" else ("",):
            self._pipeline(camera)

    def run(self, frame: ReplayFrame) -> Outcome:
        """Treat one frame."""
        return self._arrive(frame) if self._is_realtime else self._process(frame)

    def reports(self) -> list[Status]:
        """What the node would say of its adaptation in its diagnostics."""
        return [
            adaptation_report("perception", scope, pipeline.status(), failure_age_s=None, hold_s=0.0)
            for scope, pipeline in self.pipelines.items()
        ]

    def close(self) -> None:
        """Release the pipelines."""
        for pipeline in self.pipelines.values():
            pipeline.close()

    def _process(self, item: ReplayFrame) -> Outcome:
        frame = item.frame
        pipeline = self._pipeline(frame.camera)
        if self.variant.kind == "frozen":
            pipeline.freeze(self._is_past(frame.stamp_ns))
        step = pipeline.adapt(frame) if self._speaks_for_scene(frame) else None
        segmentation = pipeline.segment(frame)
        return Outcome(
            mask=segmentation.mask,
            confidence=segmentation.confidence,
            generation=segmentation.generation,
            step=step,
            latency_ms={**(step.latency_ms if step else {}), **segmentation.latency_ms},
            is_own=True,
            made=(Made(item, segmentation, item.log_ns, step),),
            nearest=self._nearest_of(pipeline, segmentation.generation) if self.variant.adapts else (),
        )

    def _nearest_of(self, pipeline: PerceptionPipeline, generation: Generation) -> tuple[tuple[str, float], ...]:
        """The nearest adapters to a generation's scene, looked up once per generation."""
        known = self._nearest.get(id(pipeline))
        if known is None or known[0] != generation.number:
            distances = list(pipeline.scene_distances().items())[:NEAREST]
            known = self._nearest[id(pipeline)] = (generation.number, tuple(distances))
        return known[1]

    def _speaks_for_scene(self, frame: Frame) -> bool:
        """As in the node: with one scene for several cameras, the first one that delivers looks at it."""
        if self._scope == "camera":
            return True
        self._newest_stamp_ns[frame.camera] = frame.stamp_ns
        oldest = frame.stamp_ns - SCENE_HANDOVER_NS
        for camera in self._camera_names:
            if camera == frame.camera:
                return True
            if self._newest_stamp_ns.get(camera, oldest - 1) >= oldest:
                return False
        return True

    def _pipeline(self, camera: str) -> PerceptionPipeline:
        key = camera if self._scope == "camera" else ""
        if key not in self.pipelines:
            pipeline = self._make_pipeline()
            self.pipelines[key] = pipeline
            if self.variant.kind == "uniform":
                pipeline.apply_mix(equal_mix(self._adapter_names), "uniform")
            elif self.variant.kind == "oracle":
                pipeline.apply_mix(equal_mix([self.variant.adapter]), "oracle")
            pipeline.freeze(not self.variant.adapts)
        return self.pipelines[key]

    def _is_past(self, stamp_ns: int) -> bool:
        if self._first_stamp_ns is None:
            self._first_stamp_ns = stamp_ns
        origin_ns = 0 if self.variant.until_s > _ABSOLUTE_STAMP_S else self._first_stamp_ns
        return stamp_ns - origin_ns > self.variant.until_s * NANOSECONDS

    # Realtime

    def _arrive(self, frame: ReplayFrame) -> Outcome:
        """Serve what could be served before this frame came, then let it wait; answer with what is ready now."""
        camera = self._cameras.setdefault(frame.frame.camera, _Camera())
        made = self._serve_until(frame.log_ns)
        if camera.waiting is not None:
            self.dropped += 1
        camera.waiting = frame
        while camera.answered and camera.answered[0][0] <= frame.log_ns:
            camera.present = camera.answered.pop(0)[1]
        present = camera.present
        if present is None:
            generation = self._pipeline(frame.frame.camera).generation
            return Outcome(
                mask=None, confidence=None, generation=generation, step=None, latency_ms={}, is_own=False, made=made
            )
        return Outcome(
            mask=present.mask,
            confidence=present.confidence,
            generation=present.generation,
            step=present.step,
            latency_ms=present.latency_ms,
            is_own=False,
            made=made,
            nearest=present.nearest,
        )

    def finish(self) -> tuple[Made, ...]:
        """Serve what still waits; returns its masks."""
        return self._serve_until(None) if self._is_realtime else ()

    def _serve_until(self, now_ns: int | None) -> tuple[Made, ...]:
        made: list[Made] = []
        while True:
            waiting = [camera for camera in self._cameras.values() if camera.waiting is not None]
            if not waiting or (now_ns is not None and self._busy_until_ns > now_ns):
                return tuple(made)
            camera = min(waiting, key=lambda item: item.waiting.log_ns if item.waiting else 0)
            frame, camera.waiting = camera.waiting, None
            assert frame is not None
            outcome = self._process(frame)
            # The adaptation path runs beside the frame path in the vehicle: only the latter keeps the model busy.
            took_ns = round(outcome.latency_ms["total"] * 1e6)
            self._busy_until_ns = max(self._busy_until_ns, frame.log_ns) + took_ns
            camera.answered.append((self._busy_until_ns, outcome))
            made += [replace(item, ready_ns=self._busy_until_ns) for item in outcome.made]
