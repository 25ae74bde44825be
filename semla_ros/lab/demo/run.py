"""The demo from start to end: render the drive, replay it to the real node, judge what came back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import ConfigError, counted
from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.demo.demo_bag import DemoBagOptions, record_demo_bag
from semla_ros.lab.demo.live_line import LiveLine
from semla_ros.lab.demo.verdict import Leaders, judge, told
from semla_ros.lab.replay.comparison import ReplayVariant
from semla_ros.lab.replay.run import SUMMARY, Replay, ReplayOptions, write_json
from semla_ros.lab.replay.runners import Outcome
from semla_ros.lab.replay.scores import FrameScore
from semla_ros.lab.report.progress import progress
from semla_ros.serving.model_bank import load_pipeline

if TYPE_CHECKING:
    from semla_ros.pipeline import PerceptionPipeline

FAST_SPEED = 5.0  # of a fast drive, times real time


def drive_options(rate_hz: float, duration_s: float, speed: float, **others: Any) -> DemoBagOptions:
    """What is rendered.

    Args:
        rate_hz: Images per second as they are played; 0 = by the number of processor cores. On one core a frame of the
            tiny model takes about 60 ms, once in the node and once for the comparison: 5 Hz leave two cores some room.
        duration_s: Length of the drive.
        speed: It is played so many times as fast, with images as much farther apart: what decides about adaptation
            goes by image stamps, so that the node follows as it does at 1.
        others: Further ones of `DemoBagOptions`.

    Raises:
        ConfigError: A value is out of range.
    """
    for name, value, least, most in (("rate-hz", rate_hz, 0, 60), ("duration-s", duration_s, 1, 3600)):
        if not least <= value <= most:
            raise ConfigError(f"--{name} must be {least} to {most}, got {value:g}")
    cores = usable_cores()
    rate_hz = (rate_hz or (5.0 if cores <= 2 else 8.0 if cores <= 4 else 10.0)) / speed
    frames = max(1, round(duration_s * rate_hz))
    return DemoBagOptions(frames=frames, rate_hz=rate_hz, cameras=("front",), **others)


def replay_options(model: str, library: str, speed: float) -> ReplayOptions:
    """How it is replayed.

    Node and comparison have half the cores each: where the threads of one model have to wait for a core, all wait for
    the last. On two cores with other work, a frame took 60 ms with one thread and seconds with two.
    """
    inference = InferenceConfig(threads=max(1, usable_cores() // 2))
    config = SemlaConfig(model=model, library=library, inference=inference)
    return ReplayOptions(
        config=config, rate="live", speed=speed, with_bag=False, with_video=True, with_pictures=True
    )  # fmt: skip


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_demo(out: Path, drive: DemoBagOptions, options: ReplayOptions, console: Console) -> dict[str, Any]:
    """Run it; returns what `summary.json` holds: that of the replay, with the checks and whether it "passed".

    An interrupt keeps what was done so far; nothing is judged then.

    Args:
        out: Folder for the results.
        drive: See `drive_options`.
        options: See `replay_options`.
        console: Where progress and hints go.

    Raises:
        SemlaError: The node failed or stopped answering; the message says why.
    """
    out.mkdir(parents=True, exist_ok=True)
    families: dict[str, str] = {}
    leaders, line = Leaders(families), LiveLine(console, drive.duration_s)
    with TemporaryDirectory(prefix=".drive-", dir=out) as folder:
        bag = Path(folder) / "drive"
        make_node = _node_maker(bag, options, out)

        def make_runner(variant: ReplayVariant, cameras: Sequence[str], resources: ExitStack) -> Any:
            runner = make_node(variant, cameras, resources)
            if runner is not None:
                environment = f"ROS_DOMAIN_ID={runner.domain} ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST"
                hint = f"To look in from another terminal: {environment} semla status"
                console.print(hint, highlight=False, soft_wrap=True)
            return runner

        def load(config: SemlaConfig) -> PerceptionPipeline:
            pipeline = load_pipeline(config)
            library = pipeline.library
            families.update({name: library.entry(name).family or name for name in library.names})
            return pipeline

        def watch(
            item: ReplayFrame, seconds: float, outcomes: Mapping[str, Outcome], scores: Mapping[str, FrameScore]
        ) -> None:
            line.watch(item, seconds, outcomes, scores)
            leaders.add(item.segment, outcomes["semla"].generation.mix.heaviest)

        _record(bag, drive, console)
        with line:
            summary = Replay(bag, out, options, load=load, make_runner=make_runner, watch=watch).run()
    right = leaders.fractions()
    checks = [] if summary["interrupted"] else judge(summary, right, is_fast=options.speed > 1)
    summary |= {
        **told(checks),
        "right_adapter_led": right,
        "drive": {**asdict(drive), "speed": options.speed},
    }
    write_json(out / SUMMARY, summary)
    return summary


def _record(bag: Path, drive: DemoBagOptions, console: Console) -> None:
    console.print(f"rendering {counted(drive.frames, 'image')} of a drive of {drive.duration_s:.0f} s", highlight=False)
    with progress(console, stays=console.is_terminal) as bars:
        task = bars.add_task("rendering the drive", total=drive.frames)
        record_demo_bag(bag, drive, jobs=usable_cores(), progress=lambda done: bars.update(task, completed=done))


def _node_maker(bag: Path, options: ReplayOptions, out: Path) -> Any:
    from semla_ros.lab.replay.live_node import make_runner  # the one place where the demo meets ROS

    return make_runner(bag, options, out)
