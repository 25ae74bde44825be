"""The demo from start to end: start the nodes, watch the drive, compare, draw, judge."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live

from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import SemlaError
from semla_ros.lab.demo.base_model import BaseModel, LiveComparison
from semla_ros.lab.demo.frame_store import FrameStore
from semla_ros.lab.demo.live_table import observe, render, status_line
from semla_ros.lab.demo.nodes import has_ros2_command, start_nodes
from semla_ros.lab.demo.recording import Recording
from semla_ros.lab.demo.score import DriveScore, compare_masks, score_drive
from semla_ros.lab.demo.settings import DemoSettings
from semla_ros.lab.demo.verdict import Check
from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.lab.processes import Children
from semla_ros.lab.report.progress import progress
from semla_ros.lab.world.classes import CLASS_NAMES, PALETTE

logger = logging.getLogger(__name__)

READY_TIMEOUT_S = 180.0  # a cold start on a slow machine imports torch and loads the model
SILENCE_TIMEOUT_S = 20.0  # no frame for so long during the drive: something is stuck
VIDEO_PANEL_WIDTH = 480


class DemoError(SemlaError):
    """The demo could not be run to its end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoOutcome:
    """What a run measured.

    Attributes:
        summary: What stands in summary.json.
        checks: The promises and whether they were kept.
        score: The drive in detail.
    """

    summary: Mapping[str, Any]
    checks: tuple[Check, ...]
    score: DriveScore

    @property
    def passed(self) -> bool:
        """Every promise was kept."""
        return all(check.passed for check in self.checks)


