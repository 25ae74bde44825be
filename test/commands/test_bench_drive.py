"""What a drive is scored by, on a pipeline whose answers are known."""

from types import SimpleNamespace

import numpy as np
from toy_world import CLASSES

from bench.drive import DriveFrame, drive_settings, follow_drive, render_drive
from semla_ros.config import DriftConfig
from semla_ros.lab.world.conditions import Conditions
from semla_ros.lab.world.drive import drive_through


class ToyPipeline:
    """Fuses on every frame that its settings let through; right wherever a mix is in use."""

    def __init__(self) -> None:
        self.class_names = CLASSES
        self.is_frozen = False
        self.has_mix = False
        self.drift = DriftConfig()

    def freeze(self, is_frozen: bool) -> None:
        self.is_frozen = is_frozen

    def update(self, *, drift: DriftConfig) -> None:
        self.drift = drift

    def reset_adaptation(self) -> None:
        self.has_mix = False

    def reset_gate(self) -> None:
        pass

    def process(self, frame):
        fuses = not self.is_frozen and (self.drift.drift_threshold < 1e-6 or not self.has_mix)
        self.has_mix = self.has_mix or fuses
        names = ("fog",) if self.has_mix else ()
        mask = frame.image[..., 0] if self.has_mix else (frame.image[..., 0] + 1) % len(CLASSES)
        step = SimpleNamespace(action="fused" if fuses else "steady", drift=None if self.is_frozen else 0.1)
        generation = SimpleNamespace(mix=SimpleNamespace(names=names))
        return SimpleNamespace(mask=mask.astype(np.uint8), generation=generation), step


def test_a_drive_is_scored_per_setting_with_fusions_and_changes() -> None:
    rng = np.random.default_rng(0)
    frames = []
    for index in range(6):
        labels = rng.integers(0, len(CLASSES), (6, 8)).astype(np.uint8)
        frames.append(
            DriveFrame(
                stamp_ns=index,
                image=np.dstack([labels] * 3),
                labels=labels,
                segment="fog" if index < 4 else "",
            )
        )
    settings = drive_settings(DriftConfig())
    report = follow_drive(ToyPipeline(), frames, settings)
    assert list(report) == list(settings)
    assert report["base model"]["miou"] == 0.0
    assert report["base model"]["fusions"] == report["base model"]["embeddings"] == 0
    assert report["every frame"]["fusions"] == 6
    assert report["drift gate"]["fusions"] == 1
    assert report["drift gate"]["flips"] == 1
    assert report["drift gate"]["segments"] == {"fog": 1.0}
    assert report["drift gate"]["transitions"] == 1.0


def test_drive_settings_switch_smoothing_and_hysteresis_apart() -> None:
    settings = drive_settings(DriftConfig(smoothing_s=0.7, drift_threshold=0.2, release_threshold=0.05))
    gate, smoothed, whole = (
        settings[name] for name in ("drift gate", "drift gate, smoothed", "drift gate, smoothed, hysteresis")
    )
    assert (gate.smoothing_s, gate.release_threshold) == (0.0, 0.2)
    assert (smoothed.smoothing_s, smoothed.release_threshold) == (0.7, 0.2)
    assert (whole.smoothing_s, whole.release_threshold) == (0.7, 0.05)


def test_a_rendered_drive_knows_its_segments() -> None:
    segments = [("clear", Conditions()), ("fog", Conditions(fog=0.9))]
    drive = drive_through(segments, city="boulevard", seed=3, pure_s=1.0, transition_s=1.0)
    frames = render_drive(drive, rate_hz=2.0, width=32, height=24)
    assert [frame.segment for frame in frames] == ["clear", "clear", "clear", "", "fog", "fog"]
    assert [frame.stamp_ns for frame in frames] == [500_000_000 * index for index in range(6)]
