"""The frames that a person should look at, with their pictures: few, apart in time, kept in bounded memory."""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.replay.runners import Outcome
from semla_ros.lab.replay.scores import FrameScore, six_digits
from semla_ros.lab.report.pictures import colourise
from semla_ros.results import ImageArray, MaskArray

PICTURE_WIDTH = 384  # pixels; larger images are shrunk
FRAMES_EACH = 6
APART_S = 3.0


class _Category:
    """The frames that stand out in one respect."""

    def __init__(self, title: str, note: str) -> None:
        self._title, self._note = title, note
        self._frames: list[tuple[float, float, dict[str, Any]]] = []  # mark, seconds, what the report shows

    def offer(self, mark: float, seconds: float, make: Callable[[], dict[str, Any]]) -> None:
        """Keep the frame where its mark is among the largest; of frames close together only one stays."""
        if math.isnan(mark):
            return
        rivals = [kept for kept in self._frames if abs(kept[1] - seconds) < APART_S]
        if not rivals and len(self._frames) >= FRAMES_EACH:
            rivals = [min(self._frames, key=_mark)]
        if not rivals or mark > max(map(_mark, rivals)):
            self._frames = [*(kept for kept in self._frames if kept not in rivals), (mark, seconds, make())]

    def as_json(self) -> dict[str, Any]:
        """For the report, the frames with the largest mark first."""
        frames = [content for _, _, content in sorted(self._frames, key=_mark, reverse=True)]
        return {"title": self._title, "note": self._note, "frames": frames}


def _mark(kept: tuple[float, float, dict[str, Any]]) -> float:
    return kept[0]


class Gallery:
    """Chooses frames while the replay runs.

    Args:
        primary: The variant that the report is about.
        reference: What it is compared with; None where there is nothing.
        palette: RGB colour per class, shape (K, 3), uint8.
        has_truth: Whether frames come with ground truth.
    """

    def __init__(self, primary: str, reference: str | None, palette: NDArray[np.uint8], *, has_truth: bool) -> None:
        self._primary, self._reference, self._palette = primary, reference, palette
        self._has_truth = has_truth
        if has_truth:
            self._categories = (
                _Category("Worst frames", f"Lowest mIoU of {primary}."),
                _Category(f"{primary} below {reference}", "Where adapting cost the most mIoU."),
                _Category(f"{primary} above {reference}", "Where adapting gained the most mIoU."),
            )
        else:
            self._categories = (
                _Category("Least confident", f"Lowest mean confidence of {primary}."),
                _Category("Largest disagreement", f"Most pixels that {primary} and {reference} see differently."),
                _Category("Flicker", f"Most pixels of {primary} that change class from one frame to the next."),
            )

    def add(
        self,
        item: ReplayFrame,
        seconds: float,
        outcomes: Mapping[str, Outcome],
        scores: Mapping[str, FrameScore],
        agreement: Mapping[tuple[str, str], float],
    ) -> None:
        """Look at one frame."""
        primary, reference = scores[self._primary], scores.get(self._reference or "", FrameScore())
        if self._has_truth:
            gain = primary.miou - reference.miou
            marks = (-primary.miou, -gain if gain < 0 else math.nan, gain if gain > 0 else math.nan)
        else:
            same = [share for pair, share in agreement.items() if set(pair) == {self._primary, self._reference}]
            marks = (-primary.confidence, 1 - same[0] if same else math.nan, primary.flicker)
        make = functools.cache(lambda: self._content(item, seconds, outcomes, scores))
        for category, mark in zip(self._categories, marks, strict=True):
            category.offer(mark, seconds, make)

    def categories(self) -> list[dict[str, Any]]:
        """The categories that have frames, for the report."""
        return [content for category in self._categories if (content := category.as_json())["frames"]]

    def _content(
        self,
        item: ReplayFrame,
        seconds: float,
        outcomes: Mapping[str, Outcome],
        scores: Mapping[str, FrameScore],
    ) -> dict[str, Any]:
        return {
            "index": item.index,
            "t": round(seconds, 3),
            "stamp_ns": str(item.frame.stamp_ns),  # beyond what a JavaScript number holds exactly
            "camera": item.frame.camera,
            "segment": item.segment,
            "image": picture_uri(item.frame.image),
            "truth": None if item.truth is None else mask_uri(item.truth, self._palette),
            "variants": {name: self._variant(item, outcome, scores[name]) for name, outcome in outcomes.items()},
        }

    def _variant(self, item: ReplayFrame, outcome: Outcome, score: FrameScore) -> dict[str, Any]:
        generation, mask, truth = outcome.generation, outcome.mask, item.truth
        scene_ns = generation.scene_stamp_ns
        return {
            "mask": None if mask is None else mask_uri(mask, self._palette),
            "errors": None
            if mask is None or truth is None
            else mask_uri(_errors(mask, truth, len(self._palette)), self._palette),
            "miou": six_digits(score.miou),
            "confidence": six_digits(score.confidence),
            "flicker": six_digits(score.flicker),
            "generation": generation.number,
            "reason": generation.reason,
            "scene_age_s": None if scene_ns is None else round((item.frame.stamp_ns - scene_ns) / 1e9, 3),
            "mix": _explained_mix(outcome),
        }


def _explained_mix(outcome: Outcome) -> dict[str, Any]:
    """The mix, and the near adapters that got no weight in it."""
    mix = outcome.generation.mix.as_json()
    nearest = outcome.answer.nearest if outcome.answer else ()
    mix["adapters"] += [
        {"name": name, "weight": 0.0, "distance": six_digits(distance)}
        for name, distance in nearest
        if name not in outcome.generation.mix.names
    ]
    return mix


def picture_uri(image: ImageArray) -> str:
    """A JPEG as data URI, at most `PICTURE_WIDTH` wide."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_bytes(image)).decode()


def jpeg_bytes(image: ImageArray) -> bytes:
    """A JPEG, at most `PICTURE_WIDTH` wide."""
    height, width = _display_size(image.shape[0], image.shape[1])
    if width != image.shape[1]:
        image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return data.tobytes()


def mask_uri(mask: MaskArray, palette: NDArray[np.uint8]) -> str:
    """A mask in its colours as PNG data URI; unlabelled pixels are black."""
    height, width = _display_size(*mask.shape)
    if width != mask.shape[1]:
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
    buffer = io.BytesIO()
    if len(palette) < 256:  # indexed colours take a third of the room
        picture = Image.fromarray(np.minimum(mask, len(palette)).astype(np.uint8), mode="P")
        picture.putpalette([*palette.reshape(-1).tolist(), 0, 0, 0])
    else:
        picture = Image.fromarray(colourise(mask, palette))
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _errors(mask: MaskArray, truth: MaskArray, class_count: int) -> MaskArray:
    """The mask where it is wrong, unlabelled (black) where it is right or the truth says nothing."""
    if mask.shape != truth.shape:
        mask = cv2.resize(mask, (truth.shape[1], truth.shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
    is_wrong = (mask != truth) & (truth < class_count)
    return np.where(is_wrong, mask, class_count).astype(np.uint16)


def _display_size(height: int, width: int) -> tuple[int, int]:
    return (height, width) if width <= PICTURE_WIDTH else (round(height * PICTURE_WIDTH / width), PICTURE_WIDTH)
