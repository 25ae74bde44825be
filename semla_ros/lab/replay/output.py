"""What a replay leaves behind while it runs: the trace, the bag with masks, video and contact sheet."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from semla_ros.config import NodeConfig
from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.bags.writer import NANOSECONDS, BagWriter
from semla_ros.lab.replay.runners import Answer, Outcome, VariantRunner
from semla_ros.lab.replay.scores import FrameScore, overlap_miou, six_digits
from semla_ros.lab.report.charts import BETWEEN
from semla_ros.lab.report.moments import Moment, Panel, draw_row, write_contact_sheet
from semla_ros.lab.report.pictures import colourise
from semla_ros.lab.report.video import VideoWriter
from semla_ros.labels import labels_json, overlay, palette_of
from semla_ros.results import Generation, ImageArray, MaskArray

NODE = "/perception"  # where the node publishes by default
LEAST_VISIBLE = 0.0005  # share of an adapter that nobody would see


def trace_line(item: ReplayFrame, seconds: float, name: str, outcome: Outcome, score: FrameScore) -> dict[str, Any]:
    """A line of `trace.jsonl`: one per frame and variant. Holds nothing that depends on the machine's speed."""
    answer, generation = outcome.answer, outcome.generation
    step = answer.step if answer else None
    return {
        "variant": name,
        "frame": item.index,
        "stamp_ns": item.frame.stamp_ns,
        "camera": item.frame.camera,
        "t_s": round(seconds, 6),
        "segment": item.segment,
        "generation": generation.number,
        "reason": generation.reason,
        "action": step.action if step else None,
        "drift": six_digits(step.drift) if step and step.drift is not None else None,
        **generation.mix.as_json(),
        "nearest": {name: round(distance, 6) for name, distance in (answer.nearest if answer else ())},
        "miou": six_digits(score.miou),
        "confidence": six_digits(score.confidence),
        "flicker": six_digits(score.flicker),
        **({"error": step.error} if step and step.error else {}),
        **({} if outcome.is_of(item) else {"is_own": False}),
    }


class MaskBag:
    """The new bag: masks, confidence, overlay, labels, weights and diagnostics of the primary variant on the node's
    topics, the masks of the others below `/replay/<variant>`. Recording times are those of the source bag.

    Args:
        path: Folder to make.
        primary: The variant that takes the node's topics.
        class_names: The vocabulary.
        scope: "vehicle": all cameras share a model; "camera": each has its own.
    """

    def __init__(self, path: Path, primary: str, class_names: Sequence[str], scope: str) -> None:
        self._writer = BagWriter(path, compression="chunk", is_own_output=True)
        self._primary = primary
        self._class_names = tuple(class_names)
        self._scope = scope
        self._palette = palette_of(class_names)
        self._announced: dict[str, int] = {}
        self._has_labels = False
        self._reported_ns: int | None = None

    def add(self, name: str, made: Sequence[Answer], runner: VariantRunner) -> None:
        """Write the masks that a variant made."""
        for answer in made:
            result, frame, log_ns = answer.segmentation, answer.item.frame, answer.ready_ns
            header = (result.stamp_ns, result.frame_id)
            if name != self._primary:
                topic = f"/replay/{topic_part(name)}/{frame.camera + '/' if frame.camera else ''}mask"
                self._writer.image(topic, result.mask, *header, log_ns=log_ns)
                continue
            base = f"{NODE}/{frame.camera}" if frame.camera else NODE
            if not self._has_labels:
                self._writer.string(f"{NODE}/labels", labels_json(self._class_names, 1), log_ns)
                self._has_labels = True
            self._announce(result.generation, frame.camera if self._scope == "camera" else "", log_ns)
            self._writer.image(f"{base}/mask", result.mask, *header, log_ns=log_ns)
            if result.confidence is not None:
                self._writer.image(f"{base}/confidence", result.confidence, *header, log_ns=log_ns)
            if result.mask.shape == frame.image.shape[:2]:
                picture = overlay(frame.image, result.mask, self._palette, NodeConfig.overlay_alpha)
                self._writer.compressed_image(f"{base}/overlay/compressed", picture, *header, log_ns=log_ns)
            self._report(log_ns, runner)

    def close(self) -> None:
        """Finish the bag."""
        self._writer.close()

    def _announce(self, generation: Generation, scope: str, log_ns: int) -> None:
        """Publish a generation's weights once, as the node does."""
        if self._announced.get(scope) == generation.number:
            return
        self._announced[scope] = generation.number
        topic = f"{NODE}/{scope}/adapter_weights" if scope else f"{NODE}/adapter_weights"
        stamp_ns = log_ns if generation.scene_stamp_ns is None else generation.scene_stamp_ns
        self._writer.diagnostics(topic, generation.statuses(), stamp_ns, is_latched=True, log_ns=log_ns)

    def _report(self, log_ns: int, runner: VariantRunner) -> None:
        """The node's report on its adaptation, once a second of recording time."""
        if self._reported_ns is not None and 0 <= log_ns - self._reported_ns < NANOSECONDS:
            return
        self._reported_ns = log_ns
        if statuses := [replace(status, hardware_id="replay") for status in runner.reports()]:
            self._writer.diagnostics("/diagnostics", statuses, log_ns, log_ns=log_ns)


