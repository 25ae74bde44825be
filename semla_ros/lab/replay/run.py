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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semla_ros import __version__
from semla_ros.config import SemlaConfig
from semla_ros.errors import BagError, ConfigError
from semla_ros.file_integrity import write_atomically
from semla_ros.lab.bags.frames import FrameOptions, FrameSource, ReplayFrame
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.replay.gallery import Gallery, reference_of
from semla_ros.lab.replay.output import MaskBag, Outputs, ReplayVideo, Trace
from semla_ros.lab.replay.runners import (
    Outcome,
    ReplayVariant,
    VariantRunner,
    choose_primary,
    parse_variants,
)
from semla_ros.lab.replay.scores import Agreement, Timeline, VariantScore
from semla_ros.lab.replay.stretches import StretchFinder
from semla_ros.lab.report.replay_page import write_report
from semla_ros.labels import palette_of
from semla_ros.serving.model_bank import Load, load_pipeline
from semla_ros.serving.process_memory import peak_resident_bytes

if TYPE_CHECKING:
    from semla_ros.pipeline import PerceptionPipeline

SUMMARY, TRACE, REPORT, MASKS, VIDEO, WORKLIST = (
    "summary.json", "trace.jsonl", "report.html", "masks", "replay.mp4", "worklist.json",
)  # fmt: skip

Progress = Callable[[int, int], None]  # frames done, frames expected
_FUSIONS_SHOWN = 400


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """How a bag is replayed.

    Attributes:
        frames: Which frames, with which truth.
        compare: The variants.
        config: Of the pipelines.
        rate: "max": every frame is answered; "realtime": latency counts, see `VariantRunner`.
        scope: "vehicle": one scene estimate for all cameras; "camera": one each.
        with_bag: Write the masks as a bag.
        with_video: Write an mp4.
        with_report: Write the HTML report.
        propose_adapter: Write the worklist of stretches that no adapter covers.
        side_by_side: Variants run at the same time, each in one thread; 0 = one per core.
        request: Written into the summary, so that a batch knows its own results again.
    """

    frames: FrameOptions = field(default_factory=FrameOptions)
    compare: tuple[ReplayVariant, ...] = field(default_factory=lambda: parse_variants("base,semla"))
    config: SemlaConfig = field(default_factory=SemlaConfig)
    rate: Literal["max", "realtime"] = "max"
    scope: Literal["vehicle", "camera"] = "vehicle"
    with_bag: bool = True
    with_video: bool = False
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
            `nodes/replay_through_node.py`). Returning None leaves the variant to a pipeline in this process.

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
        make_runner: Callable[[ReplayVariant, Sequence[str]], VariantRunner | None] | None = None,
    ) -> None:
        self.bag_path, self.out, self.options = bag_path, out, options
        self._load = load
        self._make_runner = make_runner
        self.primary = choose_primary(options.compare)

    def run(self, progress: Progress | None = None) -> dict[str, Any]:
        """Replay the bag and write the results; returns what `summary.json` holds.

        An interrupt or an error keeps what was done so far: all results are written, marked as incomplete. Errors are
        raised again, an interrupt only shows in the summary.
        """
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        with BagReader(self.bag_path) as bag:
            first = self._load(self.options.config)
            runners: dict[str, VariantRunner] = {}
            try:
                class_names = first.class_names
                source = FrameSource(bag, self.options.frames, class_names)
                runners = self._runners(first, [camera.name for camera in source.cameras])
                self._clear_earlier_results()
                state = _State(self, source, first, runners)
                failure: BaseException | None = None
                try:
                    with self._outputs(source, class_names) as outputs:
                        state.replay(outputs, progress)
                except (KeyboardInterrupt, Exception) as error:
                    failure = error
                if state.frames == 0 and failure is None:
                    failure = BagError(
                        f"bag {self.bag_path}: no frame could be replayed: "
                        f"{'; '.join(source.problems.lines()) or 'none in the chosen span'}"
                    )
                summary = state.summary(failure)
                summary["time"] = self._time(source, began_s, began_cpu_s)
                self._write(summary, state)
            finally:
                for runner in runners.values():
                    runner.close()
                if not runners:
                    first.close()
        if failure is not None and not isinstance(failure, KeyboardInterrupt):
            raise failure
        return summary

    def _runners(self, first: PerceptionPipeline, cameras: Sequence[str]) -> dict[str, VariantRunner]:
        spare = [first]

        def make_pipeline() -> PerceptionPipeline:
            return spare.pop() if spare else self._load(self.options.config)

        runners = {}
        for variant in self.options.compare:
            runner = self._make_runner(variant, cameras) if self._make_runner else None
            runners[variant.name] = runner or VariantRunner(
                variant,
                make_pipeline,
                first.library.names,
                cameras,
                scope=self.options.scope,
                is_realtime=self.options.rate == "realtime",
            )
        for runner in runners.values():
            runner.prepare()
        return runners

    def _clear_earlier_results(self) -> None:
        """Results of an earlier replay make room; anything else in the folder is left alone."""
        self.out.mkdir(parents=True, exist_ok=True)
        masks = self.out / MASKS
        if masks.exists():
            if not (self.out / TRACE).is_file():
                raise BagError(f"--out {self.out}: it holds a folder '{MASKS}' that is not of a replay; choose another")
            shutil.rmtree(masks)
        for name in (SUMMARY, TRACE, REPORT, VIDEO, WORKLIST):
            (self.out / name).unlink(missing_ok=True)
        shutil.rmtree(self.out / "worklist", ignore_errors=True)

    def _outputs(self, source: FrameSource, class_names: Sequence[str]) -> Outputs:
        options = self.options
        names = [variant.name for variant in options.compare]
        bag = None
        if options.with_bag:
            bag = MaskBag(self.out / MASKS, self.primary.name, class_names, options.scope)
        video = None
        if options.with_video:
            rate_hz = max(1.0, min(60.0, source.rate_hz))
            video = ReplayVideo(self.out / VIDEO, names, self.primary.name, class_names, rate_hz)
        return Outputs(Trace(self.out / TRACE), bag, video)

    def _time(self, source: FrameSource, began_s: float, began_cpu_s: float) -> dict[str, float]:
        wall_s = time.perf_counter() - began_s
        return {
            "wall_s": round(wall_s, 3),
            "cpu_s": round(time.process_time() - began_cpu_s, 3),
            "read_decode_s": round(source.busy_s, 3),
            "read_decode_share": round(source.busy_s / wall_s, 4),
            "waited_for_frames_s": round(source.waited_s, 3),
            "peak_memory_mb": round(peak_resident_bytes() / 2**20, 1),
        }

    def _write(self, summary: Mapping[str, Any], state: _State) -> None:
        if self.options.propose_adapter:
            _write_json(self.out / WORKLIST, {"bag": str(self.bag_path), "stretches": summary["worklist"]})
        if self.options.with_report and state.frames:
            write_report(self.out / REPORT, summary, state.report_data())
        # Last, and in one step: where it is complete, everything else is.
        _write_json(self.out / SUMMARY, summary)


