"""The demo's figures as one JSON document."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semla_ros import __version__
from semla_ros.lab.demo.live_table import latencies_ms
from semla_ros.lab.demo.recording import Recording, shares_of
from semla_ros.lab.demo.score import DriveScore, class_table
from semla_ros.lab.demo.settings import DemoSettings
from semla_ros.lab.demo.verdict import Check, judge

NOT_RECEIVED = "not received by the node"
UNTAKEN = ("overtaken", "disabled", "stopped")  # reasons for which the node drops an image before it starts on it
PACKAGES = ("torch", "numpy", "open_clip_torch", "peft", "opencv-python-headless", "ros-jazzy-rclpy", "rclpy")


class Flow:
    """What became of the frames on their way through the node.

    Attributes:
        sent: Frames that the camera published.
        received: Of these, seen by the node.
        taken: Of these, started on (not overtaken by a newer one while they waited).
        masks: Masks that came back.
        answered: Of these, with the identical stamp and frame_id of an image.
        dropped: Reason -> frames that got no mask.
    """

    def __init__(self, recording: Recording) -> None:
        frames, diagnostics = recording.frames(), recording.diagnostics
        seen = sum(frame.image_s is not None for frame in frames)
        self.sent = seen if recording.frames_sent is None else recording.frames_sent
        self.masks = sum(frame.mask_s is not None for frame in frames)
        self.answered = sum(frame.is_answered for frame in frames)
        # Diagnostics come once a second; what the node has answered it has received, whatever they say.
        self.received = max(diagnostics.count("camera: Images received"), self.masks)
        reasons = diagnostics.dropped()
        self.taken = max(self.received - sum(reasons.get(reason, 0) for reason in UNTAKEN), self.masks)
        lost = max(0, self.sent - self.received)
        self.dropped = {**reasons, **({NOT_RECEIVED: lost} if lost else {})}


def make_summary(
    settings: DemoSettings, recording: Recording, score: DriveScore, class_names: Sequence[str]
) -> tuple[dict[str, Any], list[Check]]:
    """Everything measured, as summary.json holds it, and the checks made on it.

    Args:
        settings: What was asked for.
        recording: What the monitor collected.
        score: The drive.
        class_names: Classes of the truth.
    """
    flow = Flow(recording)
    frames = recording.frames()
    generations = sum(generation.number > 0 for generation in recording.generations)
    checks = judge(
        score=score, answered=flow.answered, taken=flow.taken, generations=generations, is_fast=settings.is_fast
    )
    answered = [frame for frame in frames if frame.is_answered]
    start_ns = frames[0].stamp_ns if frames else 0
    span_s = (answered[-1].stamp_ns - answered[0].stamp_ns) / 1e9 if len(answered) > 1 else 0.0
    summary = {
        "passed": all(check.passed for check in checks),
        "frames_sent": flow.sent,
        "frames_received_by_node": flow.received,
        "frames_taken": flow.taken,
        "masks_received": flow.masks,
        "masks_with_identical_stamp_and_frame_id": flow.answered,
        "frames_dropped": sum(flow.dropped.values()),
        "dropped_by_reason": flow.dropped,
        "mask_rate_hz": (len(answered) - 1) / span_s if span_s else None,
        "generations": generations,
        "latency_ms": _spread(latencies_ms(answered)),
        "node_latency_ms": _node_latency(recording),
        "miou": {
            "base": score.base,
            "adapted": score.adapted,
            "gain": score.gain,
            "over": "mean over the shifted pure segments",
            "all_frames": {"base": score.base_all, "adapted": score.adapted_all},
            "per_segment": {
                segment.name: {
                    "base": segment.base,
                    "adapted": segment.adapted,
                    "frames": segment.frames,
                    "heaviest_adapter_right_fraction": segment.heaviest_adapter_right_fraction,
                }
                for segment in score.segments
            },
            "per_class": {
                name: {"base": base, "adapted": adapted}
                for name, (base, adapted) in class_table(score.frames, class_names).items()
            },
        },
        "mix": [
            {
                "generation": made.number,
                "stamp": None if made.scene_stamp_ns is None else made.scene_stamp_ns / 1e9,
                "seconds": None if made.scene_stamp_ns is None else (made.scene_stamp_ns - start_ns) / 1e9,
                "reason": made.reason,
                "weights": shares_of(made),
            }
            for made in recording.generations
        ],
        "checks": [
            {"name": check.name, "passed": check.passed, "relaxed": check.is_relaxed, "sentence": check.sentence}
            for check in checks
        ],
        "settings": {
            "fast": settings.is_fast,
            "seed": settings.seed,
            "rate_hz": settings.camera_rate_hz,
            "size": [settings.width, settings.height],
            "duration_s": settings.duration_s,
            "model": Path(settings.model).name,
            "library": Path(settings.library).name,
        },
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    return _finite(summary), checks


def describe_machine() -> dict[str, Any]:
    """Processor, cores and system, as a reader of a figure needs them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}


def describe_versions() -> dict[str, str]:
    """Versions of this package, Python and what the figures depend on."""
    versions = {"semla_ros": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # ROS comes as wheels or from the distribution, under different names
    return versions | {name: os.environ[name] for name in ("ROS_DISTRO", "RMW_IMPLEMENTATION") if os.environ.get(name)}


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p95, largest = np.percentile(values, (50, 95, 100))
    return {"p50": round(float(p50), 2), "p95": round(float(p95), 2), "max": round(float(largest), 2)}


def _node_latency(recording: Recording) -> dict[str, dict[str, float]]:
    """By stage, as the node reports it: {"total": {"p50": ...}}."""
    stages: dict[str, dict[str, float]] = {}
    for key in recording.diagnostics.values:
        what, _, rest = key.partition(": Latency ")
        value = recording.diagnostics.number(key)
        if what == "camera" and rest and value is not None:
            stage, figure = rest.removesuffix(" (ms)").rsplit(" ", 1)
            stages.setdefault(stage, {})[figure] = value
    return stages


def _finite(value: Any) -> Any:
    """The same with NaN as None, which JSON knows."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
