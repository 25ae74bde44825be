"""The frames that a person should look at, with their pictures: few, apart in time, kept in bounded memory."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.replay.runners import Outcome
from semla_ros.lab.replay.scores import FrameScore
from semla_ros.results import ImageArray, MaskArray

PICTURE_WIDTH = 384  # pixels; larger images are shrunk
FRAMES_EACH = 6
APART_S = 3.0


@dataclass
class GalleryFrame:
    """One kept frame.

    Attributes:
        score: Larger is more worth looking at.
        seconds: Time in the recording.
        content: What the report shows of it.
    """

    score: float
    seconds: float
    content: dict[str, Any]


@dataclass
class Category:
    """The frames that stand out in one respect.

    Attributes:
        title: What they have in common.
        note: One sentence on how to read it.
        frames: The kept ones.
    """

    title: str
    note: str
    frames: list[GalleryFrame] = field(default_factory=list)

    def offer(self, score: float, seconds: float, make: Callable[[], dict[str, Any]]) -> None:
        """Keep the frame where it is among the worst; of frames close together only the worst one stays."""
        if math.isnan(score):
            return
        near = [kept for kept in self.frames if abs(kept.seconds - seconds) < APART_S]
        if near:
            if score <= max(kept.score for kept in near):
                return
            self.frames = [kept for kept in self.frames if kept not in near]
        elif len(self.frames) >= FRAMES_EACH:
            least = min(self.frames, key=lambda kept: kept.score)
            if score <= least.score:
                return
            self.frames.remove(least)
        self.frames.append(GalleryFrame(score, seconds, make()))


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
            self._worst = Category("Worst frames", f"Lowest mIoU of {primary}.")
            self._harmed = Category(f"{primary} below {reference}", "Where adapting cost the most mIoU.")
            self._helped = Category(f"{primary} above {reference}", "Where adapting gained the most mIoU.")
        else:
            self._worst = Category("Least confident", f"Lowest mean confidence of {primary}.")
            self._harmed = Category(
                "Largest disagreement", f"Most pixels that {primary} and {reference} see differently."
            )
            self._helped = Category(
                "Flicker", f"Most pixels of {primary} that change class from one frame to the next."
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
        made: list[dict[str, Any]] = []

        def make() -> dict[str, Any]:
            if not made:
                made.append(self._content(item, seconds, outcomes, scores))
            return made[0]

        primary = scores[self._primary]
        reference = scores[self._reference] if self._reference else None
        if self._has_truth:
            self._worst.offer(-primary.miou, seconds, make)
            if reference is not None:
                gain = primary.miou - reference.miou
                if gain < 0:
                    self._harmed.offer(-gain, seconds, make)
                elif gain > 0:
                    self._helped.offer(gain, seconds, make)
        else:
            self._worst.offer(-primary.confidence, seconds, make)
            self._helped.offer(primary.flicker, seconds, make)
            if self._reference:
                pair = (self._primary, self._reference)
                share = agreement.get(pair, agreement.get(pair[::-1], math.nan))
                self._harmed.offer(1 - share, seconds, make)

    def categories(self) -> list[dict[str, Any]]:
        """The categories for the report, each with its frames from the worst on."""
        return [
            {
                "title": category.title,
                "note": category.note,
                "frames": [kept.content for kept in sorted(category.frames, key=lambda kept: -kept.score)],
            }
            for category in (self._worst, self._harmed, self._helped)
            if category.frames
        ]

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
            "variants": {
                name: {
                    "mask": None if outcome.mask is None else mask_uri(outcome.mask, self._palette),
                    "miou": _number(scores[name].miou),
                    "confidence": _number(scores[name].confidence),
                    "flicker": _number(scores[name].flicker),
                    "generation": outcome.generation.number,
                    "reason": outcome.generation.reason,
                    "scene_age_s": None
                    if outcome.generation.scene_stamp_ns is None
                    else round((item.frame.stamp_ns - outcome.generation.scene_stamp_ns) / 1e9, 3),
                    "mix": _explained_mix(outcome),
                }
                for name, outcome in outcomes.items()
            },
        }


def _explained_mix(outcome: Outcome) -> dict[str, Any]:
    """The mix, and the near adapters that got no weight in it."""
    mix = outcome.generation.mix.as_json()
    present = {adapter["name"] for adapter in mix["adapters"]}
    mix["adapters"] += [
        {"name": name, "weight": 0.0, "distance": _number(distance)}
        for name, distance in outcome.nearest
        if name not in present
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
        colours = np.vstack([palette, np.zeros((1, 3), np.uint8)])
        picture = Image.fromarray(colours[np.minimum(mask, len(palette))])
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _display_size(height: int, width: int) -> tuple[int, int]:
    return (height, width) if width <= PICTURE_WIDTH else (round(height * PICTURE_WIDTH / width), PICTURE_WIDTH)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def reference_of(primary: str, names: Sequence[str]) -> str | None:
    """What the primary variant is compared with: base where it runs, else the first other one."""
    others = [name for name in names if name != primary]
    return "base" if "base" in others else (others[0] if others else None)
