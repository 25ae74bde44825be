"""Frames on a GPU: bytes of an image up, bytes of its mask down, and everything between them in graphs.

All of it goes through a stream of its own, of high priority, so that scene embedding and fusion beside it are not
waited for; what they write is ordered by `TorchEngine.set_text`. The host waits for this frame alone. Images of one
size go up, and their masks come down, together. Their size and number have graphs of their own before and after the
model, of a few operators each; the model's own fits every size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor

from semla_ros.engines.base import EngineOutput
from semla_ros.engines.cuda_graph import Forward, GraphedForward
from semla_ros.engines.mask_from_maps import Answer
from semla_ros.engines.packed_mask import packed_mask, unpacked_mask
from semla_ros.results import ImageArray
from semla_ros.segmentation.inference import InferenceMode, PixelStatistics, merged, views
from semla_ros.segmentation.protocol import ModelConfig
from semla_ros.timing import Stopwatch

_SIZES_KEPT = 4  # sizes and numbers of images with graphs of their own, each of which holds its intermediate results

Enter = Callable[[str], AbstractContextManager[None]]


def _page_locked(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


class PageLocked:
    """Host memory that a GPU reads and writes by itself, while the host goes on.

    Locking pages takes longer than the copy itself, so the buffer of the last shape is used again, for fewer rows, too.
    The caller waits for the device before it uses a place again.

    Args:
        allocate: Makes a host buffer of a shape, uint8; for tests without a GPU.
    """

    def __init__(self, allocate: Callable[[tuple[int, ...]], Tensor] = _page_locked) -> None:
        self._allocate = allocate
        self._buffers: dict[int, Tensor] = {}  # by place in the batch: none is overwritten while another is copied

    def buffer(self, place: int, shape: tuple[int, ...]) -> Tensor:
        """Memory for one of the transfers of a batch, uint8; its content is whatever was left there."""
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape[1:] != shape[1:] or len(buffer) < shape[0]:
            buffer = self._buffers[place] = self._allocate(shape)
        return buffer if len(buffer) == shape[0] else buffer[: shape[0]]

    def images(self, place: int, images: Sequence[ImageArray]) -> Tensor:
        """A copy (N, H, W, 3) of images of one size, uint8, of any strides and read-only or not."""
        buffer = self.buffer(place, (len(images), *images[0].shape))
        for mine, given in zip(buffer.numpy(), images, strict=True):
            np.copyto(mine, given)
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
        together: dict[tuple[int, int], list[int]] = defaultdict(list)  # places of the images of each size
        for place, image in enumerate(images):
            together[image.shape[:2]].append(place)
        answers: list[Answer | None] = [None] * len(images)
        with watch.stage("total"), self.current():
            with entered("preprocess"):
                marks[0].record()
                seen = [self._seen([images[place] for place in group], group[0], way) for group in together.values()]
                marks[1].record()
            with entered("forward"):
                logits = forward(torch.cat(seen) if len(seen) > 1 else seen[0])
                marks[2].record()
                shares = torch.split(logits, [len(logits) // len(images) * len(group) for group in together.values()])
                received = [
                    self._received(own, size, want_confidence, group, way)
                    for own, (size, group) in zip(shares, together.items(), strict=True)
                ]
                marks[3].record()
                marks[2].synchronize()
            with entered("postprocess"):
                marks[3].synchronize()
                for rows, (size, group) in zip(received, together.items(), strict=True):
                    for row, place in zip(rows.numpy(), group, strict=True):
                        answers[place] = unpacked_mask(row, size, logits.shape[1], want_confidence)
        sound = [answer for answer in answers if answer is not None]
        if len(sound) < len(images):
            return None
        preprocess, forwarded = marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2])
        latency_ms = {"preprocess": preprocess, "forward": forwarded, **watch.latency_ms}
        latency_ms["postprocess"] = latency_ms["total"] - preprocess - forwarded
        return [
            EngineOutput(mask=mask, confidence=confidence, latency_ms=latency_ms.copy()) for mask, confidence in sound
        ]

    def _seen(self, images: Sequence[ImageArray], place: int, way: frozenset[str]) -> Tensor:
        """What the model sees of images of one size."""
        sent = self._up.images(place, images) if "pinned" in way else torch.from_numpy(np.stack(images))
        if "graphs" not in way:
            return self._views(sent.to(self._device, non_blocking=True))
        return self._graphed(self._views)(sent)

    def _views(self, images: Tensor) -> Tensor:
        seen = [views(image.permute(2, 0, 1), self._config, self._mode, self._statistics) for image in images]
        return torch.cat(seen) if len(seen) > 1 else seen[0]

    def _received(
        self, logits: Tensor, size: tuple[int, int], want_confidence: bool, group: Sequence[int], way: frozenset[str]
    ) -> Tensor:
        """The answers to images of one size on the host, a row of bytes each; there once the stream has come so far."""
        settings = size, want_confidence, len(group)
        if "graphs" in way:
            packed = self._graphed(self._packed)(logits, settings=settings)
        else:
            packed = self._packed(logits, *settings)
        if "pinned" not in way:
            return packed.to("cpu", copy=True)
        return self._down.buffer(group[0], tuple(packed.shape)).copy_(packed, non_blocking=True)

    def _packed(self, logits: Tensor, size: tuple[int, int], want_confidence: bool, count: int) -> Tensor:
        rows = []
        for own in logits.chunk(count):
            # Before the sigmoid, which turns infinity into 1.
            is_finite = torch.stack(torch.aminmax(own)).isfinite().all()
            rows.append(packed_mask(merged(own, self._config, self._mode), size, want_confidence, is_finite))
        return torch.stack(rows)
