"""CAT-Seg's decoder with its guidance: no adapter changes it, so that another runtime may take it over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from semla_ros.segmentation.cost_aggregation import with_details
from semla_ros.segmentation.fixed_component import DECODER, MAX_MAPS, FixedComponent, Forward, noise

if TYPE_CHECKING:
    from semla_ros.segmentation.model import CatSeg


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


def decoder_component(model: CatSeg) -> FixedComponent:
    """The component of a model, see `FixedComponent`."""
    aggregator, config = model.aggregator, model.aggregator.config
    rows, columns = config.grid
    upsampling = (model.upsample1, model.upsample2)
    inputs = [noise((4, config.hidden_dim, rows, columns), aggregator)]
    inputs += [noise((1, model.config.clip.visual_width, rows, columns), aggregator) for _ in upsampling]
    # Of the stem's maps one for each step, twice as fine as the one before.
    for index in range(len(config.detail_dims)):
        factor = 2 ** (index + 1)
        inputs.append(noise((1, config.decoder_guidance_proj_dims[index], factor * rows, factor * columns), aggregator))

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
