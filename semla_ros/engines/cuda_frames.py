"""Frames on a GPU: bytes of an image up, bytes of its mask down, and everything between them in graphs.

All of it goes through a stream of its own, of high priority, so that scene embedding and fusion beside it are not
waited for; what they write is ordered by `TorchEngine.set_text`. The host waits for this frame alone. An image's size
has graphs of its own before and after the model, of a few operators each; the model's own fits every size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor

from semla_ros.engines.base import EngineOutput
from semla_ros.engines.cuda_graph import Forward, GraphedForward
from semla_ros.engines.mask_from_maps import packed_mask, unpacked_mask
from semla_ros.results import ImageArray
from semla_ros.segmentation.inference import InferenceMode, PixelStatistics, merged, views
from semla_ros.segmentation.protocol import ModelConfig
from semla_ros.timing import Stopwatch

_SIZES_KEPT = 4  # sizes of images with graphs of their own, each of which holds its intermediate results

Enter = Callable[[str], AbstractContextManager[None]]


def _page_locked(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


class PageLocked:
    """Host memory that a GPU reads and writes by itself, while the host goes on.

    Locking pages takes longer than the copy itself, so the buffer of the last shape is used again. The caller waits for
    the device before it uses a place again.

    Args:
        allocate: Makes a host buffer of a shape, uint8; for tests without a GPU.
    """

    def __init__(self, allocate: Callable[[tuple[int, ...]], Tensor] = _page_locked) -> None:
        self._allocate = allocate
        self._buffers: dict[int, Tensor] = {}  # by place in the batch: none is overwritten while another is copied

    def buffer(self, place: int, shape: tuple[int, ...]) -> Tensor:
        """Memory for one of the images that are answered together, uint8; its content is whatever was left there."""
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != shape:
            buffer = self._buffers[place] = self._allocate(shape)
        return buffer

    def image(self, place: int, image: ImageArray) -> Tensor:
        """A copy of an image (H, W, 3), uint8, of any strides and read-only or not."""
        buffer = self.buffer(place, image.shape)
        np.copyto(buffer.numpy(), image)
        return buffer


class CudaFrames:
    """Answers images on one GPU.

    Args:
        device: A CUDA device.
        config: Of the model.
        mode: Way of inference.

    Attributes:
        stream: Where frames run.
    """

    def __init__(self, device: torch.device, config: ModelConfig, mode: InferenceMode) -> None:
        self._device, self._config, self._mode = device, config, mode
        self.stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._statistics = PixelStatistics.of(config, device)
        self._marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]  # type: ignore[no-untyped-call]
        self._up, self._down = PageLocked(), PageLocked()
        self.forget()

    def forget(self) -> None:
        """Drop what was captured."""
        self._graphs: dict[str, GraphedForward] = {}

    def _graphed(self, work: Forward) -> GraphedForward:
        """Graphs of one of this object's own steps."""
        if work.__name__ not in self._graphs:
            self._graphs[work.__name__] = GraphedForward(work, _SIZES_KEPT)
        return self._graphs[work.__name__]

    @contextmanager
    def current(self) -> Iterator[None]:
        """The device and the stream are the current ones."""
        with torch.cuda.device(self._device), torch.cuda.stream(self.stream):
            yield

    def answer(
        self,
        images: Sequence[ImageArray],
        want_confidence: bool,
        forward: Forward,
        way: frozenset[str],
        entered: Enter,
    ) -> list[EngineOutput] | None:
        """Answer images together.

        Args:
            images: RGB, each of shape (H, W, 3), uint8.
            want_confidence: Also give the probability of the chosen class.
            forward: Normalised views of all images (V, 3, h, w) to logits (V, T, ., .).
            way: Keys of `fallback.INSTEAD`.
            entered: Notes the stage while it is entered.

        Returns:
            An answer for each image; None where logits are not finite.
        """
        watch, marks = Stopwatch(), self._marks
        with watch.stage("total"), self.current():
            with entered("preprocess"):
                marks[0].record()
                seen = [self._seen(image, place, way, len(images)) for place, image in enumerate(images)]
                marks[1].record()
            with entered("forward"):
                logits = forward(torch.cat(seen) if len(seen) > 1 else seen[0])
                marks[2].record()
                received = [
                    self._received(own, image.shape[:2], want_confidence, place, way)
                    for place, (own, image) in enumerate(zip(logits.chunk(len(images)), images, strict=True))
                ]
                marks[3].record()
                marks[2].synchronize()
            with entered("postprocess"):
                marks[3].synchronize()
                answers = [
                    unpacked_mask(data.numpy(), image.shape[:2], logits.shape[1], want_confidence)
                    for data, image in zip(received, images, strict=True)
                ]
        sound = [answer for answer in answers if answer is not None]
        if len(sound) < len(images):
            return None
        preprocess, forwarded = marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2])
        latency_ms = {"preprocess": preprocess, "forward": forwarded, **watch.latency_ms}
        latency_ms["postprocess"] = latency_ms["total"] - preprocess - forwarded
        return [
            EngineOutput(mask=mask, confidence=confidence, latency_ms=latency_ms.copy()) for mask, confidence in sound
        ]

    def _seen(self, image: ImageArray, place: int, way: frozenset[str], together: int) -> Tensor:
        """What the model sees of an image."""
        sent = self._up.image(place, image) if "pinned" in way else torch.from_numpy(np.array(image))
        if "graphs" not in way:
            return self._views(sent.to(self._device, non_blocking=True))
        seen = self._graphed(self._views)(sent)
        return seen.clone() if together > 1 else seen  # the next image of that size overwrites it

    def _views(self, image: Tensor) -> Tensor:
        return views(image.permute(2, 0, 1), self._config, self._mode, self._statistics)

    def _received(
        self, logits: Tensor, size: tuple[int, int], want_confidence: bool, place: int, way: frozenset[str]
    ) -> Tensor:
        """The answer to one image on the host, as bytes; there once the stream has come so far."""
        if "graphs" in way:
            packed = self._graphed(self._packed)(logits, settings=(size, want_confidence))
        else:
            packed = self._packed(logits, size, want_confidence)
        if "pinned" not in way:
            return packed.to("cpu", copy=True)
        return self._down.buffer(place, tuple(packed.shape)).copy_(packed, non_blocking=True)

    def _packed(self, logits: Tensor, size: tuple[int, int], want_confidence: bool) -> Tensor:
        # Before the sigmoid, which turns infinity into 1.
        is_finite = torch.stack(torch.aminmax(logits)).isfinite().all()
        return packed_mask(merged(logits, self._config, self._mode), size, want_confidence, is_finite)
