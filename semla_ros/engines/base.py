"""What every engine offers: an image in, a mask at the image's own size out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from semla_ros.results import UNLABELLED, ImageArray, MaskArray

AGREEMENT = 0.995  # smallest share of probe pixels whose class must be that of torch, eager and in fp32


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineOutput:
    """The answer of an engine to one image.

    Attributes:
        mask: Class index per pixel, shape (H, W) of the image, uint8, or uint16 above 254 classes.
        confidence: Probability of the chosen class scaled to 0..255, shape (H, W), uint8; None where not asked for.
        latency_ms: Milliseconds by stage: "preprocess", "forward", "postprocess", "total".
    """

    mask: MaskArray
    confidence: NDArray[np.uint8] | None
    latency_ms: Mapping[str, float]


class Stage(NamedTuple):
    """What an engine is doing.

    Attributes:
        name: "preprocess", "forward", "postprocess", or "engine check" between two frames.
        since_s: When that began, by `time.monotonic`.
    """

    name: str
    since_s: float


class Engine(Protocol):
    """Runs the forward pass of one model. Not thread-safe: the pipeline calls it for one frame at a time.

    Where a forward pass fails, an engine answers that very image in a safer way, stays with it, and tells why once.
    """

    @property
    def stage(self) -> Stage | None:
        """What it is doing, None between two frames; may be read from any thread."""
        ...

    @property
    def name(self) -> str:
        """What serves, as shown in diagnostics."""
        ...

    def segment(self, image: ImageArray, want_confidence: bool = True) -> EngineOutput:
        """Segment one image.

        Args:
            image: RGB, shape (H, W, 3), uint8.
            want_confidence: Also give the probability of the chosen class.

        Raises:
            ImageError: The image has another type or shape.
            NotFiniteError: The weights in use give no finite answer in any way; the engine stays as it is.
            OutOfMemoryError: No way needs little enough; likewise.
            EngineError: No vocabulary was set, or the device fails in every way.
        """
        ...

    def segment_batch(self, images: Sequence[ImageArray], want_confidence: bool = True) -> list[EngineOutput]:
        """Segment images of any sizes in one forward pass where the way of inference allows it, else in turn.

        Args:
            images: RGB, each of shape (H, W, 3), uint8; at least one.
            want_confidence: Also give the probability of the chosen class.

        Returns:
            One answer for each image; latencies are those of the whole batch.

        Raises:
            ImageError: An image has another type or shape.
            NotFiniteError: The weights in use give no finite answer in any way; the engine stays as it is.
            OutOfMemoryError: No way needs little enough; likewise.
            EngineError: No vocabulary was set, or the device fails in every way.
        """
        ...

    def catch_up(self) -> None:
        """Load and judge what was made beside the frames since the last call; what serves may change by it.

        For the caller of `segment_batch`, before it. Weights may be swapped meanwhile.
        """
        ...

    def set_text(self, text_features: Tensor) -> None:
        """Take over class embeddings (T, C), unit length; the mask's indices follow their order.

        Raises:
            EngineError: They cannot be used, or there is no memory for them; the former ones stay in use.
        """
        ...

    def warm_up(self) -> None:
        """Run untimed once, so that the first frame is not slower than the rest."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; it cannot be used afterwards."""
        ...


def agreement(given: Sequence[MaskArray], expected: Sequence[MaskArray]) -> float:
    """Share of pixels with the same class, 0..1."""
    return float(np.mean([np.mean(a == b) for a, b in zip(given, expected, strict=True)]))


def mask_dtype(class_count: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest type that holds every class index and leaves its largest value for "unlabelled"."""
    return np.uint8 if class_count < UNLABELLED else np.uint16
