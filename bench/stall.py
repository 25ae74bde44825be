"""What changing the model costs the frames: latencies with and without fusions at 2 Hz beside them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.random_world import Size, random_parts
from bench.timing import Timing
from semla_ros.config import DriftConfig, InferenceConfig
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import Frame, Generation

FUSIONS_HZ = 2.0
# Every scene embedding counts as a change: fusions come as fast as the rate lets them.
ALWAYS_DRIFTING = DriftConfig(
    retrieval_rate_hz=FUSIONS_HZ, drift_threshold=1e-9, release_threshold=0.0, min_dwell_s=0.0, smoothing_s=0.0
)


def measure(size: Size, seconds: float = 20.0) -> dict[str, object]:
    """Figures for `stall`: those of the CPU, and on a machine with a GPU the same for it below `gpu`."""
    figures = measure_on("cpu", size, seconds)
    if torch.cuda.is_available():
        figures["gpu"] = measure_on("cuda", size, seconds)
    return figures


def measure_on(device: str, size: Size, seconds: float) -> dict[str, object]:
    """Run frames back to back, first alone, then with the adaptation thread fusing."""
    with tempfile.TemporaryDirectory() as folder:
        inference = InferenceConfig(device=device)
        pipeline = PerceptionPipeline(random_parts(size, Path(folder), inference=inference, drift=ALWAYS_DRIFTING))
        made: list[Generation] = []
        pipeline.on_generation.append(made.append)
        scenes = [_scene(seed) for seed in range(8)]
        _frames(pipeline, scenes, min(1.0, seconds), is_adapting=False)
        alone = _frames(pipeline, scenes, seconds, is_adapting=False)
        pipeline.start()
        _frames(pipeline, scenes, min(1.0, seconds), is_adapting=True)
        made.clear()
        start = time.perf_counter()
        beside = _frames(pipeline, scenes, seconds, is_adapting=True)
        elapsed_s = time.perf_counter() - start
        pipeline.stop()
        commit = pipeline.status().adaptation_latency_ms["commit"]
        prepare = pipeline.status().adaptation_latency_ms["prepare"]
        pipeline.close()
    return {
        "alone": alone.as_dict(),
        "with_fusions": beside.as_dict(),
        "fusions": len(made),
        "fusions_hz": len(made) / elapsed_s,
        "commit_p50_ms": commit.p50,
        "commit_max_ms": commit.max,
        "prepare_p50_ms": prepare.p50,
        "commit_over_median_frame": commit.max / alone.median,
        "p99_ratio": beside.percentile(99) / alone.percentile(99),
        "histogram_ms": {"alone": _histogram(alone), "with_fusions": _histogram(beside)},
    }


def _scene(seed: int) -> np.ndarray:
    """Noise around a mean colour of its own, so that scene embeddings differ."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(rng.integers(30, 225, 3), 25, (192, 256, 3)), 0, 255).astype(np.uint8)


def _frames(pipeline: PerceptionPipeline, scenes: list[np.ndarray], seconds: float, *, is_adapting: bool) -> Timing:
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
    return Timing(tuple(samples))


def _histogram(timing: Timing) -> dict[str, list[float]]:
    counts, edges = np.histogram(timing.samples_ms, bins=40)
    return {"counts": counts.tolist(), "edges_ms": edges.tolist()}
