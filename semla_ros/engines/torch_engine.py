"""The engine that always works: PyTorch on a CPU or a CUDA device.

Lower precision, and a compiled forward pass, serve only after their masks agreed on a probe set with fp32, or with the
eager one; where they do not, that goes on and `notes` says why. What fails later is given up likewise, see `fallback`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from torch import Tensor

from semla_ros.config import InferenceConfig
from semla_ros.engines.base import AGREEMENT, EngineOutput, Stage, agreement
from semla_ros.engines.fallback import HALF, INSTEAD, explained, safer_ways
from semla_ros.engines.mask_from_maps import mask_from_maps
from semla_ros.errors import EngineError, NotFiniteError, counted, first_line
from semla_ros.results import ImageArray, MaskArray, check_image
from semla_ros.segmentation.class_buckets import bucket_size, pad_vocabulary
from semla_ros.segmentation.inference import probabilities, probability_maps, whole_view, windows_of
from semla_ros.segmentation.protocol import SegmentationModel
from semla_ros.timing import Stopwatch

if TYPE_CHECKING:
    from semla_ros.engines.cuda_frames import CudaFrames
    from semla_ros.engines.cuda_graph import GraphedForward
    from semla_ros.engines.half_weights import HalfWeights

logger = logging.getLogger(__name__)

_SPEED_RUNS = 3
_AGAIN = "an image took a second try"
_GRAPHS_KEPT = 4  # for as many numbers of cameras answered at once

Forward = Callable[..., Tensor]  # normalised images, class embeddings, optionally their presence -> logits
Answer = Callable[[Sequence[ImageArray], bool], list[EngineOutput]]  # images, whether confidence is wanted


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
        raise EngineError(
            f"device '{name}' was asked for, but torch sees {counted(torch.cuda.device_count(), 'CUDA device')}"
        )
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"device '{name}' is not supported; use auto, cpu, cuda or cuda:1")
    return device


def wanted_precision(config: InferenceConfig, device: torch.device) -> str:
    """What the setting means on a device: "auto", "fp32", "bf16" or "fp16"."""
    if config.precision != "default":
        return config.precision
    return "auto" if device.type == "cuda" else "fp32"


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


class TorchEngine:
    """Runs a segmentation model eagerly, compiled, or as a captured CUDA graph.

    The model's weights may be overwritten in place between two calls; in half precision on a GPU they act from the next
    `set_text` on. The model is moved to the device first, so make
    the engine before anything that keeps references to its tensors.

    Args:
        model: In evaluation mode.
        config: Device, inference mode, precision, threads, compilation.
        probe_images: What lower precision is checked on, uint8 RGB; None = those of the module of that name.

    Attributes:
        name: "torch".
        device: Where it runs.
        notes: What was asked for and could not be had, or had to be given up, with the reason.
        stage: See `Engine.stage`.

    Raises:
        EngineError: The device is not there, or the model does not fit on it.
        ConfigError: The model has no sliding inference, and that was asked for.
    """

    name = "torch"

    def __init__(
        self, model: SegmentationModel, config: InferenceConfig, *, probe_images: Sequence[ImageArray] | None = None
    ) -> None:
        self.device = choose_device(config.device)
        if config.inference == "sliding":
            windows_of(model.config)
        self.notes: list[str] = []
        self.stage: Stage | None = None
        self._config = config
        self._probe_images = probe_images
        try:
            self._model = model.to(self.device).eval()
        except RuntimeError as error:
            raise explained(error) from None
        self._way: frozenset[str] = frozenset({"batches"})  # keys of `INSTEAD`
        if self.device.type == "cuda":
            self._way |= {"graphs", "pinned", "device_masks"}
        self._text: Tensor | None = None
        # What a captured or compiled forward pass is given, at the same place while its shape stays: the vocabulary
        # filled up and its presence, or the vocabulary.
        self._held: tuple[Tensor, ...] = ()
        self._compiled: Forward | None = None
        self._graph: GraphedForward | None = None
        self._half: HalfWeights | None = None
        self._frames: CudaFrames | None = None
        if self.device.type == "cuda":
            from semla_ros.engines.cuda_frames import CudaFrames

            self._frames = CudaFrames(self.device, model.config, config.inference)
        self._is_warm = False
        if self.device.type == "cpu":
            torch.set_num_threads(choose_threads(config.threads))

    def catch_up(self) -> None:
        """Nothing is made beside the frames, see `Engine.catch_up`."""

    def set_text(self, text_features: Tensor) -> None:
        """Take over class embeddings (T, ...).

        What was compiled or captured stays valid while T stays within its bucket, see `class_buckets`.

        Raises:
            EngineError: The shape does not fit the model, a value is not finite, or there is no memory; the former
                ones stay in use, with what was captured for them.
        """
        expected = self._model.text_shape
        if text_features.shape[1:] != expected or not len(text_features):
            sizes = ", ".join(map(str, ("T", *expected)))
            raise EngineError(f"class embeddings must have shape ({sizes}), got {tuple(text_features.shape)}")
        limit = self._model.class_limit
        is_padded = not 0 < limit < len(text_features)  # of more classes the best are selected inside
        try:
            with self._in_stream_order():
                text = text_features.detach().to(self.device, torch.float32, copy=True)
                held = pad_vocabulary(text, bucket_size(len(text), limit)) if is_padded else (text,)
                if not bool(text.isfinite().all()):
                    raise NotFiniteError("class embeddings are not finite: the text tower's weights are damaged")
                if self._half is not None:
                    self._half.refresh()
                self._take(text, held)
        except Exception as error:  # of the device
            raise explained(error) from None

    def _take(self, text: Tensor, held: tuple[Tensor, ...]) -> None:
        if self._graph is not None and [item.shape for item in held] == [item.shape for item in self._held]:
            for mine, given in zip(self._held, held, strict=True):
                mine.copy_(given)
        else:
            self._held, self._graph = held, None  # graphs of another number of classes would only hold memory
        self._text = text

    @contextmanager
    def _in_stream_order(self) -> Iterator[None]:
        """On the frames' stream of a GPU, behind what the caller's has been given: weights that are being copied."""
        if self._frames is None:
            yield
            return
        self._frames.stream.wait_stream(torch.cuda.current_stream(self.device))
        with self._frames.current():
            yield

    def segment(self, image: ImageArray, want_confidence: bool = True) -> EngineOutput:
        """Segment one image, see `Engine.segment`."""
        (answer,) = self.segment_batch([image], want_confidence)
        return answer

    def segment_batch(self, images: Sequence[ImageArray], want_confidence: bool = True) -> list[EngineOutput]:
        """Segment the images of several cameras, see `Engine.segment_batch`."""
        for image in images:
            check_image(image)
        if self._text is None:
            raise EngineError("no vocabulary was set; call set_text first")
        try:
            return self.attempt(images, want_confidence)
        except Exception as error:  # whatever it is, there may be a way around it
            failure = explained(error)
        return self._answer_more_safely(images, want_confidence, failure)

    def attempt(self, images: Sequence[ImageArray], want_confidence: bool = True) -> list[EngineOutput]:
        """`segment_batch` in the present way or not at all; raises whatever fails."""
        if len(images) > 1 and (self._config.inference != "whole" or "batches" not in self._way):
            return [self.attempt([image], want_confidence)[0] for image in images]
        if self._frames is not None and "device_masks" in self._way:
            with torch.inference_mode():
                answers = self._frames.answer(images, want_confidence, self._forward, self._way, self.entered)
            if answers is None:
                raise self._not_finite()
            return answers
        watch, frames = Stopwatch(), self._frames
        with watch.stage("total"), torch.inference_mode(), frames.current() if frames else nullcontext():
            with watch.stage("preprocess"), self.entered("preprocess"):
                maps = self._maps([self._pixels(image) for image in images], watch)
            with watch.stage("postprocess"), self.entered("postprocess"):
                masks = [
                    mask_from_maps(one.cpu(), image.shape[:2], want_confidence)
                    for one, image in zip(maps, images, strict=True)
                ]
        return [
            EngineOutput(mask=mask, confidence=confidence, latency_ms=dict(watch.latency_ms))
            for mask, confidence in masks
        ]

    @contextmanager
    def entered(self, stage: str) -> Iterator[None]:
        """Be in a stage, then in the one before."""
        before, self.stage = self.stage, Stage(stage, time.monotonic())
        try:
            yield
        finally:
            self.stage = before

    @property
    def precision(self) -> str:
        """What serves, settled in `warm_up`: "fp32", "bf16" or "fp16"."""
        return next(iter(self._way & HALF.keys()), "fp32")

    @precision.setter
    def precision(self, name: str) -> None:
        way = self._way - HALF.keys() - {"half_weights"} | ({name} & HALF.keys())
        self._go(way | {"half_weights"} if name in HALF and self.device.type == "cuda" else way)

    @property
    def has_runners(self) -> bool:
        """Whether the forward pass may call what other runtimes run; setting it captures anew."""
        return "runners" in self._way

    @has_runners.setter
    def has_runners(self, value: bool) -> None:
        self._go(self._way | {"runners"} if value else self._way - {"runners"})

    def warm_up(self) -> None:
        """Settle the precision, compile or capture where asked, and run untimed.

        Raises:
            EngineError: No vocabulary was set.
        """
        height, width = self._model.config.working_resolution
        blank = np.zeros((height, width, 3), np.uint8)
        if not self._is_warm:
            self._is_warm = True
            self.segment(blank)  # what cannot be captured is given up before anything is compared
            self._settle_precision()
            self._settle_compilation()
        if self._way & {"graphs", "compiled"}:  # eager PyTorch is as fast from its second image on
            for _ in range(2):
                self.segment(blank)

    def close(self) -> None:
        """Drop the compiled or captured forward pass."""
        self._graph = self._compiled = self._text = self._half = None
        self._held = ()
        if self._frames is not None:
            self._frames.forget()

    def _pixels(self, image: ImageArray) -> Tensor:
        # torch reads neither read-only memory (a message's buffer) nor negative strides.
        ready = image if image.flags.writeable and image.flags.c_contiguous else np.array(image)
        return torch.from_numpy(ready).to(self.device).permute(2, 0, 1)

    def _maps(self, pixels: Sequence[Tensor], watch: Stopwatch) -> Sequence[Tensor]:
        """Probability maps (T, h, w) of each image; what is not the forward pass counts as preprocessing."""
        config, forward = self._model.config, Stopwatch()

        def predict(views: Tensor) -> Tensor:
            with forward.stage("forward"), self.entered("forward"):
                logits = self._forward(views)
                # Before the sigmoid, which turns infinity into 1. The reading waits for the device.
                if not bool(torch.stack(torch.aminmax(logits)).isfinite().all()):
                    raise self._not_finite()
                return logits

        if self._config.inference == "whole":
            views = [whole_view(item, config) for item in pixels]
            # One alone keeps its layout in memory: torch.cat would change it, and with it the last bits of the answer.
            maps = probabilities(predict(torch.cat(views) if len(views) > 1 else views[0]), config)
            answer: Sequence[Tensor] = list(maps)
        else:
            answer = [probability_maps(predict, config, item, self._config.inference) for item in pixels]
        watch.latency_ms |= forward.latency_ms
        watch.latency_ms["preprocess"] = -forward.latency_ms["forward"]  # all around it is added when that stage ends
        return answer

    def _not_finite(self) -> NotFiniteError:
        blame = ": the model's weights are damaged" if self.precision == "fp32" else ""
        return NotFiniteError(f"class scores in {self.precision} are not finite{blame}")

    def _forward(self, images: Tensor) -> Tensor:
        """Logits (B, T, h, w)."""
        assert self._text is not None
        if not self._way & {"graphs", "compiled"}:
            return self._autocast_forward(images, self._text)
        return self._fixed_forward(images)[:, : len(self._text)]

    def _fixed_forward(self, images: Tensor) -> Tensor:
        """Logits of the vocabulary filled up, from the graph where there is one."""
        if "graphs" not in self._way:
            return self._autocast_forward(images, *self._held)
        if self._graph is None:
            from semla_ros.engines.cuda_graph import GraphedForward

            self._graph = GraphedForward(lambda given: self._autocast_forward(given, *self._held), _GRAPHS_KEPT)
        return self._graph(images)

    def _autocast_forward(self, *inputs: Tensor) -> Tensor:
        compiled = self._compiled if "compiled" in self._way else None
        # Not `or`: a compiled model asks the module for its length.
        forward: Forward = self._model if compiled is None else compiled
        if self.precision != "fp32" and compiled is None and "half_weights" in self._way:
            forward = self._half_weights().run
        with self.in_precision():
            return forward(*inputs).float()

    def in_precision(self) -> AbstractContextManager[object]:
        """Within it torch computes in the precision that serves."""
        if self.precision == "fp32":
            return nullcontext()
        # Nothing is cached across calls: the weights may have been overwritten in between.
        return torch.autocast(self.device.type, dtype=HALF[self.precision], cache_enabled=False)

    def _half_weights(self) -> HalfWeights:
        """A copy in the precision that serves; whatever drops it lets the next pass make it anew."""
        if self._half is None:
            from semla_ros.engines.half_weights import HalfWeights

            self._half = HalfWeights(self._model, HALF[self.precision])
        return self._half

    def _go(self, way: frozenset[str]) -> None:
        """Serve in another way, keys of `INSTEAD`, from the next forward pass on."""
        self._way, self._graph, self._half = way, None, None
        if self._frames is not None:
            self._frames.forget()
            torch.cuda.empty_cache()

    def _answer_more_safely(
        self, images: Sequence[ImageArray], want_confidence: bool, cause: EngineError
    ) -> list[EngineOutput]:
        """Answer what the present way could not, and stay with the first one that can."""
        present, failure = self._way, cause
        for way in safer_ways(present, cause, len(images)):
            try:
                self._go(way)
                answers = self.attempt(images, want_confidence)
            except Exception as error:  # as in `segment_batch`
                failure = explained(error)
                continue
            if instead := ", ".join(dict.fromkeys(INSTEAD[item] for item in INSTEAD if item in present - way)):
                self._note(f"{instead} serves: {cause}")
            elif not any(note.startswith(_AGAIN) for note in self.notes):
                self._note(f"{_AGAIN}: {cause}")
            return answers
        self._way, self._graph, self._half = present, None, None  # what fails in every way is the fault of none
        raise failure

    def _note(self, note: str) -> None:
        self.notes.append(note)
        logger.warning("engine torch: %s", note)

    def _settle_precision(self) -> None:
        """Take the first precision that gives the masks of fp32, and under "auto" sooner."""
        wanted = wanted_precision(self._config, self.device)
        tried = _precisions(wanted, self.device)
        if not tried:
            return
        probe = self._probe_set()
        reference, reference_ms = self._probe(probe, self.segment_batch)
        refused: list[str] = []
        for precision in tried:
            self.precision = precision
            try:
                masks, spent_ms = self._probe(probe, self.attempt)
            except Exception as error:  # a device can refuse a type in any way
                refused.append(first_line(error))
                continue
            share = agreement(masks, reference)
            if share < AGREEMENT:
                refused.append(
                    f"{precision} agrees with fp32 on {share:.2%} of the probe pixels, below {AGREEMENT:.1%}"
                )
            elif wanted == "auto" and spent_ms >= reference_ms:
                refused.append(f"{precision} takes {spent_ms:.0f} ms an image, fp32 {reference_ms:.0f} ms")
            else:
                break
        else:
            self.precision = "fp32"
        if refused:
            self._note(f"{self.precision} serves: {'; '.join(refused)}")

    def _probe_set(self) -> Sequence[ImageArray]:
        if self._probe_images is not None:
            return self._probe_images
        from semla_ros.engines.probe_images import probe_images

        return probe_images(*self._model.config.working_resolution)

    def _probe(self, images: Sequence[ImageArray], answer: Answer) -> tuple[list[MaskArray], float]:
        """Masks of the probe set, and the shortest forward pass in milliseconds."""
        masks = [answer([image], False)[0].mask for image in images]
        runs = [answer(images[:1], False)[0].latency_ms["forward"] for _ in range(_SPEED_RUNS)]
        return masks, min(runs)

    def _settle_compilation(self) -> None:
        """Compile where asked; eager goes on where that fails or gives other masks."""
        if not self._config.compile:
            return
        probe = self._probe_set()
        reference = [self.segment(image, False).mask for image in probe]
        try:
            self._compiled = torch.compile(self._model, dynamic=False)
            self._go(self._way | {"compiled"})
            share = agreement([self.attempt([image], False)[0].mask for image in probe], reference)
        except Exception as error:  # a compiler can fail in any way, and eager always works
            reason = f"torch.compile failed ({first_line(error)})"
        else:
            if share >= AGREEMENT:
                return
            reason = f"compiled, it agrees with eager on {share:.2%} of the probe pixels, below {AGREEMENT:.1%}"
        self._compiled = None
        self._go(self._way - {"compiled"})
        self._note(f"eager serves: {reason}")


def _precisions(wanted: str, device: torch.device) -> list[str]:
    """Half precisions to try for a setting, the first choice first."""
    if wanted == "auto":
        wanted = "fp16" if device.type == "cuda" else "bf16" if has_bf16() else "fp32"
    can_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_bf16()
    return ["fp16", "bf16"] if wanted == "fp16" and can_bf16 else [wanted] if wanted in HALF else []
