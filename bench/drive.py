"""What smoothing and hysteresis are worth over a continuous drive, where scenes follow each other.

    python -m bench.drive --seeds 7 8 --rate-hz 4 --json out/drive.json

Model and library are chosen as in `semla evaluate`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from rich.table import Table

from semla_ros.commands import evaluate
from semla_ros.config import DriftConfig
from semla_ros.errors import ConfigError, SemlaError
from semla_ros.lab.evaluation.aggregate import number
from semla_ros.lab.evaluation.miou import MiouMeter
from semla_ros.lab.report.progress import progress
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.drive import Drive, demo_drive
from semla_ros.results import BASE_MODEL, AdaptationStep, Frame, ImageArray, MaskArray, Segmentation

EVERY_FRAME_HZ = 1000.0


class Adapts(Protocol):
    """What a drive needs of a pipeline."""

    @property
    def class_names(self) -> Sequence[str]:
        """The vocabulary."""

    def process(self, frame: Frame) -> tuple[Segmentation, AdaptationStep]:
        """Adapt, then segment."""

    def update(self, *, drift: DriftConfig) -> Any:
        """Change the drift gate's settings."""

    def reset_adaptation(self) -> Any:
        """Return to the base model."""

    def reset_gate(self) -> None:
        """Forget drift."""

    def freeze(self, is_frozen: bool) -> None:
        """Keep the present mix."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DriveFrame:
    """One rendered frame with its truth.

    Attributes:
        stamp_ns: Time in the drive.
        image: RGB, shape (H, W, 3), uint8.
        labels: Class index per pixel, shape (H, W), uint8.
        segment: Domain of the pure segment; "" within a transition.
    """

    stamp_ns: int
    image: ImageArray
    labels: MaskArray
    segment: str


def drive_settings(drift: DriftConfig) -> dict[str, DriftConfig | None]:
    """The ways of following a drive that are compared; None stands for the base model throughout."""
    each = replace(
        drift,
        retrieval_rate_hz=EVERY_FRAME_HZ,
        drift_threshold=1e-9,
        release_threshold=0.0,
        min_dwell_s=0.0,
        smoothing_s=0.0,
    )
    return {
        BASE_MODEL: None,
        "every frame": each,
        "every frame, smoothed": replace(each, smoothing_s=drift.smoothing_s),
        "drift gate": replace(drift, smoothing_s=0.0, release_threshold=drift.drift_threshold),
        "drift gate, smoothed": replace(drift, release_threshold=drift.drift_threshold),
        "drift gate, smoothed, hysteresis": drift,
    }


def render_drive(
    drive: Drive,
    *,
    rate_hz: float,
    width: int = 256,
    height: int = 192,
    on_progress: Callable[[int], None] | None = None,
) -> list[DriveFrame]:
    """All frames of a drive at a fixed rate."""
    frames = []
    for index in range(int(drive.duration_s * rate_hz)):
        time_s = index / rate_hz
        scene = drive.render(time_s, width, height)
        frames.append(
            DriveFrame(
                stamp_ns=round(time_s * 1e9),
                image=scene.image,
                labels=scene.mask,
                segment=drive.segment_name(time_s),
            )
        )
        if on_progress:
            on_progress(1)
    return frames


def follow_drive(
    pipeline: Adapts,
    frames: Sequence[DriveFrame],
    settings: Mapping[str, DriftConfig | None],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Drive once per setting.

    Returns:
        Setting -> {"miou", "transitions" (mIoU within them), "segments" (domain -> mIoU), "embeddings", "fusions",
        "flips" (changes of the heaviest adapter)}, mIoU in 0..1.
    """
    report = {}
    for name, drift in settings.items():
        pipeline.freeze(False)
        if drift is not None:
            pipeline.update(drift=drift)
        pipeline.reset_gate()
        pipeline.reset_adaptation()
        pipeline.freeze(drift is None)
        report[name] = _follow(pipeline, frames, on_progress)
    pipeline.freeze(False)
    return report


def _follow(
    pipeline: Adapts, frames: Sequence[DriveFrame], on_progress: Callable[[int], None] | None
) -> dict[str, Any]:
    count = len(pipeline.class_names)
    whole, transitions = MiouMeter(count), MiouMeter(count)
    segments: dict[str, MiouMeter] = {}
    fusions = embeddings = flips = 0
    heaviest = ""
    for frame in frames:
        segmentation, step = pipeline.process(Frame(image=frame.image, stamp_ns=frame.stamp_ns))
        embeddings += step.drift is not None
        fusions += step.action == "fused"
        names = segmentation.generation.mix.names
        now = names[0] if names else ""
        flips += now != heaviest
        heaviest = now
        whole.add(frame.labels, segmentation.mask)
        part = segments.setdefault(frame.segment, MiouMeter(count)) if frame.segment else transitions
        part.add(frame.labels, segmentation.mask)
        if on_progress:
            on_progress(1)
    return {
        "miou": number(whole.mean),
        "transitions": number(transitions.mean),
        "segments": {name: number(meter.mean) for name, meter in segments.items()},
        "embeddings": embeddings,
        "fusions": fusions,
        "flips": flips,
    }


def drive_table(report: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table for rich."""
    table = Table(
        title="one drive (mIoU %)", title_justify="left", header_style="bold", show_edge=False, pad_edge=False
    )
    for column in ("adaptation", "mIoU", "in transitions", "embeddings", "fusions", "changes of heaviest"):
        table.add_column(column, justify="left" if column == "adaptation" else "right")
    for name, row in report.items():
        scores = ("-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("miou", "transitions"))
        table.add_row(name, *scores, str(row["embeddings"]), str(row["fusions"]), str(row["flips"]))
    return table


def run(options: Sequence[str]) -> dict[str, Any]:
    """Drive and print the tables.

    Raises:
        SemlaError: An option, the model or the library cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    evaluate.add_arguments(parser)
    parser.add_argument("--rate-hz", type=float, default=4.0, metavar="HZ", help="frames per second; default: 4")
    arguments = parser.parse_args(options)
    evaluate.check(arguments)
    if not 0 < arguments.rate_hz <= 100:
        raise ConfigError(f"'--rate-hz' must be above 0 and at most 100, got {arguments.rate_hz}")
    spec = evaluate.make_spec(arguments)
    pipeline, drift = spec.load_pipeline(CLASS_NAMES)
    settings = drive_settings(drift)
    drives: dict[str, dict[str, Any]] = {}
    try:
        for seed in arguments.seeds:
            drive = demo_drive(seed)
            count = int(drive.duration_s * arguments.rate_hz)
            with progress() as bars:
                advance = partial(bars.advance, bars.add_task("rendering", total=count))
                frames = render_drive(drive, rate_hz=arguments.rate_hz, on_progress=advance)
                advance = partial(bars.advance, bars.add_task("driving", total=count * len(settings)))
                drives[str(seed)] = follow_drive(pipeline, frames, settings, on_progress=advance)
    finally:
        pipeline.close()
    evaluate.print_tables([drive_table(item) for item in drives.values()])
    report = {"rate_hz": arguments.rate_hz, "seeds": arguments.seeds, "drives": drives}
    if arguments.json:
        evaluate.write_json(report, arguments.json)
    return report


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except SemlaError as error:
        sys.exit(f"error: {error}")