class MomentMaker:
    """Makes a moment of each frame of the first camera: image, truth where there is one, masks of up to three variants.

    Args:
        names: Variants, the ones shown first.
        primary: What the moments are about; shown last.
        class_names: The vocabulary.
    """

    def __init__(self, names: Sequence[str], primary: str, class_names: Sequence[str]) -> None:
        self.names = [*[name for name in names if name != primary][:2], primary]
        self.class_names = tuple(class_names)
        self.palette = palette_of(class_names)
        self._camera: str | None = None
        self._has_truth = False

    def make(
        self, item: ReplayFrame, seconds: float, outcomes: Mapping[str, Outcome], scores: Mapping[str, FrameScore]
    ) -> Moment | None:
        """The moment; None for a frame of another camera."""
        if self._camera is None:
            self._camera, self._has_truth = item.frame.camera, item.truth is not None
        if item.frame.camera != self._camera:
            return None
        panels = [Panel(title="camera", picture=item.frame.image, is_mask=False)]
        if self._has_truth:
            panels.append(Panel(title="truth", picture=self._painted(item.truth)))
        for name in self.names:
            miou = six_digits(scores[name].miou) if self._has_truth else None
            picture = self._painted(outcomes[name].mask)
            panels.append(Panel(title=name, picture=picture, miou=miou, is_strong=name == self.names[-1]))
        generation = outcomes[self.names[-1]].generation
        shares = {name: share for name, share in generation.mix.shares().items() if share > LEAST_VISIBLE}
        place = f"{seconds:.1f} s, generation {generation.number}"
        return Moment(name=item.segment or f"frame {item.index}", place=place, panels=panels, shares=shares)

    def _painted(self, mask: MaskArray | None) -> ImageArray | None:
        return None if mask is None else colourise(mask, self.palette)


class ReplayVideo:
    """An mp4 of the moments.

    Args:
        path: File to write.
        maker: Of the moments.
        rate_hz: Frames per second.
    """

    def __init__(self, path: Path, maker: MomentMaker, rate_hz: float) -> None:
        self._maker = maker
        self._video = VideoWriter(path, rate_hz)
        self._overlaps: dict[str, Any] = {}

    def add(self, item: ReplayFrame, moment: Moment, scores: Mapping[str, FrameScore]) -> None:
        """Append one frame."""
        del item
        for name, score in scores.items():
            if score.overlaps is not None:
                self._overlaps[name] = self._overlaps.get(name, 0) + score.overlaps
        figures = [overlap_miou(self._overlaps[name]) for name in self._maker.names if name in self._overlaps]
        so_far = " → ".join(f"{figure:.2f}" for figure in figures if figure is not None)
        self._video.write(draw_row(moment, so_far, self._maker.class_names, self._maker.palette))

    def close(self) -> None:
        """Finish the file."""
        self._video.close()