def run_demo(settings: DemoSettings, console: Console) -> DemoOutcome:
    """Run it; see the module's docstring. Files are written to `settings.out`.

    Args:
        settings: What to do.
        console: Where table, progress and hints go.

    Raises:
        SemlaError: A node failed or stopped answering; the message says which and shows its last output.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    domain = free_domain()
    environment = isolated_environment(domain)
    with (
        _environment(environment),
        _terminate_like_interrupt(),
        FrameStore(settings.out / ".frames.bin") as store,
    ):
        recording = Recording(store)
        base_model = _watch_drive(settings, recording, domain, environment, console)
        score = _score(settings, recording, base_model, console)
        return _write_results(settings, recording, score, console)


def _watch_drive(
    settings: DemoSettings, recording: Recording, domain: int, environment: Mapping[str, str], console: Console
) -> BaseModel:
    """Start the nodes, collect the whole drive, end the nodes; returns the base model."""
    from semla_ros.lab.demo.demo_monitor import Monitor  # the one place where the demo meets ROS

    with Children() as children:
        start_nodes(children, settings, environment)
        console.print(f"The nodes are starting on DDS domain {domain}, which only this machine sees.", highlight=False)
        if has_ros2_command():
            hint = f"ROS_DOMAIN_ID={domain} ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ros2 topic list"
            console.print(f"To look in from another terminal: {hint}", highlight=False, soft_wrap=True)
        with console.status("loading the model"):
            base_model = _load_base_model(settings)  # before the monitor: the drive starts as soon as it listens
        with Monitor(recording, domain) as monitor:

            def check() -> None:
                children.check()
                monitor.check()

            with console.status("waiting for the perception node and the first image"):
                _wait_for_first_frame(settings, recording, check)
            comparison = LiveComparison(recording, base_model, CLASS_NAMES)
            try:
                _show_until_end(settings, recording, comparison, check, console)
            finally:
                comparison.stop()
    return base_model


def _load_base_model(settings: DemoSettings) -> BaseModel:
    from semla_ros.pipeline import PerceptionPipeline  # loads torch, which a command line's check need not wait for

    # One thread: while the drive goes on, the processor belongs to the nodes.
    config = SemlaConfig(model=settings.model, library=settings.library, inference=InferenceConfig(threads=1))
    return BaseModel(PerceptionPipeline.load(config))


def _wait_for_first_frame(settings: DemoSettings, recording: Recording, check: Callable[[], None]) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while not recording.has_images:
        check()
        node = recording.diagnostics
        if node.level == "ERROR":
            raise DemoError(f"the perception node cannot work: {node.message}")
        if time.monotonic() > end:
            state = node.values.get("node: Lifecycle state", "not heard of")
            raise DemoError(
                f"no camera image within {READY_TIMEOUT_S:.0f} s (perception node: {state}); {_last_words(settings)}"
            )
        time.sleep(0.1)


def _show_until_end(
    settings: DemoSettings,
    recording: Recording,
    comparison: LiveComparison,
    check: Callable[[], None],
    console: Console,
) -> None:
    """Show the table, or a line now and then, until the drive is over and the last mask has come."""
    start_s = time.monotonic()

    def state() -> dict[str, str]:
        now_s, whole_s = time.monotonic(), settings.duration_s
        elapsed_s = min(now_s - start_s, whole_s)
        return observe(recording, comparison.figures, now_s=now_s, elapsed_s=elapsed_s, duration_s=whole_s)

    if settings.shows_live and console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:

            def update() -> None:
                live.update(render(state(), recording.latest))

            _watch(settings, recording, check, update, every_s=0.25)
            update()
    else:

        def show() -> None:
            console.print(status_line(state(), recording.latest), highlight=False, soft_wrap=True)

        _watch(settings, recording, check, show, every_s=5.0)


def _watch(
    settings: DemoSettings, recording: Recording, check: Callable[[], None], show: Callable[[], None], every_s: float
) -> None:
    """Call `show` every `every_s` seconds until the drive is over."""
    next_s = 0.0
    while True:
        check()
        now_s = time.monotonic()
        if recording.is_complete(now_s):
            return
        if not recording.drive_ended and now_s - recording.last_heard_s > SILENCE_TIMEOUT_S:
            raise DemoError(f"nothing came from the nodes for {SILENCE_TIMEOUT_S:.0f} s; {_last_words(settings)}")
        if now_s >= next_s:
            show()
            next_s = now_s + every_s
        time.sleep(0.05)


def _last_words(settings: DemoSettings) -> str:
    """The end of every log that the nodes have written."""
    ends = []
    for log in sorted(settings.out.glob("*.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        ends.append(f"the end of {log}:\n" + "\n".join(lines or ["(empty)"]))
    return "\n".join(ends)


def _score(settings: DemoSettings, recording: Recording, base_model: BaseModel, console: Console) -> DriveScore:
    recording.name_transitions()
    with progress(console, stays=console.is_terminal) as bars:
        task = bars.add_task("base model on the same frames", total=None)
        frames = compare_masks(
            recording,
            base_model.mask,
            base_model.class_names,
            CLASS_NAMES,
            lambda done, total: bars.update(task, completed=done, total=total),
        )
    if len(frames) < 2:
        raise DemoError(
            f"{len(frames)} frames came back as masks: the node answered almost nothing; {_last_words(settings)}"
        )
    return score_drive(frames, base_model.adapter_families)


def _write_results(settings: DemoSettings, recording: Recording, score: DriveScore, console: Console) -> DemoOutcome:
    from semla_ros.lab.demo.panels import PanelMaker, write_contact_sheet, write_video
    from semla_ros.lab.demo.summary import make_summary
    from semla_ros.lab.demo.timeline import draw_timeline

    summary, checks = make_summary(settings, recording, score, CLASS_NAMES)
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    (settings.out / "summary.json").write_text(text + "\n", encoding="utf-8")
    draw_timeline(settings.out / "timeline.png", score, recording.generations)
    small = PanelMaker(recording.store, PALETTE, 256, round(256 * settings.height / settings.width))
    write_contact_sheet(settings.out / "contact_sheet.png", score, small, CLASS_NAMES, PALETTE)
    height = round(VIDEO_PANEL_WIDTH * settings.height / settings.width)
    large = PanelMaker(recording.store, PALETTE, VIDEO_PANEL_WIDTH, height)
    with progress(console, stays=console.is_terminal) as bars:
        task = bars.add_task("video", total=len(score.frames))
        write_video(
            settings.out / "drive.mp4",
            score,
            large,
            CLASS_NAMES,
            PALETTE,
            settings.camera_rate_hz,
            lambda done, total: bars.update(task, completed=done, total=total),
        )
    return DemoOutcome(summary=summary, checks=tuple(checks), score=score)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Let this process join the nodes' graph, for as long as the context lasts."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Make a polite kill end the nodes too, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
