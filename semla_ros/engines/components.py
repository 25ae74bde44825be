"""The parts of a model that no adapter ever changes, and how another runtime takes them over.

LoRA touches attention and MLP weights of the segmenter. What stays the same for the life of a model are the scene
encoder and the decoder with its guidance: these may be compiled once and served by another runtime while everything
around them goes on in torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.segmentation.cost_aggregation import with_details
from semla_ros.segmentation.model import CatSeg

Forward = Callable[..., Tensor]

SCENE_ENCODER = "scene_encoder"
DECODER = "decoder"
MAX_BATCH = 8  # images at once: the published sliding inference has 5 windows
MAX_MAPS = 256  # class maps at once in the decoder
_PROBE_SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedComponent:
    """One part of a model that another runtime can take over.

    Attributes:
        name: `SCENE_ENCODER` or `DECODER`.
        module: What is exported; on fp32 tensors. Once mounted, call `original` instead.
        inputs: An example and probe, fp32; the leading axis of the first may vary from 1 to `max_batch`.
        input_names: One for each input.
        max_batch: See `inputs`.
        original: The same function in torch, whatever is mounted.
        shadow: Where the replacement goes: owner, attribute, and the function it gets made from a runner.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    max_batch: int
    original: Forward
    shadow: tuple[tuple[object, str, Callable[[Forward], Callable[..., object]]], ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over architecture, weights and buffers, as hex; read once, as they are fixed."""
        values: dict[str, Any] = dict([*self.module.named_parameters(), *self.module.named_buffers()])
        total = hashlib.sha256(architecture(self.module).encode())
        for name, tensor in sorted(values.items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
        return total.hexdigest()

    def shapes(self) -> str:
        """Shapes of the inputs, the varying axis as its range: part of a cache key."""
        first, *others = (tuple(item.shape) for item in self.inputs)
        varying = "x".join([f"1-{self.max_batch}", *map(str, first[1:])])
        return ",".join([varying, *("x".join(map(str, shape)) for shape in others)])

    def mount(self, runner: Forward) -> ExitStack:
        """Let a runner serve instead of torch, until the returned stack is closed.

        Inputs that the runner was not built for still go to torch.
        """

        def served(*inputs: Tensor) -> Tensor:
            if self.accepts(inputs):
                return runner(*(item.float() for item in inputs))
            return self.original(*inputs)

        stack = ExitStack()
        for owner, attribute, adapt in self.shadow:
            # An attribute of the instance hides the class's method of that name.
            object.__setattr__(owner, attribute, adapt(served))
            stack.callback(object.__delattr__, owner, attribute)
        return stack

    def accepts(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a runner for this component takes such inputs."""
        given, made = ([tuple(item.shape) for item in items] for items in (inputs, self.inputs))
        is_batch_right = 1 <= given[0][0] <= self.max_batch and given[0][1:] == made[0][1:]
        return is_batch_right and given[1:] == made[1:]


def architecture(module: nn.Module) -> str:
    """What a module computes beside its weights: class and settings of each of its parts, one line each.

    `repr` is not enough: number of heads, windows, paddings and configurations stand in attributes that it leaves out.
    """
    lines = []
    for name, part in module.named_modules():
        settings = {key: item for key, item in vars(part).items() if key not in _OF_MODULES and _is_setting(item)}
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        lines.append(f"{name} {kind} {part.extra_repr()} {sorted(settings.items())}")
    return "\n".join(lines)


_OF_MODULES = frozenset(vars(nn.Module()))  # torch's own: whether it trains, its hooks, its parts


def _is_setting(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_setting(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str) or dataclasses.is_dataclass(value)


def fixed_components(
    model: CatSeg | None, encoder: SceneEncoder | None, *, probe_scenes: Sequence[np.ndarray] = ()
) -> list[FixedComponent]:
    """Every fixed component of a model and its scene encoder.

    Args:
        model: The segmenter; None leaves the decoder out.
        encoder: The scene encoder; None leaves it out.
        probe_scenes: RGB images to probe the scene encoder with; noise where there are none.
    """
    found = [] if encoder is None else [_scene_encoder(encoder, probe_scenes)]
    return found if model is None else [*found, _decoder(model)]


def _noise(shape: tuple[int, ...], like: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    return torch.randn(shape, generator=generator).to(next(like.parameters()).device)


def _scene_encoder(encoder: SceneEncoder, scenes: Sequence[np.ndarray]) -> FixedComponent:
    tower, size = encoder.tower, encoder.preprocessing
    probe = _noise((2, 3, size.height, size.width), tower)
    if len(scenes) >= 2:
        probe = torch.from_numpy(np.stack([size.normalised(image) for image in scenes])).to(probe.device)
    return FixedComponent(
        name=SCENE_ENCODER,
        module=tower,
        inputs=(probe[:MAX_BATCH],),
        input_names=("images",),
        max_batch=MAX_BATCH,
        original=lambda images: type(tower).forward(tower, images),
        shadow=((tower, "forward", lambda served: served),),
    )


class Decoder(nn.Module):
    """Guidance, decoder and head, for the class maps of one image."""

    def __init__(self, model: CatSeg) -> None:
        super().__init__()
        self.upsampling = nn.ModuleList([model.upsample1, model.upsample2])
        self.projections = model.aggregator.decoder_guidance_projection
        self.steps = nn.ModuleList(model.aggregator.decoder_steps)
        self.head = model.aggregator.head

    def forward(self, maps: Tensor, *guidance: Tensor) -> Tensor:
        """Decode (T, C, H, W) to (T, 1, sH, sW).

        Args:
            maps: Aggregated class maps.
            guidance: Output of two transformer blocks, shape (1, ., H, W); then, where the model has a stem, its
                projected maps, one for each decoder step.
        """
        blocks, details = guidance[:2], guidance[2:]
        upsampled = [upsample(item) for upsample, item in zip(self.upsampling, blocks, strict=True)]
        guides = [project(item) for project, item in zip(self.projections, upsampled, strict=True)]
        for step, guide in zip(self.steps, with_details(guides, details), strict=True):
            maps = step(maps, guide, exact_rewrites=True)
        logits: Tensor = self.head(maps)
        return logits


def _decoder(model: CatSeg) -> FixedComponent:
    aggregator, config = model.aggregator, model.aggregator.config
    rows, columns = config.grid
    upsampling = (model.upsample1, model.upsample2)
    inputs = [_noise((4, config.hidden_dim, rows, columns), aggregator)]
    inputs += [_noise((1, model.config.clip.visual_width, rows, columns), aggregator) for _ in upsampling]
    # Of the stem's maps one for each step, twice as fine as the one before.
    for index in range(len(config.detail_dims)):
        factor = 2 ** (index + 1)
        inputs.append(
            _noise((1, config.decoder_guidance_proj_dims[index], factor * rows, factor * columns), aggregator)
        )

    def original(maps: Tensor, *guidance: Tensor) -> Tensor:
        blocks, details = guidance[:2], guidance[2:]
        upsampled = [type(module).forward(module, item) for module, item in zip(upsampling, blocks, strict=True)]
        return aggregator.decode_maps(maps, *aggregator.guides(upsampled, details))

    def image_by_image(served: Forward) -> Forward:
        def decode(x: Tensor, blocks: Sequence[Tensor], details: Sequence[Tensor]) -> Tensor:
            maps = x.permute(0, 1, 4, 2, 3)  # (B, T, C, H, W)
            shared = [*blocks, *aggregator.project_details(details)]
            logits = [
                served(own.contiguous(), *(item[image : image + 1] for item in shared))
                for image, own in enumerate(maps)
            ]
            return torch.stack(logits)[:, :, 0]

        return decode

    return FixedComponent(
        name=DECODER,
        module=Decoder(model).eval(),
        inputs=tuple(inputs),
        input_names=("maps", "block_1", "block_2", *(f"detail_{index + 1}" for index in range(len(inputs) - 3))),
        max_batch=config.pad_len or MAX_MAPS,
        original=original,
        # The blocks' maps pass through their upsampling, which is part of the component.
        shadow=((aggregator, "decode", image_by_image), *((module, "forward", _passing) for module in upsampling)),
    )


def _passing(_served: Forward) -> Forward:
    return lambda x: x
