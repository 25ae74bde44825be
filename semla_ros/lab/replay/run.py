"""Replays a recording through the perception pipeline, several variants over the very same frames, and measures them.

    bag --> FrameSource (decoded ahead) --> VariantRunner per variant --> scores, trace, bag, video, gallery --> report

Adaptation is throttled by stamps and every variant runs in one thread, so two replays give the same masks and the same
trace, byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semla_ros import __version__
from semla_ros.atomic_files import write_atomically
from semla_ros.config import SemlaConfig
from semla_ros.errors import BagError, ConfigError
from semla_ros.lab.bags.frames import FrameOptions, FrameSource, ReplayFrame
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.replay.comparison import ReplayVariant, choose_primary, parse_variants, reference_of
from semla_ros.lab.replay.gallery import Gallery
from semla_ros.lab.replay.output import ContactSheet, MaskBag, MomentMaker, Outputs, ReplayVideo
from semla_ros.lab.replay.runners import Answer, Outcome, RealtimeRunner, VariantRunner
from semla_ros.lab.replay.scores import Agreement, FrameScore, VariantScore, add_gains
from semla_ros.lab.replay.stretches import StretchFinder
from semla_ros.lab.replay.timeline import Timeline
from semla_ros.lab.report.replay_page import write_report
from semla_ros.labels import palette_of
from semla_ros.serving.model_bank import Load, load_pipeline
from semla_ros.serving.peak_memory import peak_resident_bytes

if TYPE_CHECKING:
    from semla_ros.pipeline import PerceptionPipeline

SUMMARY, TRACE, REPORT, MASKS, VIDEO, SHEET, TIMELINE, WORKLIST, EXAMPLES = (
    "summary.json", "trace.jsonl", "report.html", "masks", "replay.mp4", "contact_sheet.png", "timeline.png",
    "worklist.json", "worklist",
)  # fmt: skip

Progress = Callable[[int, int], None]  # frames done, frames expected
Watch = Callable[[ReplayFrame, float, Mapping[str, Outcome], Mapping[str, FrameScore]], None]  # with the frame's time
_CHANGES_SHOWN = 400


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """How a bag is replayed.

    Attributes:
        frames: Which frames, with which truth.
        compare: The variants.
        config: Of the pipelines.
        rate: "max": every frame is answered; "realtime": latency counts, see `RealtimeRunner`; "live": the real node is
            played the bag, see `LiveRunner`.
        speed: Of the player, times real time ("live" only).
        scope: "vehicle": one scene estimate for all cameras; "camera": one each.
        with_bag: Write the masks as a bag.
        with_video: Write an mp4.
        with_pictures: Write the contact sheet and the timeline, where there is truth.
        with_report: Write the HTML report.
        propose_adapter: Write the worklist of stretches that no adapter covers.
        side_by_side: Variants run at the same time, each in one thread; 0 = one per core.
        request: Written into the summary, so that a batch knows its own results again.
    """

    frames: FrameOptions = field(default_factory=FrameOptions)
    compare: tuple[ReplayVariant, ...] = field(default_factory=lambda: parse_variants("base,semla"))
    config: SemlaConfig = field(default_factory=SemlaConfig)
    rate: Literal["max", "realtime", "live"] = "max"
    speed: float = 1.0
    scope: Literal["vehicle", "camera"] = "vehicle"
    with_bag: bool = True
    with_video: bool = False
    with_pictures: bool = False
    with_report: bool = True
    propose_adapter: bool = False
    side_by_side: int = 0
    request: str = ""

    def __post_init__(self) -> None:
        if self.propose_adapter and not any(variant.adapts for variant in self.compare):
            raise ConfigError("--propose-adapter needs a variant that follows the scene: add semla to --compare")


class Replay:
    """One replay of one bag.

    Args:
        bag_path: The bag.
        out: Folder for the results; made where missing.
        options: How.
        load: Makes a pipeline; tests give their own.
        make_runner: Makes what answers the frames of a variant; given where another process does (see
            `live_node.py`), and registers how to end it. Returning None leaves the variant to a pipeline in this
            process.
        watch: Shown each frame with what came of it.

    Raises:
        SemlaError: The bag, the model, the library or an option cannot be used.
    """

    def __init__(
        self,
        bag_path: Path,
        out: Path,
        options: ReplayOptions,
        *,
        load: Load = load_pipeline,
        make_runner: Callable[[ReplayVariant, Sequence[str], ExitStack], VariantRunner | None] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._bag_path, self._out, self._options = bag_path, out, options
        self._load = load
        self._make_runner = make_runner
        self._watch = watch

    def run(self, progress: Progress | None = None) -> dict[str, Any]:
        """Replay the bag and write the results; returns what `summary.json` holds.

        An interrupt or an error keeps what was done so far: all results are written, marked as incomplete. Errors are
        raised again, an interrupt only shows in the summary.
        """
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        failure: BaseException | None = None
        with BagReader(self._bag_path) as bag, ExitStack() as resources:
            pipeline = self._loaded(resources)
            source = FrameSource(bag, self._options.frames, pipeline.class_names)
            runners = self._runners(pipeline, [camera.name for camera in source.cameras], resources)
            self._clear_earlier_results()
            measured = _Measured(self._options, source, pipeline, self._out)
            try:
                with self._outputs(source, pipeline.class_names) as outputs:
                    self._replay(source, runners, measured, outputs, progress)
            except (KeyboardInterrupt, Exception) as error:
                failure = error
            if measured.frames == 0 and failure is None:
                failure = BagError(
                    f"bag {self._bag_path}: no frame could be replayed: "
                    f"{'; '.join(source.problems.lines()) or 'none in the chosen span'}"
                )
            summary = {"bag": str(self._bag_path), **measured.summary(failure)}
            summary["time"] = _time(source, began_s, began_cpu_s)
            self._write(summary, measured)
        if failure is not None and not isinstance(failure, KeyboardInterrupt):
            raise failure
        return summary

    def _loaded(self, resources: ExitStack, library: str = "") -> PerceptionPipeline:
        config = self._options.config
        pipeline = self._load(replace(config, library=library) if library else config)
        resources.callback(pipeline.close)
        return pipeline

    def _runners(
        self, first: PerceptionPipeline, cameras: Sequence[str], resources: ExitStack
    ) -> dict[str, VariantRunner]:
        for variant in self._options.compare:
            variant.adapters(first.library.names)  # what the library lacks is said before more pipelines are loaded
        spare = [first]
        kind = RealtimeRunner if self._options.rate == "realtime" else VariantRunner
        runners = {}
        for variant in self._options.compare:
            runner = self._make_runner(variant, cameras, resources) if self._make_runner else None
            if runner is None:
                runner = kind(
                    variant,
                    partial(self._pipeline_of, variant, spare, resources),
                    cameras,
                    scope=self._options.scope,
                )
            runners[variant.name] = runner
        return runners

    def _pipeline_of(
        self, variant: ReplayVariant, spare: list[PerceptionPipeline], resources: ExitStack
    ) -> PerceptionPipeline:
        return spare.pop() if spare and not variant.library else self._loaded(resources, variant.library)

    def _replay(
        self,
        source: FrameSource,
        runners: Mapping[str, VariantRunner],
        measured: _Measured,
        outputs: Outputs,
        progress: Progress | None,
    ) -> None:
        """Go through the frames."""
        options = self._options
        # Realtime measures latencies, which variants side by side would spoil for each other.
        most = 1 if options.rate == "realtime" else options.side_by_side or os.cpu_count() or 1
        threads = options.config.inference.threads
        try:
            with (
                ThreadPoolExecutor(min(len(runners), most), "semla-variant", _keep_to_threads, (threads,)) as pool,
                closing(source.frames()) as frames,
            ):
                for item in frames:
                    futures = {name: pool.submit(runner.run, item) for name, runner in runners.items()}
                    outcomes = {name: future.result() for name, future in futures.items()}
                    if options.rate == "live" and not all(outcome.answer for outcome in outcomes.values()):
                        continue  # the node has dropped it for a newer one
                    seconds, scores = measured.add(item, outcomes)
                    outputs.add(item, seconds, outcomes, scores, runners)
                    if self._watch is not None:
                        self._watch(item, seconds, outcomes, scores)
                    if progress is not None:
                        progress(measured.frames, max(measured.frames, source.expected_frames))
        finally:
            for name, runner in runners.items():
                made = runner.finish()
                measured.finish(name, made, runner.facts())
                outputs.add_made(name, made, runner)

    def _clear_earlier_results(self) -> None:
        """Results of an earlier replay make room; anything else in the folder is left alone."""
        self._out.mkdir(parents=True, exist_ok=True)
        masks = self._out / MASKS
        if masks.exists():
            if not (self._out / TRACE).is_file():
                raise BagError(
                    f"--out {self._out}: it holds a folder '{MASKS}' that is not of a replay; choose another"
                )
            shutil.rmtree(masks)
        for name in (SUMMARY, TRACE, REPORT, VIDEO, SHEET, TIMELINE, WORKLIST):
            (self._out / name).unlink(missing_ok=True)
        shutil.rmtree(self._out / EXAMPLES, ignore_errors=True)

    def _outputs(self, source: FrameSource, class_names: Sequence[str]) -> Outputs:
        options, out = self._options, self._out
        primary = choose_primary(options.compare).name
        names = [variant.name for variant in options.compare]
        maker = MomentMaker(names, primary, class_names)
        pictures: list[ReplayVideo | ContactSheet] = []
        if options.with_video:
            pictures.append(ReplayVideo(out / VIDEO, maker, min(60.0, source.rate_hz * options.speed)))
        if options.with_pictures:
            pictures.append(ContactSheet(out / SHEET, maker, reference_of(primary, names)))
        bag = MaskBag(out / MASKS, primary, class_names, options.scope) if options.with_bag else None
        return Outputs(out / TRACE, bag, maker, pictures)

    def _write(self, summary: Mapping[str, Any], measured: _Measured) -> None:
        if self._options.propose_adapter:
            write_json(self._out / WORKLIST, {"bag": summary["bag"], "stretches": summary["worklist"]})
        if self._options.with_pictures and summary["has_truth"]:
            from semla_ros.lab.report.timeline_picture import draw_timeline  # matplotlib takes a second to import

            draw_timeline(self._out / TIMELINE, summary, measured.report_data())
        if self._options.with_report and measured.frames:
            write_report(self._out / REPORT, summary, measured.report_data())
        # Last, and in one step: where it is complete, everything else is.
        write_json(self._out / SUMMARY, summary)


class _Measured:
    """What grows while a replay runs."""

    def __init__(self, options: ReplayOptions, source: FrameSource, pipeline: PerceptionPipeline, out: Path) -> None:
        self._options, self._source = options, source
        self._class_names = pipeline.class_names
        self._palette = palette_of(pipeline.class_names)
        self._retrieval, self._drift = pipeline.retrieval, pipeline.drift
        self._names = [variant.name for variant in options.compare]
        self._primary = choose_primary(options.compare).name
        self._reference = reference_of(self._primary, self._names)
        self._scores = {name: VariantScore(pipeline.class_names) for name in self._names}
        self._timeline = Timeline(len(pipeline.class_names))
        self._agreement = Agreement()
        self._gallery = Gallery(self._primary, self._reference, self._palette, has_truth=source.has_truth)
        self._stretches = StretchFinder(out / EXAMPLES) if options.propose_adapter else None
        self._changes: list[dict[str, Any]] = []
        self._generation: dict[str, int] = {}
        self._cameras: Counter[str] = Counter()
        self._last_s = 0.0

    @property
    def frames(self) -> int:
        """Frames so far."""
        return self._cameras.total()

    def add(self, item: ReplayFrame, outcomes: Mapping[str, Outcome]) -> tuple[float, dict[str, FrameScore]]:
        """Measure one frame; returns its time in the replay and the variants' scores."""
        scores = {name: self._scores[name].add(item, outcome) for name, outcome in outcomes.items()}
        self._timeline.add(item, outcomes, scores)
        seconds = self._timeline.seconds(item.log_ns)
        self._gallery.add(item, seconds, outcomes, scores, self._agreement.add(outcomes))
        self._note_change(item, seconds, outcomes[self._primary])
        if self._stretches is not None:
            self._stretches.add(item, seconds, outcomes[self._primary], scores[self._primary])
        self._cameras[item.frame.camera] += 1
        self._last_s = max(self._last_s, seconds)
        return seconds, scores

    def finish(self, name: str, made: Sequence[Answer], facts: Mapping[str, Any]) -> None:
        """Add what a variant made after the last frame, and what its runner knows of the whole."""
        self._scores[name].add_made(made)
        self._scores[name].facts = facts

    def _note_change(self, item: ReplayFrame, seconds: float, outcome: Outcome) -> None:
        """Remember when the primary variant's model changed; of very many times every other one."""
        camera = item.frame.camera if self._options.scope == "camera" else ""
        generation = outcome.generation
        known = self._generation.get(camera, generation.number)
        self._generation[camera] = generation.number
        if known != generation.number:
            entry = {"t": round(seconds, 3), "generation": generation.number, "reason": generation.reason}
            self._changes.append({**entry, "heaviest": generation.mix.heaviest})
        if len(self._changes) > _CHANGES_SHOWN:
            self._changes = self._changes[::2]

    def summary(self, failure: BaseException | None) -> dict[str, Any]:
        """What `summary.json` holds, but for the bag and the times."""
        source = self._source
        variants = {name: score.summary() for name, score in self._scores.items()}
        add_gains(variants)
        is_interrupted = isinstance(failure, KeyboardInterrupt)
        return {
            "complete": failure is None,
            "interrupted": is_interrupted,
            "error": None if failure is None or is_interrupted else str(failure),
            "frames": self.frames,
            "duration_s": round(self._last_s, 3),
            "cameras": [
                {"name": camera.name, "topic": camera.topic, "truth": camera.truth_topic,
                 "frames": self._cameras[camera.name]}
                for camera in source.cameras
            ],
            "classes": list(self._class_names),
            "has_truth": any(entry["frames_with_truth"] for entry in variants.values()),
            "primary": self._primary,
            "reference": self._reference,
            "rate": self._options.rate,
            "variants": variants,
            "agreement": self._agreement.summary(),
            "topics": source.account(),
            "problems": source.problems.lines(),
            "settings": self._settings(),
            "version": __version__,
            "request": self._options.request,
            **({} if self._stretches is None else {"worklist": self._stretches.stretches()}),
        }  # fmt: skip

    def report_data(self) -> dict[str, Any]:
        """What the report shows beside the summary."""
        return {
            "timeline": self._timeline.series(self._names),
            "changes": self._changes,
            "gallery": self._gallery.categories(),
            "palette": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in self._palette.tolist()],
            "mix_threshold": self._drift.mix_threshold,
        }

    def _settings(self) -> dict[str, Any]:
        options, inference = self._options, self._options.config.inference
        frames = {key: value for key, value in asdict(options.frames).items() if key != "label_map"}
        return {
            "model": options.config.model,
            "library": options.config.library or "(shipped with the model)",
            "threads": inference.threads,
            "inference": inference.view,
            "precision": inference.precision,
            "scope": options.scope,
            "frames": {**frames, "topics": list(frames["topics"]), "truth": list(frames["truth"])},
            "compare": self._names,
            "retrieval": asdict(self._retrieval),
            "drift": asdict(self._drift),
        }


def replay_bag(bag_path: Path, out: Path, options: ReplayOptions, *, load: Load = load_pipeline) -> dict[str, Any]:
    """Replay one bag; see `Replay.run`."""
    return Replay(bag_path, out, options, load=load).run()


def _time(source: FrameSource, began_s: float, began_cpu_s: float) -> dict[str, float]:
    wall_s = time.perf_counter() - began_s
    return {
        "wall_s": round(wall_s, 3),
        "cpu_s": round(time.process_time() - began_cpu_s, 3),
        "read_decode_s": round(source.busy_s, 3),
        "read_decode_share": round(source.busy_s / wall_s, 4),
        "waited_for_frames_s": round(source.waited_s, 3),
        "peak_memory_mb": round(peak_resident_bytes() / 2**20, 1),
    }


def _keep_to_threads(threads: int) -> None:
    """Give a worker thread the number of threads that the engine was made with."""
    torch = sys.modules.get("torch")
    if torch is not None and threads:
        torch.set_num_threads(threads)


def write_json(path: Path, content: Any) -> None:
    """Write a file of results in one step."""
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
