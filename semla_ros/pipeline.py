"""From camera frames to masks by a model that follows the scene: the frame path and the adaptation path.

    Frame ------------------------------------------> segment() --> Segmentation
      |                                                  ^ swapped between two frames, never during one
      v                                                  |
    adapt(): SceneEncoder -> Retriever -> DriftGate -> Fuser -> generation n + 1

Runs without ROS: the node, the replay, the evaluation and the benchmarks drive this same class.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from torch import Tensor

from semla_ros.adaptation.background import NewestWins
from semla_ros.adaptation.drift_gate import DriftGate
from semla_ros.adaptation.fusion import Fuser, MixError, PreparedModel
from semla_ros.adaptation.retrieval import Retriever
from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.swap_gate import SwapGate
from semla_ros.config import DriftConfig, RetrievalConfig, SemlaConfig
from semla_ros.engines.base import Engine, EngineOutput
from semla_ros.errors import ConfigError, NotFiniteError, SemlaError, known_names
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.pipeline_parts import PipelineParts, load_parts
from semla_ros.pipeline_status import GenerationLog, PipelineStatus, Tally
from semla_ros.results import AdaptationStep, AdapterMix, FloatArray, Frame, Generation, Segmentation
from semla_ros.segmentation.protocol import SegmentationModel
from semla_ros.timing import RestartWatch, Stopwatch

logger = logging.getLogger(__name__)
RECALL = "recall"  # reason of a generation whose mix stood by


class _FrozenError(Exception):
    """Adaptation was frozen while a turn of it was under way."""


class PerceptionPipeline:
    """One warm segmentation model that is fused anew whenever the scene changes.

    `segment` may be called from one thread while everything else is called from others: changes are committed between
    two frames. What fails in the adaptation path leaves the last good generation in use and is told by `status`.

    Args:
        parts: Model, engine, encoder, library and settings; see `PerceptionPipeline.load`.

    Attributes:
        on_generation: Called with each new generation, in the thread that made it.
        warm_up_s: How long the engine took to warm up.
    """

    def __init__(self, parts: PipelineParts) -> None:
        self._parts = parts
        self._library = parts.library
        self._retrieval, self._drift = parts.retrieval, parts.drift
        self._retriever = Retriever(parts.library, parts.retrieval)
        self._drift_gate = DriftGate(parts.drift)
        self._fuser = Fuser(
            parts.model,
            parts.library,
            parts.tokens_of(parts.class_names),
            memory=parts.memory,
        )
        self._swap_gate = SwapGate()
        self._adaptation_lock = threading.RLock()  # one turn of the adaptation path, or one change asked for, at a time
        self._background: NewestWins[Frame] | None = None
        self._scene: FloatArray | None = None  # embedding that the present mix was retrieved for
        self._restarts = RestartWatch()
        self._is_frozen = False
        self._commit_lock = threading.RLock()  # held while a generation is put into use, inside of the swap gate
        self._starts_over = False  # asked by another thread: the next turn begins with a gate that knows nothing
        self._tally = Tally()
        self._generation_log = GenerationLog()
        self.on_generation: list[Callable[[Generation], None]] = []
        self._generation = Generation(
            number=0, mix=AdapterMix(), class_names=tuple(parts.class_names), vocabulary_version=0
        )
        self._fuser.commit(self._fuser.prepare(self._generation.mix), parts.engine.set_text)
        started_s = time.monotonic()
        parts.engine.warm_up()
        self.warm_up_s = time.monotonic() - started_s

    @classmethod
    def load(cls, config: SemlaConfig, *, library: AdapterLibrary | None = None) -> PerceptionPipeline:
        """Load model, scene encoder and library, and warm up.

        Args:
            config: Settings; where retrieval or drift is None, the library's recommendation counts, then the defaults.
            library: Used instead of loading `config.library`.

        Raises:
            SemlaError: A file is missing, damaged or does not fit the others.
        """
        pipeline = cls(load_parts(config, library))
        pipeline._start_with(AdapterMix.parse(config.initial_mix))
        pipeline.freeze(config.start_frozen)
        return pipeline

    def _start_with(self, mix: AdapterMix) -> None:
        """Fuse the mix that was asked for; where an adapter of it is damaged the base model serves, and that is told.

        Raises:
            ConfigError: The library has no such adapter.
        """
        if not mix.names:
            return
        library = self._library
        for name in mix.names:
            if name not in library.names and name not in library.problems:
                where = f"'initial_mix': library {library.folder} has no adapter"
                raise ConfigError(f"{where} '{name}'; {known_names(name, library.names)}")
        try:
            self.apply_mix(mix, "parameters")
        except MixError as error:
            logger.warning("initial_mix cannot be used, the base model serves: %s", error)

    # Frame path

    def segment(self, frame: Frame, want_confidence: bool = True) -> Segmentation:
        """Segment one frame with the generation in use.

        Args:
            frame: The image.
            want_confidence: Also give the probability of the chosen class.

        Returns:
            The mask with its generation, stamp, camera and frame id.
        """
        (output,), generation = self._outputs(lambda: [self._parts.engine.segment(frame.image, want_confidence)])
        return self._answered(frame, output, generation)

    def segment_batch(self, frames: Sequence[Frame], want_confidence: bool = True) -> list[Segmentation]:
        """Segment the frames of several cameras with the generation in use, in one forward pass where it is possible.

        Args:
            frames: At least one.
            want_confidence: Also give the probability of the chosen class.

        Returns:
            One answer for each frame; latencies are those of the whole batch.
        """
        images = [frame.image for frame in frames]
        outputs, generation = self._outputs(lambda: self._parts.engine.segment_batch(images, want_confidence))
        return [self._answered(frame, output, generation) for frame, output in zip(frames, outputs, strict=True)]

    def _outputs(self, run: Callable[[], list[EngineOutput]]) -> tuple[list[EngineOutput], Generation]:
        """What the engine answers, and the generation that did.

        Where the weights in use give no finite answer, the base model gives one, and their adapters are set aside.
        """
        self._parts.engine.catch_up()
        with self._swap_gate.frame():
            if self._fuser.in_use is None:
                self._serve_base("the weights in use are not known")
            try:
                return run(), self._generation
            except NotFiniteError as error:
                mix = self._generation.mix
                if not mix.names:
                    raise
                for name in mix.names:
                    self._library.set_aside(
                        name, f"adapter '{name}' is set aside until its files change: with the mix {mix}, {error}"
                    )
                self._serve_base(f"the mix {mix} gives no mask: {error}")
            return run(), self._generation

    def _serve_base(self, reason: str) -> None:
        """Put the base model into use between two forward passes, and have the next turn look at the scene anew."""
        with self._commit_lock:
            self._fuser.use_base(self._parts.engine.set_text)
            self._note_base(reason)

    def _note_base(self, reason: str) -> None:
        present = self._generation
        self._generation = replace(
            present, number=present.number + 1, mix=AdapterMix(), scene_stamp_ns=None, reason="failure"
        )
        self._starts_over = True
        self._tally.count_failure(f"{reason}: the base model serves")
        self._announce(self._generation)

    def _answered(self, frame: Frame, output: EngineOutput, generation: Generation) -> Segmentation:
        segmentation = Segmentation(
            mask=output.mask,
            confidence=output.confidence,
            generation=generation,
            stamp_ns=frame.stamp_ns,
            camera=frame.camera,
            frame_id=frame.frame_id,
            latency_ms=output.latency_ms,
        )
        self._tally.frame_latency.add(output.latency_ms)
        return segmentation

    # Adaptation path

    def adapt(self, frame: Frame) -> AdaptationStep:
        """One turn of the adaptation path: look at the scene, and fuse a new generation where it has changed.

        Turns are throttled by `frame.stamp_ns`, so a recording gives the same steps at any speed. Failures are reported
        in the step and in `status`, never raised.
        """
        watch = Stopwatch()
        with self._adaptation_lock:
            try:
                step = self._adapt(frame, watch)
            except SemlaError as error:
                logger.warning("adaptation failed, generation %d stays: %s", self._generation.number, error)
                step = self._step("failed", frame, watch, error=str(error))
            except Exception as error:
                logger.exception("adaptation failed unexpectedly, generation %d stays", self._generation.number)
                step = self._step("failed", frame, watch, error=f"{type(error).__name__}: {error}")
            self._tally.count_step(step)
            return step

    def _adapt(self, frame: Frame, watch: Stopwatch) -> AdaptationStep:
        if self._is_frozen:
            return self._step("frozen", frame, watch)
        if self._starts_over:
            self._starts_over = False
            self._restarts.forget()
            self._start_over()
        self._notice_restart(frame.stamp_ns)
        if not self._drift_gate.should_embed(frame.stamp_ns):
            return self._step("throttled", frame, watch)
        with watch.stage("embed"):
            embedding = self._parts.encoder.embed(frame.image)
        with watch.stage("retrieve"):
            mix = self._retriever.retrieve(embedding)
        stands_by = self._fuser.stands_by
        decision = self._drift_gate.update(
            embedding, mix, self._generation.mix, frame.stamp_ns, stands_by.mix if stands_by else None
        )
        if not decision.has_drifted:
            return self._step("dwell" if decision.is_dwelling else "steady", frame, watch, drift=decision.drift)
        try:
            reason = RECALL if decision.is_recall else "drift"
            generation = self._fuse_scene(reason, decision.scene, frame.stamp_ns, watch, decision.mix)
        except _FrozenError:
            return self._step("frozen", frame, watch, drift=decision.drift)
        is_recall = generation.reason == RECALL
        self._drift_gate.accept(generation.mix, is_recall=is_recall)
        action = "recalled" if is_recall else "fused"
        return self._step(action, frame, watch, drift=decision.drift, mix=generation.mix)

    def process(self, frame: Frame) -> tuple[Segmentation, AdaptationStep]:
        """Adapt, then segment, in this thread: the same frames always give the same masks."""
        step = self.adapt(frame)
        return self.segment(frame), step

    def start(self) -> None:
        """Run the adaptation path in a background thread; `offer` feeds it."""
        if self._background is None:
            self._background = NewestWins(self.adapt, "semla-adaptation")

    def offer(self, frame: Frame) -> None:
        """Show a frame to the background thread; the newest one wins. Does nothing before `start` or after `stop`."""
        if (background := self._background) is not None:
            background.offer(frame)

    def stop(self) -> None:
        """End the background thread, once it has finished the turn in progress."""
        background, self._background = self._background, None
        if background is not None:
            background.stop()

    # Changes asked for

    def count_on(self, earlier: Generation) -> None:
        """Number generations and vocabularies after those of an earlier pipeline; before the first frame."""
        self._generation = self._generation.after(earlier)

    def set_classes(self, names: Sequence[str]) -> Generation:
        """Change the vocabulary; mask indices, names and version change together, in one generation.

        Args:
            names: Index in the mask -> name; empty = the model's own class list.

        Raises:
            VocabularyError: The list cannot be used; the present one stays.
        """
        with self._change("classes"):
            names = names or self._parts.own_class_names
            token_ids = self._parts.tokens_of(names)
            present_ids = self._parts.tokens_of(self.class_names)
            self._fuser.set_tokens(token_ids)
            try:
                return self._renew("vocabulary", class_names=tuple(names))
            except Exception:
                self._fuser.set_tokens(present_ids)
                raise

    def update(self, *, retrieval: RetrievalConfig | None = None, drift: DriftConfig | None = None) -> Generation:
        """Change settings of the running pipeline; a new retrieval setting acts on the present scene at once."""
        with self._change("settings"):
            gate = None if drift is None else DriftGate(drift)
            if retrieval is not None:
                present = self._retrieval, self._retriever
                self._retrieval, self._retriever = retrieval, Retriever(self._library, retrieval)
                try:
                    self._retrieve_anew("parameters")
                except Exception:
                    self._retrieval, self._retriever = present
                    raise
            if drift is not None and gate is not None:  # last, when nothing can fail any more
                self._drift, self._drift_gate = drift, gate
            return self._generation

    def apply_mix(self, mix: AdapterMix, reason: str) -> Generation:
        """Fuse a given mix, whatever the scene; the next drift replaces it unless adaptation is frozen.

        Raises:
            MixError: Adapters of it cannot be used, and are set aside; what is in use stays.
        """
        with self._change("mix"):
            try:
                return self._renew(reason, mix=mix)
            except MixError as error:
                self._set_aside(error)
                raise

    def freeze(self, is_frozen: bool) -> None:
        """Keep the present mix (True), or follow the scene again (False).

        A turn in flight changes nothing any more once this has returned, and is not waited for.
        """
        with self._commit_lock:
            self._is_frozen = is_frozen

    def reset_adaptation(self) -> Generation:
        """Return to the base model; adaptation starts over with the next frame unless it is frozen."""
        with self._change("reset"):
            self._drift_gate.reset()
            self._tally.drift = None
            return self._renew("reset", mix=AdapterMix())

    def reload_library(self) -> Generation:
        """Read the adapter library again; nothing changes unless all of it was read.

        An adapter in use that is gone stays in use until the scene is retrieved anew, which happens at once where one
        has been seen.

        Raises:
            LibraryError: The folder cannot be used; the library in memory stays.
        """
        with self._change("library"):
            library = self._library.reload()
            self._retriever = Retriever(library, self._retrieval)
            self._fuser.set_library(library)
            self._library = library
            self._retrieve_anew("library")
            return self._generation

    def reset_gate(self) -> None:
        """Forget drift and latencies, as when a recording starts over; the present mix stays in use.

        Returns at once: the next turn of the adaptation path begins with it.
        """
        self._starts_over = True
        self._tally.clear_statistics()

    # State

    @property
    def generation(self) -> Generation:
        """The generation in use."""
        return self._generation

    @property
    def class_names(self) -> tuple[str, ...]:
        """The vocabulary in use, index in the mask -> name."""
        return self._generation.class_names

    @property
    def text_features(self) -> Tensor:
        """Class embeddings in use, shape (T, C), unit length."""
        assert self._fuser.in_use is not None  # committed by the constructor
        return self._fuser.in_use.text_features

    @property
    def model(self) -> SegmentationModel:
        """The segmentation model; its weights change with each generation."""
        return self._parts.model

    @property
    def engine(self) -> Engine:
        """What runs the forward pass."""
        return self._parts.engine

    @property
    def encoder(self) -> SceneEncoder:
        """What embeds scenes."""
        return self._parts.encoder

    @property
    def library(self) -> AdapterLibrary:
        """The adapter library in use."""
        return self._library

    @property
    def retrieval(self) -> RetrievalConfig:
        """Retrieval settings in use."""
        return self._retrieval

    @property
    def drift(self) -> DriftConfig:
        """Drift settings in use."""
        return self._drift

    @property
    def scene(self) -> FloatArray | None:
        """Embedding that the mix in use was retrieved for, shape (D,); None where it was not retrieved."""
        return self._scene

    def scene_distances(self) -> dict[str, float]:
        """Distance to every adapter of the scene that the present mix was retrieved for, nearest first.

        Empty where the mix was not retrieved for a scene. Beside `generation.mix` it tells what was left out, and how
        far away everything is where the mix has faded to the base model.
        """
        with self._adaptation_lock:
            if self._scene is None:
                return {}
            distances = self._retriever.distances(self._scene)
            order = distances.argsort(kind="stable")
            return {self._library.names[index]: float(distances[index]) for index in order}

    def status(self) -> PipelineStatus:
        """What happened so far, and what is in use."""
        tally, background = self._tally, self._background
        return PipelineStatus(
            engine=self._parts.engine.name,
            generation=self._generation,
            frames=tally.frames,
            embeddings=tally.embeddings,
            retrievals=tally.retrievals,
            fusions=tally.fusions,
            recalls=tally.recalls,
            failures=tally.failures,
            replaced_scenes=background.replaced if background is not None else 0,
            drift=tally.drift,
            last_action=tally.last_action,
            last_error=tally.last_error,
            is_frozen=self._is_frozen,
            is_running=background is not None,
            frame_latency_ms=tally.frame_latency.summary(),
            adaptation_latency_ms=tally.adaptation_latency.summary(),
            library_size=len(self._library.names),
            library_problems=dict(self._library.problems),
            adapters_without_digest=self._library.without_digest,
            adapted_weights_bytes=self._fuser.num_bytes,
            resident_adapters=self._fuser.resident_adapters,
            engine_notes=(*getattr(self._parts.engine, "notes", ()), *self._fuser.notes),
            domain=self._parts.domain,
            spread_source=self._library.spread_source,
        )

    def close(self) -> None:
        """Stop the background thread and release the engine."""
        self.stop()
        self._parts.engine.close()

    # Inside

    @contextmanager
    def _change(self, what: str) -> Iterator[None]:
        """One change at a time; a failure is counted, then raised to the caller."""
        with self._adaptation_lock:
            try:
                yield
            except SemlaError as error:
                self._tally.count_failure(f"{what}: {error}")
                raise
            except Exception as error:
                self._tally.count_failure(f"{what}: {type(error).__name__}: {error}")
                raise

    def _retrieve_anew(self, reason: str) -> None:
        """Retrieve for the scene in memory, if there is one and adaptation is not frozen."""
        self._drift_gate.forget_mixes()
        if self._scene is not None and not self._is_frozen:
            with suppress(_FrozenError):
                self._fuse_scene(reason, self._scene, self._generation.scene_stamp_ns, Stopwatch())

    def _fuse_scene(
        self, reason: str, scene: FloatArray, stamp_ns: int | None, watch: Stopwatch, mix: AdapterMix | None = None
    ) -> Generation:
        """Fuse a mix for a scene; where none is given, the one that is retrieved for it.

        Adapters that turn out to be gone or damaged are set aside, and the scene is retrieved for again without them.
        """
        while True:
            if mix is None:
                with watch.stage("retrieve"):
                    mix = self._retriever.retrieve(scene)
            try:
                return self._renew(reason, mix=mix, scene=scene, scene_stamp_ns=stamp_ns, watch=watch)
            except MixError as error:
                self._set_aside(error)
                self._tally.count_failure(str(error))
                mix = None

    def _set_aside(self, error: MixError) -> None:
        for name in error.names:
            if name in self._library.names:
                self._library.set_aside(name, str(error))

    def _renew(
        self,
        reason: str,
        *,
        mix: AdapterMix | None = None,
        class_names: tuple[str, ...] | None = None,
        scene: FloatArray | None = None,
        scene_stamp_ns: int | None = None,
        watch: Stopwatch | None = None,
    ) -> Generation:
        """Prepare and commit the next generation; what is not given stays as it is in the present one.

        For the reason `RECALL` the mix is the one that stands by, and nothing is prepared.

        A mix without a scene was not retrieved for one: the scene in memory and its stamp are forgotten.

        Raises:
            MixError: Adapters of the mix that was given cannot be used; of the present one they are left out.
            _FrozenError: Adaptation was frozen before a mix for a scene was put into use.
        """
        watch = watch or Stopwatch()
        generation: Generation | None = None
        while generation is None:
            present = self._generation
            recalled = self._fuser.stands_by if reason == RECALL else None
            if recalled is None:
                reason = "drift" if reason == RECALL else reason  # the base model had to serve: nothing stands by
                with watch.stage("prepare"):
                    prepared = self._fuser.prepare(mix) if mix is not None else self._prepare_present()
            else:
                prepared = recalled
            made = Generation(
                number=present.number + 1,
                mix=prepared.mix,
                class_names=class_names or present.class_names,
                vocabulary_version=present.vocabulary_version + (class_names is not None),
                scene_stamp_ns=present.scene_stamp_ns if mix is None else scene_stamp_ns,
                reason=reason,
            )
            with self._swap_gate.swap(), self._commit_lock, watch.stage("commit"):
                if scene is not None and self._is_frozen:
                    raise _FrozenError
                if self._generation is present:
                    self._put_into_use(prepared, made)
                    generation = made
                elif mix is not None and set(mix.names) & set(present.mix.names):
                    # The frame path had to fall back to the base model, and has set those adapters aside.
                    raise MixError(f"the mix {mix} was given up: {self._tally.last_error}", ())
        if mix is not None:
            self._scene = scene
        self._tally.fusions += reason != RECALL
        self._tally.recalls += reason == RECALL
        self._announce(generation)
        return generation

    def _prepare_present(self) -> PreparedModel:
        """The present mix once more, for another vocabulary, without what cannot be used any longer."""
        mix = self._generation.mix
        while True:
            try:
                return self._fuser.prepare(mix)
            except MixError as error:
                self._set_aside(error)
                self._tally.count_failure(str(error))
                mix = mix.only(*(set(mix.names) - set(error.names)))

    def _put_into_use(self, prepared: PreparedModel, generation: Generation) -> None:
        """Weights, class embeddings and description change together, or not at all."""
        earlier = self._fuser.in_use
        try:
            self._fuser.commit(prepared, self._parts.engine.set_text)
        except BaseException as error:
            if self._fuser.in_use is not earlier:
                self._note_base(f"the generation before cannot be restored after {type(error).__name__}: {error}")
            raise
        self._generation = generation

    def _announce(self, generation: Generation) -> None:
        self._generation_log.tell(generation, time.monotonic())
        for callback in list(self.on_generation):
            try:
                callback(generation)
            except Exception:
                logger.exception("a callback failed on generation %d", generation.number)

    def _notice_restart(self, stamp_ns: int) -> None:
        """Start over where stamps jump back, as they do when a recording loops."""
        if jump_s := self._restarts.jump_s(stamp_ns):
            logger.info("stamps jumped back by %.1f s: drift gate reset", jump_s)
            self._start_over()

    def _start_over(self) -> None:
        self._drift_gate.reset()
        self._tally.clear_statistics()

    def _step(
        self,
        action: str,
        frame: Frame,
        watch: Stopwatch,
        *,
        drift: float | None = None,
        mix: AdapterMix | None = None,
        error: str | None = None,
    ) -> AdaptationStep:
        return AdaptationStep(
            action=action,
            stamp_ns=frame.stamp_ns,
            generation=self._generation,
            drift=drift,
            mix=mix,
            error=error,
            latency_ms=watch.latency_ms,
        )
