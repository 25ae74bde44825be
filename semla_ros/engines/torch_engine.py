"""The engine that always works: PyTorch on a CPU or a CUDA device.

Lower precision, and a compiled forward pass, serve only after their masks agreed on a probe set with fp32, or with the
eager one; where they do not, that goes on and `notes` says why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from semla_ros.config import InferenceConfig
from semla_ros.engines.base import EngineOutput, check_image
from semla_ros.engines.gates import AGREEMENT, agreement, first_line
from semla_ros.engines.mask_from_maps import mask_from_maps
from semla_ros.errors import EngineError
from semla_ros.results import ImageArray, MaskArray
from semla_ros.segmentation.class_buckets import bucket_size, pad_vocabulary
from semla_ros.segmentation.inference import probabilities, probability_maps, whole_view
from semla_ros.segmentation.model import CatSeg
from semla_ros.timing import Stopwatch

if TYPE_CHECKING:
    from semla_ros.engines.cuda_graph import GraphedForward

logger = logging.getLogger(__name__)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SPEED_RUNS = 3
_GRAPHS_KEPT = 4  # for as many numbers of cameras answered at once

Forward = Callable[..., Tensor]  # normalised images, class embeddings, optionally their presence -> logits


def choose_device(name: str) -> torch.device:
    """The device that a setting names.

    Raises:
        EngineError: It is not one, or this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EngineError(f"device '{name}' is not one; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"device '{name}' was asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"device '{name}' is not supported; use auto, cpu, cuda or cuda:1")
    return device


