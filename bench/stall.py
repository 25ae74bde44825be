"""What changing the model costs the frames: latencies with and without fusions at 2 Hz beside them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from bench.random_world import Size, random_parts
from bench.timing import Timing
from semla_ros.config import DriftConfig, InferenceConfig, SemlaConfig
from semla_ros.lab.world.drive import demo_drive
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import Frame, Generation
from semla_ros.timing import LatencySummary

SHIPPED = "semla-tiny"
SCENES = 9  # one for each weather of the drive
FUSIONS_HZ = 2.0
CAMERA_HZ = 30.0
TURNS = 4  # of each kind, so that whatever else the machine does meets both alike
SETTLE_S = 0.5
PATIENCE_S = 120.0  # for the first fusion of a turn, on a machine however busy
# Every scene embedding changes the mix: fusions come as fast as the rate lets them.
ALWAYS_DRIFTING = DriftConfig(
    retrieval_rate_hz=FUSIONS_HZ, mix_threshold=0.0, steady_s=0.0, max_fusions_per_min=60 * FUSIONS_HZ * 10
)


def measure(size: Size, seconds: float = 20.0, device: str = "cpu") -> dict[str, object]:
    """Figures for `stall`: frames back to back, in turns alone and with the adaptation thread fusing beside them."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = _pipeline(device, size, Path(folder))
        made: list[Generation] = []
        pipeline.on_generation.append(made.append)
        scenes = _scenes()
        alone: list[float] = []
        beside: list[float] = []
        fusions, fusing_s = 0, 0.0
        pipeline.start()
        _frames(pipeline, scenes, min(2.0, seconds), is_adapting=True)
        for _ in range(TURNS):
            _frames(pipeline, scenes, min(SETTLE_S, seconds), is_adapting=False)  # a fusion may be under way
            alone += _frames(pipeline, scenes, seconds / TURNS, is_adapting=False)
            made.clear()
            start = time.perf_counter()
            beside += _frames_beside_a_fusion(pipeline, scenes, seconds / TURNS, made)
            fusing_s += time.perf_counter() - start
            fusions += _fusions(made)
        pipeline.stop()
        commit = pipeline.status().adaptation_latency_ms["commit"]
        prepare = pipeline.status().adaptation_latency_ms["prepare"]
        pipeline.close()
    return _figures(Timing(tuple(alone)), Timing(tuple(beside)), commit, prepare) | {
        "model": SHIPPED if size == "tiny" else "random weights",
        "fusions": fusions,
        "fusions_hz": fusions / fusing_s,
    }


def _figures(alone: Timing, beside: Timing, commit: LatencySummary, prepare: LatencySummary) -> dict[str, object]:
    return {
        "alone": alone.as_dict(),
        "with_fusions": beside.as_dict(),
        "commit_p50_ms": commit.p50,
        "commit_max_ms": commit.max,
        "prepare_p50_ms": prepare.p50,
        "commit_over_median_frame": commit.max / alone.median,
        "p99_ratio": beside.percentile(99) / alone.percentile(99),
        "frames_late_for_a_camera": sum(ms > 1e3 / CAMERA_HZ for ms in beside.samples_ms),
        "histogram_ms": {"alone": _histogram(alone), "with_fusions": _histogram(beside)},
    }


def _pipeline(device: str, size: Size, folder: Path) -> PerceptionPipeline:
    """The shipped model with its library at its own size; random weights at the others."""
    inference = InferenceConfig(device=device)
    if size == "tiny":
        return PerceptionPipeline.load(SemlaConfig(model=SHIPPED, inference=inference, drift=ALWAYS_DRIFTING))
    return PerceptionPipeline(random_parts(size, folder, inference=inference, drift=ALWAYS_DRIFTING))


def _scenes() -> list[np.ndarray]:
    """A street in one weather after the other, so that each scene embedding asks for another mix."""
    drive = demo_drive(7)
    return [drive.render(drive.duration_s * (index + 0.5) / SCENES).image for index in range(SCENES)]


def _frames(
    pipeline: PerceptionPipeline, scenes: list[np.ndarray], seconds: float, *, is_adapting: bool
) -> list[float]:
    """Milliseconds of each frame, waiting for a swap included, at least two frames."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 2 or time.perf_counter() < end:
        stamp_ns = time.monotonic_ns()
        frame = Frame(image=scenes[stamp_ns // 500_000_000 % len(scenes)], stamp_ns=stamp_ns)
        if is_adapting:
            pipeline.offer(frame)
        start = time.perf_counter()
        pipeline.segment(frame)
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def _frames_beside_a_fusion(
    pipeline: PerceptionPipeline, scenes: list[np.ndarray], seconds: float, made: list[Generation]
) -> list[float]:
    """Milliseconds of each frame, for `seconds` and until a fusion came: without one there is nothing to compare.

    Raises:
        RuntimeError: no fusion within two minutes.
    """
    samples = _frames(pipeline, scenes, seconds, is_adapting=True)
    end = time.perf_counter() + PATIENCE_S
    while not _fusions(made):
        if time.perf_counter() > end:
            raise RuntimeError(f"no fusion in {PATIENCE_S:g} s, though each scene asks for another mix")
        samples += _frames(pipeline, scenes, 0.0, is_adapting=True)
    return samples


def _fusions(made: list[Generation]) -> int:
    return sum(generation.reason == "drift" for generation in made)


def _histogram(timing: Timing) -> dict[str, list[float]]:
    counts, edges = np.histogram(timing.samples_ms, bins=40)
    return {"counts": counts.tolist(), "edges_ms": edges.tolist()}
