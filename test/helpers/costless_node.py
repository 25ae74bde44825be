"""Runs the real perception node on a model that costs nothing: for tests of transport, life cycle and messages.

Started as a process: `python costless_node.py --ros-args ...`. The mask of a frame is its red channel modulo the number
of classes, so that a test can tell which image a mask belongs to.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np

from semla_ros.config import DriftConfig, RetrievalConfig, SemlaConfig
from semla_ros.errors import ConfigError, LibraryError, VocabularyError
from semla_ros.pipeline_status import PipelineStatus, Tally
from semla_ros.results import AdaptationStep, AdapterMix, Frame, Generation, Segmentation

HEAVY_MIB = 300
OWN_CLASSES = ("road", "sky", "unicorn")
HANGING = 99  # red of the image that a model which "hangs in forward" hangs at


class CostlessPipeline:
    """The pipeline's interface; a generation is made when the scene, `image[0, 0, 1]`, changes."""

    loads = 0

    def __init__(self, config: SemlaConfig) -> None:
        self._hangs_in = config.model.removeprefix("hangs in ")
        self.engine = SimpleNamespace(stage=None, name="costless", precision="fp32")
        self._hang("loading")
        if self._hangs_in == "importing":
            sys.meta_path.insert(0, SimpleNamespace(find_spec=lambda *_: self._hang("importing")))  # type: ignore[arg-type]
            importlib.import_module("a_module_that_never_comes")
        if config.model == "missing":
            raise ConfigError("model 'missing' was not found in /nowhere")
        if config.model.endswith(".ready"):  # loads until the test makes this file
            while not os.path.exists(config.model):
                time.sleep(0.02)
        # Blocks that malloc keeps when they are freed, until it is told to give them back.
        self.weights = [np.ones(1 << 20, np.uint8) for _ in range(HEAVY_MIB if config.model == "heavy" else 0)]
        CostlessPipeline.loads += 1
        if config.model == "damaged" or (config.model == "moody" and CostlessPipeline.loads % 2):
            raise RuntimeError("an error that nobody expected")
        self.retrieval = config.retrieval or RetrievalConfig(top_k=3)
        self.drift = config.drift or DriftConfig()
        self.library = SimpleNamespace(folder=config.library) if config.library else None
        self.on_generation: list[Callable[[Generation], None]] = []
        names = config.classes or OWN_CLASSES
        self.generation = Generation(number=0, mix=AdapterMix(), class_names=tuple(names), vocabulary_version=0)
        self.batches: list[int] = []
        self.delay_s = 0.1 if config.model == "slow" else 0.0
        self._tally = Tally()
        self._lock = threading.Lock()
        self._is_frozen, self._is_running = config.start_frozen, False
        self._scene: int | None = None
        self._is_fragile = config.model == "fragile"  # changes end in an error that nobody expected

    def _hang(self, where: str) -> None:
        """Never come back, if that is asked for."""
        if where == self._hangs_in:
            self.engine.stage = SimpleNamespace(name="forward", since_s=time.monotonic())
            print(f"now hanging: {where}", flush=True)
            threading.Event().wait()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.generation.class_names

    def segment(self, frame: Frame, want_confidence: bool = True) -> Segmentation:
        time.sleep(self.delay_s)
        if frame.image[0, 0, 0] == HANGING:
            self._hang("forward")
        generation = self.generation
        mask = frame.image[..., 0] % np.uint8(min(len(generation.class_names), 255))
        if len(generation.class_names) > 254:
            mask = mask.astype(np.uint16)
        result = Segmentation(
            mask=mask,
            confidence=frame.image[..., 1].copy() if want_confidence else None,
            generation=generation,
            stamp_ns=frame.stamp_ns,
            camera=frame.camera,
            frame_id=frame.frame_id,
            latency_ms={"forward": 0.0, "total": 0.0},
        )
        self._tally.frame_latency.add(result.latency_ms)
        return result

    def segment_batch(self, frames: Sequence[Frame], want_confidence: bool = True) -> list[Segmentation]:
        self.batches.append(len(frames))
        print(f"a batch of {len(frames)}", flush=True)
        return [self.segment(frame, want_confidence) for frame in frames]

    def offer(self, frame: Frame) -> None:
        scene = int(frame.image[0, 0, 1])
        if self._is_running and not self._is_frozen and scene != self._scene:
            self._scene = scene
            base = 0.1 if scene < 100 else 0.2
            mix = AdapterMix(
                names=("night", "fog"),
                weights=np.array([0.7 - base, 0.3]),
                distances=np.array([0.5, np.nan]),
                base_weight=base,
            )
            generation = self._renew("drift", mix=mix, scene_stamp_ns=frame.stamp_ns)
            self._tally.count_step(AdaptationStep(action="fused", stamp_ns=frame.stamp_ns, generation=generation))

    def _renew(self, reason: str, **changes: object) -> Generation:
        with self._lock:
            present = self.generation
            values = {
                "mix": present.mix,
                "class_names": present.class_names,
                "vocabulary_version": present.vocabulary_version,
                "scene_stamp_ns": present.scene_stamp_ns,
            } | changes
            self.generation = Generation(number=present.number + 1, reason=reason, **values)  # type: ignore[arg-type]
            for callback in self.on_generation:
                callback(self.generation)
            return self.generation

    def count_on(self, earlier: Generation) -> None:
        self.generation = self.generation.after(earlier)

    def start(self) -> None:
        self._is_running = True

    def stop(self) -> None:
        self._hang("stopping")
        self._is_running = False

    def set_classes(self, names: Sequence[str]) -> Generation:
        self._hang("a change")
        self._break_if_fragile()
        names = names or OWN_CLASSES
        if len(set(names)) != len(names):
            raise VocabularyError(f"classes must be different names, got {list(names)}")
        version = self.generation.vocabulary_version + 1
        return self._renew("vocabulary", class_names=tuple(names), vocabulary_version=version)

    def update(self, *, retrieval: RetrievalConfig | None = None, drift: DriftConfig | None = None) -> Generation:
        self.retrieval, self.drift = retrieval or self.retrieval, drift or self.drift
        return self.generation

    def freeze(self, is_frozen: bool) -> None:
        self._is_frozen = is_frozen

    def _break_if_fragile(self) -> None:
        if self._is_fragile:
            raise RuntimeError("out of memory")

    def reset_adaptation(self) -> Generation:
        self._break_if_fragile()
        self._scene = None
        return self._renew("reset", mix=AdapterMix(), scene_stamp_ns=None)

    def reload_library(self) -> Generation:
        raise LibraryError("library '/nowhere' is no folder")

    def reset_gate(self) -> None:
        self._scene = None

    def status(self) -> PipelineStatus:
        tally = self._tally
        return PipelineStatus(
            engine="costless",
            generation=self.generation,
            frames=tally.frames,
            embeddings=0,
            retrievals=0,
            fusions=self.generation.number,
            recalls=0,
            failures=tally.failures,
            replaced_scenes=0,
            drift=None,
            last_action=tally.last_action,
            last_error=tally.last_error,
            is_frozen=self._is_frozen,
            is_running=self._is_running,
            frame_latency_ms=tally.frame_latency.summary(),
            adaptation_latency_ms={},
            library_size=2,
            library_problems={"broken": "adapter 'broken': adapter_model.safetensors is truncated"},
            adapted_weights_bytes=0,
            resident_adapters=(),
        )

    def close(self) -> None:
        self.stop()


def main() -> None:
    from semla_ros.nodes.perception import spin
    from semla_ros.nodes.perception_node import PerceptionNode
    from semla_ros.serving.memory import keep_large_blocks

    if not os.environ.get("TEST_WITHOUT_MALLOC_TUNING"):
        keep_large_blocks()

    def make() -> PerceptionNode:
        node = PerceptionNode(load=CostlessPipeline)  # type: ignore[arg-type]
        if seconds := os.environ.get("TEST_MAKING_TAKES_S"):
            print("now hanging: making", flush=True)
            time.sleep(float(seconds))
        return node

    spin(make)


if __name__ == "__main__":
    sys.exit(main())
