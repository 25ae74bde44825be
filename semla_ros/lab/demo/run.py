"""The demo from start to end: render the drive, replay it to the real node, judge what came back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import ConfigError
from semla_ros.lab.demo.demo_bag import DRIVE_S, DemoBagOptions, record_demo_bag
from semla_ros.lab.demo.live_table import LiveTable
from semla_ros.lab.demo.verdict import Leaders, judge
from semla_ros.lab.replay.comparison import ReplayVariant
from semla_ros.lab.replay.run import SUMMARY, Replay, ReplayOptions, write_json
from semla_ros.lab.report.progress import progress
from semla_ros.serving.model_bank import load_pipeline

FAST_SPEED = 5.0  # of a fast drive, times real time
CAMERA = "front"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Checked options of `semla demo`.

    Attributes:
        out: Folder for the results.
        is_fast: Play the drive five times as fast, with images as much farther apart: what decides about adaptation
            goes by image stamps, so the node follows as it does in the full drive.
        seed: Street, traffic and noise.
        rate_hz: Images per second; 0 = by the number of processor cores.
        duration_s: Length of the drive.
        width: Of the images, pixels.
        height: Likewise.
        model: Model id or path.
        library: Adapter library folder; empty = the model's own.
    """

    out: Path = Path("out/demo")
    is_fast: bool = False
    seed: int = 7
    rate_hz: float = 0.0
    duration_s: float = DRIVE_S
    width: int = 256
    height: int = 192
    model: str = SemlaConfig.model
    library: str = ""

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("rate-hz", self.rate_hz, 0, 60),
            ("duration-s", self.duration_s, 1, 3600),
        ):
            if not least <= value <= most:
                raise ConfigError(f"--{name} must be {least} to {most}, got {value:g}")
        _ = self.drive  # checks the others

    @property
    def speed(self) -> float:
        """Of the player, times real time."""
        return FAST_SPEED if self.is_fast else 1.0

    @property
    def drive(self) -> DemoBagOptions:
        """What is rendered.

        On one core a frame of the tiny model takes about 60 ms, once in the node and once for the comparison, so 5 Hz
        leaves two cores room for the rest.
        """
        rate_hz = (self.rate_hz or (5.0 if usable_cores() <= 2 else 8.0 if usable_cores() <= 4 else 10.0)) / self.speed
        return DemoBagOptions(
            frames=max(1, round(self.duration_s * rate_hz)),
            seed=self.seed,
            rate_hz=rate_hz,
            cameras=(CAMERA,),
            width=self.width,
            height=self.height,
        )

    @property
    def replay(self) -> ReplayOptions:
        """How it is replayed.

        Node and comparison have half the cores each: where the threads of one model have to wait for a core, all wait
        for the last. On two cores with other work, a frame took 60 ms with one thread and seconds with two.
        """
        inference = InferenceConfig(threads=max(1, usable_cores() // 2))
        return ReplayOptions(
            config=SemlaConfig(model=self.model, library=self.library, inference=inference),
            rate="live",
            speed=self.speed,
            with_bag=False,
            with_video=True,
            with_pictures=True,
        )


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_demo(settings: DemoSettings, console: Console) -> dict[str, Any]:
    """Run it; returns what `summary.json` holds: that of the replay, with the checks and whether all "passed".

    Files are written to `settings.out`. An interrupt keeps what was done so far; nothing is judged then.

    Args:
        settings: What to do.
        console: Where table, progress and hints go.

    Raises:
        SemlaError: The node failed or stopped answering; the message says why.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    families: dict[str, str] = {}
    leaders = Leaders(families)
    table = LiveTable(console, settings.duration_s)
    with TemporaryDirectory(prefix=".drive-", dir=settings.out) as folder:
        bag = Path(folder) / "drive"
        make_node = _node_maker(bag, settings)
        _record(bag, settings, console)

        def make_runner(variant: ReplayVariant, cameras: Sequence[str], resources: ExitStack) -> Any:
            runner = make_node(variant, cameras, resources)
            if runner is not None:
                table.node = runner
                environment = f"ROS_DOMAIN_ID={runner.domain} ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST"
                console.print(
                    f"To look in from another terminal: {environment} semla status", highlight=False, soft_wrap=True
                )
            return runner

        def load(config: SemlaConfig) -> Any:
            pipeline = load_pipeline(config)
            library = pipeline.library
            families.update({name: library.entry(name).family or name for name in library.names})
            return pipeline

        def watch(item: Any, seconds: float, outcomes: Any, scores: Any) -> None:
            table.watch(item, seconds, outcomes, scores)
            leaders.add(item.segment, outcomes["semla"].generation.mix.heaviest)

        replay = Replay(bag, settings.out, settings.replay, load=load, make_runner=make_runner, watch=watch)
        with table:
            summary = replay.run()
    checks = [] if summary["interrupted"] else judge(summary, leaders.fractions(), is_fast=settings.is_fast)
    summary |= {
        "passed": bool(checks) and all(check.passed for check in checks),
        "checks": [asdict(check) for check in checks],
        "right_adapter_led": leaders.fractions(),
        "drive": {**asdict(settings.drive), "speed": settings.speed},
    }
    write_json(settings.out / SUMMARY, summary)
    return summary


def _record(bag: Path, settings: DemoSettings, console: Console) -> None:
    with progress(console, stays=console.is_terminal) as bars:
        task = bars.add_task("rendering the drive", total=settings.drive.frames)
        record_demo_bag(
            bag, settings.drive, jobs=usable_cores(), progress=lambda done: bars.update(task, completed=done)
        )


def _node_maker(bag: Path, settings: DemoSettings) -> Any:
    try:
        from semla_ros.lab.replay.live_node import make_runner  # the one place where the demo meets ROS
    except ImportError as error:
        raise ConfigError(f"the demo needs ROS 2 (rclpy): {error}; requirements-ros.txt has it as wheels") from None
    return make_runner(bag, settings.replay, settings.out)