class _State:
    """What grows while a replay runs."""

    def __init__(
        self, replay: Replay, source: FrameSource, pipeline: PerceptionPipeline, runners: Mapping[str, VariantRunner]
    ) -> None:
        self._replay, self._source, self._runners = replay, source, runners
        self._class_names = class_names = pipeline.class_names
        self._retrieval, self._drift = pipeline.retrieval, pipeline.drift
        self._options = replay.options
        names = list(runners)
        self._primary = replay.primary.name
        self._reference = reference_of(self._primary, names)
        self._scores = {variant.name: VariantScore(variant, class_names) for variant in self._options.compare}
        self._timeline = Timeline()
        self._agreement = Agreement()
        self._gallery = Gallery(self._primary, self._reference, palette_of(class_names), has_truth=source.has_truth)
        self._stretches = StretchFinder(replay.out / "worklist") if replay.primary.adapts else None
        self._worklist: list[dict[str, Any]] | None = None
        self._fusions: list[dict[str, Any]] = []
        self._generation: dict[str, int] = {}
        self.frames = 0
        self._cameras: dict[str, int] = {}
        self._last_s = 0.0
        self._threads = self._options.config.inference.threads

    def replay(self, outputs: Outputs, progress: Progress | None) -> None:
        """Go through the frames."""
        # Realtime measures latencies, which variants side by side would spoil for each other.
        most = 1 if self._options.rate == "realtime" else self._options.side_by_side or os.cpu_count() or 1
        workers = min(len(self._runners), most)
        frames = self._source.frames()
        with ThreadPoolExecutor(workers, "semla-variant", _keep_to_threads, (self._threads,)) as pool:
            try:
                for item in frames:
                    if workers == 1:
                        outcomes = {name: runner.run(item) for name, runner in self._runners.items()}
                    else:
                        futures = {name: pool.submit(runner.run, item) for name, runner in self._runners.items()}
                        outcomes = {name: future.result() for name, future in futures.items()}
                    self._add(item, outcomes, outputs)
                    if progress is not None:
                        progress(self.frames, max(self.frames, self._source.expected_frames))
            finally:
                frames.close()  # type: ignore[attr-defined]
                for name, runner in self._runners.items():
                    made = runner.finish()
                    self._scores[name].add_made(made)
                    self._scores[name].dropped = runner.dropped
                    if outputs.bag is not None:
                        outputs.bag.add(name, made, runner)

    def _add(self, item: ReplayFrame, outcomes: Mapping[str, Outcome], outputs: Outputs) -> None:
        scores = {name: self._scores[name].add(item, outcome) for name, outcome in outcomes.items()}
        self._timeline.add(item, outcomes, scores)
        seconds = self._timeline.seconds(item.log_ns)
        agreement = self._agreement.add(outcomes)
        self._gallery.add(item, seconds, outcomes, scores, agreement)
        self._note_fusion(item, seconds, outcomes[self._primary])
        if self._stretches is not None and self._options.propose_adapter:
            self._stretches.add(item, seconds, outcomes[self._primary], scores[self._primary])
        for name, outcome in outcomes.items():
            outputs.trace.add(item, seconds, name, outcome, scores[name])
            if outputs.bag is not None:
                outputs.bag.add(name, outcome.made, self._runners[name])
        if outputs.video is not None:
            outputs.video.add(item, outcomes, scores)
        self.frames += 1
        self._cameras[item.frame.camera] = self._cameras.get(item.frame.camera, 0) + 1
        self._last_s = max(self._last_s, seconds)

    def _note_fusion(self, item: ReplayFrame, seconds: float, outcome: Outcome) -> None:
        """Remember when the primary variant's model changed, the latest `_FUSIONS_SHOWN` times at most."""
        camera = item.frame.camera if self._options.scope == "camera" else ""
        generation = outcome.generation
        known = self._generation.get(camera)
        self._generation[camera] = generation.number
        if known is None or known == generation.number:
            return
        entry = {"t": round(seconds, 3), "generation": generation.number, "heaviest": generation.mix.heaviest}
        self._fusions.append(entry)
        if len(self._fusions) > _FUSIONS_SHOWN:
            self._fusions = self._fusions[::2]

    def summary(self, failure: BaseException | None) -> dict[str, Any]:
        """What `summary.json` holds, but for the times."""
        options, source = self._options, self._source
        variants = {name: score.summary() for name, score in self._scores.items()}
        base = variants.get("base")
        for entry in variants.values():
            for key, gain in (("miou", "gain_over_base"), ("shifted_miou", "shifted_gain_over_base")):
                is_known = base is not None and entry[key] is not None and base[key] is not None
                entry[gain] = round(entry[key] - base[key], 6) if is_known and base is not None else None
        summary: dict[str, Any] = {
            "bag": str(self._replay.bag_path),
            "complete": failure is None,
            "interrupted": isinstance(failure, KeyboardInterrupt),
            "error": None if failure is None or isinstance(failure, KeyboardInterrupt) else str(failure),
            "frames": self.frames,
            "duration_s": round(self._last_s, 3),
            "cameras": [
                {"name": camera.name, "topic": camera.topic, "truth": camera.truth_topic,
                 "frames": self._cameras.get(camera.name, 0)}
                for camera in source.cameras
            ],
            "classes": list(self._class_names),
            "has_truth": any(score.meter.frames for score in self._scores.values()),
            "primary": self._primary,
            "reference": self._reference,
            "rate": options.rate,
            "variants": variants,
            "agreement": self._agreement.summary(),
            "problems": source.problems.lines(),
            "settings": self._settings(),
            "version": __version__,
            "request": options.request,
        }  # fmt: skip
        if self._stretches is not None and options.propose_adapter:
            if self._worklist is None:
                self._worklist = self._stretches.stretches()
            summary["worklist"] = self._worklist
        return summary

    def report_data(self) -> dict[str, Any]:
        """What the report shows beside the summary."""
        return {
            "timeline": self._timeline.series(list(self._runners)),
            "fusions": self._fusions,
            "gallery": self._gallery.categories(),
            "palette": [
                f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette_of(self._class_names).tolist()
            ],
            "drift_threshold": self._drift.drift_threshold,
        }

    def _settings(self) -> dict[str, Any]:
        options = self._options
        frames = {key: value for key, value in asdict(options.frames).items() if key != "label_map"}
        return {
            "model": options.config.model,
            "library": options.config.library or "(shipped with the model)",
            "threads": options.config.inference.threads,
            "inference": options.config.inference.inference,
            "precision": options.config.inference.precision,
            "scope": options.scope,
            "frames": {**frames, "topics": list(frames["topics"]), "truth": list(frames["truth"])},
            "compare": [variant.name for variant in options.compare],
            "retrieval": asdict(self._retrieval),
            "drift": asdict(self._drift),
        }


def replay_bag(
    bag_path: Path, out: Path, options: ReplayOptions, *, load: Load = load_pipeline, progress: Progress | None = None
) -> dict[str, Any]:
    """Replay one bag; see `Replay.run`."""
    return Replay(bag_path, out, options, load=load).run(progress)


def _keep_to_threads(threads: int) -> None:
    """Give a worker thread the number of threads that the engine was made with."""
    torch = sys.modules.get("torch")
    if torch is not None and threads:
        torch.set_num_threads(threads)


def single_threaded(config: SemlaConfig) -> SemlaConfig:
    """One thread per forward pass: sums are then always taken in one order, whatever the machine's cores."""
    return replace(config, inference=replace(config.inference, threads=1))


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
