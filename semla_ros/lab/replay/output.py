"""What a replay leaves behind while it runs: the trace, the bag with masks, the video."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.bags.writer import NANOSECONDS, BagWriter
from semla_ros.lab.replay.runners import Answer, Outcome, VariantRunner
from semla_ros.lab.replay.scores import FrameScore, six_digits
from semla_ros.lab.report.pictures import FAINT_TEXT, Canvas, colourise, draw_mix, resize
from semla_ros.lab.report.video import VideoWriter
from semla_ros.labels import labels_json, overlay, palette_of
from semla_ros.results import Generation, ImageArray

NODE = "/perception"  # where the node publishes by default
_OVERLAY_ALPHA = 0.5


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
                picture = overlay(frame.image, result.mask, self._palette, _OVERLAY_ALPHA)
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


class ReplayVideo:
    """An mp4 of one camera: image, truth where there is one, and the masks of up to three variants.

    Args:
        path: File to write.
        names: Variants, the ones shown first.
        primary: Whose mix is written in.
        class_names: The vocabulary.
        rate_hz: Frames per second.
    """

    _WIDTH, _HEADER, _FOOTER, _GAP = 384, 34, 46, 4

    def __init__(
        self, path: Path, names: Sequence[str], primary: str, class_names: Sequence[str], rate_hz: float
    ) -> None:
        self._names = [*[name for name in names if name != primary][:2], primary]
        self._primary = primary
        self._palette: NDArray[np.uint8] = palette_of(class_names)
        self._video = VideoWriter(path, rate_hz)
        self._camera: str | None = None
        self._has_truth: bool | None = None

    def add(self, item: ReplayFrame, outcomes: Mapping[str, Outcome], scores: Mapping[str, FrameScore]) -> None:
        """Append one frame of the first camera."""
        if self._camera is None:
            self._camera, self._has_truth = item.frame.camera, item.truth is not None
        if item.frame.camera != self._camera:
            return
        height, width = item.frame.image.shape[:2]
        tall = round(self._WIDTH * height / width)
        panels: list[tuple[str, ImageArray | None, float]] = [("camera", item.frame.image, math.nan)]
        if self._has_truth:
            panels.append(("truth", None if item.truth is None else colourise(item.truth, self._palette), math.nan))
        for name in self._names:
            mask = outcomes[name].mask
            panels.append((name, None if mask is None else colourise(mask, self._palette), scores[name].miou))
        canvas = Canvas(len(panels) * (self._WIDTH + self._GAP) + self._GAP, self._HEADER + tall + self._FOOTER)
        for column, (title, picture, miou) in enumerate(panels):
            left = self._GAP + column * (self._WIDTH + self._GAP)
            canvas.text(left + 6, self._HEADER / 2, title, size=16, bold=True)
            if not math.isnan(miou):
                canvas.text(
                    left + self._WIDTH - 6,
                    self._HEADER / 2,
                    f"mIoU {miou:.2f}",
                    size=15,
                    colour=FAINT_TEXT,
                    anchor="rm",
                )
            if picture is not None:
                canvas.paste(resize(picture, self._WIDTH, tall, smooth=title == "camera"), left, self._HEADER)
        mix = outcomes[self._primary].generation.mix
        middle = self._HEADER + tall + self._FOOTER / 2
        canvas.text(self._GAP + 6, middle, item.segment or f"frame {item.index}", size=16, bold=True)
        left = self._GAP + self._WIDTH // 2
        draw_mix(canvas, mix.shares(), left, round(middle) - 13, canvas.width - left - 2 * self._GAP, 26)
        self._video.write(canvas.array())

    def close(self) -> None:
        """Finish the file."""
        self._video.close()


class Outputs(ExitStack):
    """Trace, bag and video together, closed together, whatever happens, so that what was done can be read."""

    def __init__(self, trace: Path, bag: MaskBag | None, video: ReplayVideo | None) -> None:
        super().__init__()
        # Line by line: a replay that is killed keeps them.
        self._trace = self.enter_context(trace.open("w", encoding="utf-8", buffering=1))
        self._bag, self._video = bag, video
        for output in (bag, video):
            if output is not None:
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
        if self._video is not None:
            self._video.add(item, outcomes, scores)

    def add_made(self, name: str, made: Sequence[Answer], runner: VariantRunner) -> None:
        """Write the masks that a variant made."""
        if self._bag is not None:
            self._bag.add(name, made, runner)


def topic_part(name: str) -> str:
    """A variant's name as part of a topic: `oracle:night-rain` becomes `oracle_night_rain`."""
    return re.sub(r"\W", "_", name)