def has_bf16() -> bool:
    """Whether this machine's CPU computes in bf16, so that it is faster and not slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_threads(threads: int) -> int:
    """CPU threads of the forward pass: as set, or all but one of the physical cores that this process may run on.

    Where one of the model's threads waits for a core, all of them wait for it, so one core is left to the adaptation
    path, ROS and whatever else runs: on a busy machine of two cores, a frame of the tiny model took 60 ms with one
    thread and seconds with two.
    """
    if threads:
        return threads
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed) - 1)


def _page_locked(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


class ImageUpload:
    """Copies images to a device.

    Locking pages takes longer than the copy itself, so the buffer of the last shape is used again. The caller waits
    for the device before it uploads the same number of images again, as `TorchEngine` does with each forward pass.

    Args:
        device: Where images are needed.
        allocate: Makes a host buffer of a shape, uint8; for tests without a GPU.
    """

    def __init__(self, device: torch.device, allocate: Callable[[tuple[int, ...]], Tensor] = _page_locked) -> None:
        self._device, self._allocate = device, allocate
        self._buffers: dict[int, Tensor] = {}  # by place in the batch: none is overwritten while another is copied

    def __call__(self, image: ImageArray, place: int = 0) -> Tensor:
        """An image (H, W, 3), uint8, of any strides and read-only or not, as (3, H, W) on the device.

        Args:
            image: RGB.
            place: Its number among the images that are uploaded before the device is waited for.
        """
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != image.shape:
            buffer = self._buffers[place] = self._allocate(image.shape)
        np.copyto(buffer.numpy(), image)
        return buffer.to(self._device, non_blocking=True).permute(2, 0, 1)


class TorchEngine:
    """Runs a `CatSeg` eagerly, compiled, or as a captured CUDA graph.

    The model's weights may be overwritten in place between two calls. The model is moved to the device first, so make
    the engine before anything that keeps references to its tensors.

    Args:
        model: In evaluation mode.
        config: Device, inference mode, precision, threads, compilation.
        probe_images: What lower precision is checked on, uint8 RGB; None = those of the module of that name.

    Attributes:
        name: "torch".
        device: Where it runs.
        precision: "fp32", "bf16" or "fp16": what serves, settled in `warm_up`.
        notes: What was asked for and could not be had, with the reason.
    """

    name = "torch"

    def __init__(
        self, model: CatSeg, config: InferenceConfig, *, probe_images: Sequence[ImageArray] | None = None
    ) -> None:
        self.device = choose_device(config.device)
        self.precision = "fp32"
        self.notes: list[str] = []
        self._config = config
        self._probe_images = probe_images
        self._model = model.to(self.device).eval()
        self._text: Tensor | None = None
        self._padded: tuple[Tensor, Tensor] | None = None  # the vocabulary filled up, and its presence
        self._compiled: Forward | None = None
        self._graph: GraphedForward | None = None
        self._upload = ImageUpload(self.device)
        self._is_warm = False
        if self.device.type == "cpu":
            torch.set_num_threads(choose_threads(config.threads))

    def set_text(self, text_features: Tensor) -> None:
        """Take over class embeddings (T, C).

        What was compiled or captured stays valid while T stays within its bucket, see `class_buckets`.

        Raises:
            EngineError: The shape does not fit the model.
        """
        width = self._model.config.clip.embed_dim
        if text_features.ndim != 2 or text_features.shape[1] != width or not len(text_features):
            raise EngineError(f"class embeddings must have shape (T, {width}), got {tuple(text_features.shape)}")
        rows_before = self._rows
        self._text = text_features.detach().to(self.device, torch.float32)
        limit = self._model.config.aggregator.pad_len
        is_padded = not 0 < limit < len(self._text)  # of more classes the best are selected inside
        self._padded = pad_vocabulary(self._text, bucket_size(len(self._text), limit)) if is_padded else None
        if self._rows != rows_before:
            self._graph = None  # graphs of another number of classes would only hold memory

    def segment(self, image: ImageArray, want_confidence: bool = True) -> EngineOutput:
        """Segment one image, see `Engine.segment`."""
        (answer,) = self.segment_batch([image], want_confidence)
        return answer

    def segment_batch(self, images: Sequence[ImageArray], want_confidence: bool = True) -> list[EngineOutput]:
        """Segment the images of several cameras, see `Engine.segment_batch`."""
        if len(images) > 1 and self._config.inference != "whole":
            return [self.segment(image, want_confidence) for image in images]
        for image in images:
            check_image(image)
        watch = Stopwatch()
        with watch.stage("total"), torch.inference_mode():
            with watch.stage("preprocess"):
                pixels = [self._pixels(image, place) for place, image in enumerate(images)]
            maps = self._maps(pixels, watch)
            with watch.stage("postprocess"):
                answers = [_answer(one, image, want_confidence) for one, image in zip(maps, images, strict=True)]
        return [
            EngineOutput(mask=mask, confidence=confidence, latency_ms=dict(watch.latency_ms))
            for mask, confidence in answers
        ]

    def warm_up(self) -> None:
        """Settle the precision, compile or capture where asked, and run untimed.

        Raises:
            EngineError: No vocabulary was set.
        """
        height, width = self._model.config.working_resolution
        blank = np.zeros((height, width, 3), np.uint8)
        if not self._is_warm:
            self._is_warm = True
            self._settle_precision()
            self._settle_compilation()
        for _ in range(2):
            self.segment(blank)

    def close(self) -> None:
        """Drop the compiled or captured forward pass."""
        self._graph = self._compiled = self._text = self._padded = None

    def forget_graph(self) -> None:
        """Capture anew with the next frame, because what the forward pass calls has changed."""
        self._graph = None

    @property
    def _rows(self) -> int:
        """Class embeddings that a captured forward pass is given; 0 without a vocabulary."""
        given = self._text if self._padded is None else self._padded[0]
        return 0 if given is None else len(given)

    def _pixels(self, image: ImageArray, place: int = 0) -> Tensor:
        if self.device.type == "cuda":
            return self._upload(image, place)
        # torch reads neither read-only memory (a message's buffer) nor negative strides.
        ready = image if image.flags.writeable and image.flags.c_contiguous else np.array(image)
        return torch.from_numpy(ready).permute(2, 0, 1)

    def _maps(self, pixels: Sequence[Tensor], watch: Stopwatch) -> Sequence[Tensor]:
        """Probability maps (T, h, w) of each image; what is not the forward pass counts as preprocessing."""
        config, forward = self._model.config, Stopwatch()

        def predict(views: Tensor) -> Tensor:
            with forward.stage("forward"):
                logits = self._forward(views)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                return logits

        with watch.stage("preprocess"):
            if self._config.inference == "whole":
                maps = probabilities(predict(torch.cat([whole_view(item, config) for item in pixels])), config)
                answer: Sequence[Tensor] = list(maps)
            else:
                answer = [probability_maps(predict, config, item, self._config.inference) for item in pixels]
        watch.latency_ms |= forward.latency_ms
        watch.latency_ms["preprocess"] -= forward.latency_ms["forward"]
        return answer

    def _forward(self, images: Tensor) -> Tensor:
        """Logits (B, T, h, w)."""
        if self._text is None:
            raise EngineError("no vocabulary was set; call set_text first")
        forward: Forward = self._autocast_forward
        if self.device.type == "cuda":
            if self._graph is None:
                from semla_ros.engines.cuda_graph import GraphedForward

                self._graph = GraphedForward(self._autocast_forward, _GRAPHS_KEPT)
            forward = self._graph
        has_fixed_shapes = self._graph is not None or self._compiled is not None
        if not has_fixed_shapes or self._padded is None:
            return forward(images, self._text)
        return forward(images, *self._padded)[:, : len(self._text)]

    def _autocast_forward(self, *inputs: Tensor) -> Tensor:
        # Not `or`: a compiled model asks the module for its length.
        forward: Forward = self._model if self._compiled is None else self._compiled
        if self.precision == "fp32":
            return forward(*inputs)
        # Nothing is cached across calls: the weights may have been overwritten in between.
        with torch.autocast(self.device.type, dtype=_DTYPES[self.precision], cache_enabled=False):
            return forward(*inputs).float()

    def _settle_precision(self) -> None:
        wanted: str = self._config.precision
        if wanted == "auto":
            wanted = _fast_precision(self.device)
        if wanted == "fp32":
            return
        probe = self._probe_set()
        reference, reference_ms = self._probe(probe)
        self._switch(wanted)
        masks, spent_ms = self._probe(probe)
        share = agreement(masks, reference)
        if share < AGREEMENT:
            self._refuse(f"{wanted} agrees with fp32 on {share:.2%} of the probe pixels, below {AGREEMENT:.1%}")
        elif self._config.precision == "auto" and spent_ms >= reference_ms:
            self._refuse(f"{wanted} takes {spent_ms:.0f} ms an image, fp32 {reference_ms:.0f} ms")

    def _probe_set(self) -> Sequence[ImageArray]:
        if self._probe_images is not None:
            return self._probe_images
        from semla_ros.engines.probe_images import probe_images

        return probe_images(*self._model.config.working_resolution)

    def _probe(self, images: Sequence[ImageArray]) -> tuple[list[MaskArray], float]:
        """Masks of the probe set, and the shortest forward pass in milliseconds."""
        masks = self._masks(images)
        runs = [self.segment(images[0], want_confidence=False).latency_ms["forward"] for _ in range(_SPEED_RUNS)]
        return masks, min(runs)

    def _masks(self, images: Sequence[ImageArray]) -> list[MaskArray]:
        return [self.segment(image, want_confidence=False).mask for image in images]

    def _switch(self, precision: str) -> None:
        self.precision = precision
        self._graph = None

    def _refuse(self, reason: str) -> None:
        self._switch("fp32")
        self.notes.append(f"fp32 serves: {reason}")
        logger.warning("engine torch: %s", self.notes[-1])

    def _settle_compilation(self) -> None:
        """Compile where asked; eager goes on where that fails or gives other masks."""
        if not self._config.compile:
            return
        probe = self._probe_set()
        reference = self._masks(probe)
        self._graph = None
        self._compiled = torch.compile(self._model, dynamic=False)
        try:
            share = agreement(self._masks(probe), reference)
        except Exception as error:  # a compiler can fail in any way, and eager always works
            reason = f"torch.compile failed ({first_line(error)})"
        else:
            if share >= AGREEMENT:
                return
            reason = f"compiled, it agrees with eager on {share:.2%} of the probe pixels, below {AGREEMENT:.1%}"
        self._compiled = self._graph = None
        self.notes.append(f"eager serves: {reason}")
        logger.warning("engine torch: %s", self.notes[-1])


def _answer(maps: Tensor, image: ImageArray, want_confidence: bool) -> tuple[MaskArray, NDArray[np.uint8] | None]:
    if not bool(maps.isfinite().all()):
        raise EngineError("the model's class probabilities are not finite: its weights are damaged")
    return mask_from_maps(maps, (image.shape[0], image.shape[1]), want_confidence)


def _fast_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "fp16"
    return "bf16" if has_bf16() else "fp32"