class ContactSheet:
    """A PNG of one moment of each named stretch: that of median gain, so that neither luck nor bad luck is shown.

    Args:
        path: File to write.
        maker: Of the moments.
        reference: Variant that the gain is over; None where there is none.
    """

    _CANDIDATES, _MOST_STRETCHES = 16, 10

    def __init__(self, path: Path, maker: MomentMaker, reference: str | None) -> None:
        self._path, self._maker, self._reference = path, maker, reference
        self._chosen: dict[str, Moment] = {}
        self._stretch = ""
        self._begin("")

    def _begin(self, stretch: str) -> None:
        if self._stretch not in (*BETWEEN, *self._chosen) and self._candidates:
            ranked = sorted(self._candidates, key=lambda candidate: candidate[0])
            self._chosen[self._stretch] = ranked[len(ranked) // 2][1]
        self._stretch = stretch
        self._candidates: list[tuple[float, Moment]] = []
        self._seen, self._every = 0, 1

    def add(self, item: ReplayFrame, moment: Moment, scores: Mapping[str, FrameScore]) -> None:
        """Look at one frame: of a stretch, candidates evenly spread over it are kept."""
        if item.segment != self._stretch:
            self._begin(item.segment)
        has_masks = all(panel.picture is not None for panel in moment.panels)
        self._seen += 1
        if not has_masks or item.truth is None or (self._seen - 1) % self._every or item.segment in self._chosen:
            return
        gain = scores[self._maker.names[-1]].miou - (scores[self._reference].miou if self._reference else 0.0)
        self._candidates.append((gain, moment.shrunk()))
        if len(self._candidates) >= self._CANDIDATES:
            self._candidates = self._candidates[::2]
            self._every *= 2

    def close(self) -> None:
        """Write the file, where a stretch with truth was seen."""
        self._begin("")
        if moments := list(self._chosen.values())[: self._MOST_STRETCHES]:
            write_contact_sheet(self._path, moments, self._maker.class_names, self._maker.palette)


class Outputs(ExitStack):
    """All of them together, closed together, whatever happens, so that what was done can be read.

    Args:
        trace: File of the trace.
        bag: The new bag, where one is wanted.
        maker: Of the moments for `pictures`.
        pictures: Video and contact sheet, as far as they are wanted.
    """

    def __init__(
        self, trace: Path, bag: MaskBag | None, maker: MomentMaker, pictures: Sequence[ReplayVideo | ContactSheet]
    ) -> None:
        super().__init__()
        # Line by line: a replay that is killed keeps them.
        self._trace = self.enter_context(trace.open("w", encoding="utf-8", buffering=1))
        self._bag, self._maker, self._pictures = bag, maker, pictures
        for output in (*([bag] if bag else []), *pictures):
            self.callback(output.close)

    def add(
        self,
        item: ReplayFrame,
        seconds: float,
        outcomes: Mapping[str, Outcome],
        scores: Mapping[str, FrameScore],
        runners: Mapping[str, VariantRunner],
    ) -> None:
        """Write one frame."""
        for name, outcome in outcomes.items():
            line = trace_line(item, seconds, name, outcome, scores[name])
            self._trace.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.add_made(name, outcome.made, runners[name])
        moment = self._maker.make(item, seconds, outcomes, scores) if self._pictures else None
        if moment is not None:
            for output in self._pictures:
                output.add(item, moment, scores)

    def add_made(self, name: str, made: Sequence[Answer], runner: VariantRunner) -> None:
        """Write the masks that a variant made."""
        if self._bag is not None:
            self._bag.add(name, made, runner)


def topic_part(name: str) -> str:
    """A variant's name as part of a topic: `oracle:night-rain` becomes `oracle_night_rain`."""
    return re.sub(r"\W", "_", name)
