"""A recording of a toy world, and a pipeline that adapts to it: fast, exact, and wrong in known ways."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from semla_ros.config import DriftConfig, RetrievalConfig, SemlaConfig
from semla_ros.lab.bags.writer import BagWriter
from semla_ros.labels import labels_json
from semla_ros.pipeline_status import PipelineStatus
from semla_ros.results import AdaptationStep, AdapterMix, Frame, Generation, Segmentation

CLASSES = ("road", "sky", "car")
DOMAINS = ("clear", "fog", "night", "volcano")  # no adapter covers the last one
ADAPTERS = ("clear", "fog", "night")
SHIFT = {"clear": 0.0, "fog": 40.0, "night": -30.0, "volcano": 70.0}
START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
SHAPE = (24, 32)


def toy_truth(index: int) -> np.ndarray:
    """Sky above road, and a car that moves by a pixel each frame."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[:10] = 1
    truth[12:18, index % 24 : index % 24 + 8] = 2
    return truth


def toy_image(index: int, domain: str) -> np.ndarray:
    """Brightness tells the class, the domain shifts it, and the first pixel tells the domain."""
    noise = np.random.default_rng(index).normal(0, 9, SHAPE)
    grey = np.clip(80 + 50.0 * toy_truth(index) + SHIFT[domain] + noise, 0, 255).astype(np.uint8)
    image = np.repeat(grey[..., None], 3, axis=2)
    image[0, 0] = DOMAINS.index(domain)
    return image


def domain_at(index: int, frames: int) -> str:
    return DOMAINS[min(index * len(DOMAINS) // frames, len(DOMAINS) - 1)]


def write_toy_bag(
    path: Path,
    frames: int = 40,
    *,
    cameras: tuple[str, ...] = ("front",),
    has_truth: bool = True,
    storage: str = "mcap",
    compression: str = "none",
    step_ns: int = STEP_NS,
) -> Path:
    """One stretch per domain."""
    with BagWriter(path, storage=storage, compression=compression) as bag:
        bag.string("/labels", labels_json(CLASSES, 1), START_NS)
        segment = ""
        for index in range(frames):
            stamp_ns, domain = START_NS + index * step_ns, domain_at(index, frames)
            if domain != segment:
                bag.string("/scene/segment", domain, stamp_ns)
                segment = domain
            for number, camera in enumerate(cameras):
                bag.image(f"/{camera}/image", toy_image(index + 7 * number, domain), stamp_ns, f"{camera}_optical")
                if has_truth:
                    bag.image(f"/{camera}/label", toy_truth(index + 7 * number), stamp_ns, f"{camera}_optical")
    return path


class ToyPipeline:
    """Subtracts the shift of the adapters in its mix; looks at the scene twice a second."""

    def __init__(self, config: SemlaConfig | None = None, *, latency_ms: float = 20.0) -> None:
        self.class_names = CLASSES
        self.library = SimpleNamespace(names=ADAPTERS)
        self.drift, self.retrieval = DriftConfig(), RetrievalConfig()
        self.generation = Generation(number=0, mix=AdapterMix(), class_names=CLASSES, vocabulary_version=1)
        self.scene = np.eye(4)[0]
        self.is_closed = False
        self._is_frozen = False
        self._latency_ms = latency_ms
        self._looked_ns: int | None = None
        self._scene = 0

    def freeze(self, is_frozen: bool) -> None:
        self._is_frozen = is_frozen

    def scene_distances(self) -> dict[str, float]:
        mix = self.generation.mix
        return dict(sorted(zip(mix.names, map(float, mix.distances), strict=True), key=lambda item: item[1]))

    def apply_mix(self, mix: AdapterMix, reason: str) -> Generation:
        return self._renew(mix, reason, None)

    def adapt(self, frame: Frame) -> AdaptationStep:
        if self._is_frozen:
            return self._step("frozen", frame)
        if self._looked_ns is not None and 0 <= frame.stamp_ns - self._looked_ns < 500_000_000:
            return self._step("throttled", frame)
        self._looked_ns = frame.stamp_ns
        scene = int(frame.image[0, 0, 0])
        if scene == self._scene and self.generation.number:
            return self._step("steady", frame, drift=0.01)
        self._scene = scene
        is_outside = scene >= len(ADAPTERS)
        nearest = len(ADAPTERS) - 1 if is_outside else scene
        order = sorted(range(len(ADAPTERS)), key=lambda index: abs(index - nearest))
        weights = np.array([0.0, 0.0, 0.0] if is_outside else [0.9, 0.06, 0.04])
        mix = AdapterMix(
            names=tuple(ADAPTERS[index] for index in order),
            weights=weights,
            distances=np.array([0.2 + abs(index - scene) for index in order]),
            base_weight=1.0 if is_outside else 0.0,
            is_out_of_library=is_outside,
        )
        self._renew(mix, "drift", frame.stamp_ns)
        return self._step("fused", frame, drift=0.4, mix=mix)

    def segment(self, frame: Frame, want_confidence: bool = True) -> Segmentation:
        correction = sum(SHIFT[name] * weight for name, weight in self.generation.mix.as_dict().items())
        value = (frame.image[..., 0] - 80.0 - correction) / 50.0
        mask = np.clip(np.round(value), 0, 2).astype(np.uint8)
        confidence = (255 * np.clip(1 - np.abs(value - mask), 0, 1)).astype(np.uint8)
        return Segmentation(
            mask=mask,
            confidence=confidence if want_confidence else None,
            generation=self.generation,
            stamp_ns=frame.stamp_ns,
            camera=frame.camera,
            frame_id=frame.frame_id,
            latency_ms={"forward": self._latency_ms - 1, "total": self._latency_ms},
        )

    def status(self) -> PipelineStatus:
        counts = {item.name: 0 for item in fields(PipelineStatus) if item.default is MISSING}
        names = {"engine": "toy", "last_action": "", "last_error": "", "library_problems": {}, "resident_adapters": ()}
        latencies = {"frame_latency_ms": {}, "adaptation_latency_ms": {}}
        return PipelineStatus(**{**counts, **names, **latencies, "generation": self.generation})

    def close(self) -> None:
        self.is_closed = True

    def _renew(self, mix: AdapterMix, reason: str, scene_stamp_ns: int | None) -> Generation:
        self.generation = Generation(
            number=self.generation.number + 1,
            mix=mix,
            class_names=CLASSES,
            vocabulary_version=1,
            scene_stamp_ns=scene_stamp_ns,
            reason=reason,
        )
        return self.generation

    def _step(self, action: str, frame: Frame, **values: object) -> AdaptationStep:
        latency = {"embed": 2.0} if action in ("steady", "fused") else {}
        return AdaptationStep(
            action=action, stamp_ns=frame.stamp_ns, generation=self.generation, latency_ms=latency, **values
        )
