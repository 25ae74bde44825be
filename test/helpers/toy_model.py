"""A model that another package brings, in a page: the colours of 4 x 4 pixels against class embeddings."""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from semla_ros.segmentation.protocol import CLIP_PIXEL_MEAN, CLIP_PIXEL_STD, SegmentationModel


@dataclass(frozen=True)
class ToyConfig:
    width: int = 16
    vocab_rows: int = 40
    working_resolution: tuple[int, int] = (32, 48)
    pixel_mean: tuple[float, float, float] = CLIP_PIXEL_MEAN
    pixel_std: tuple[float, float, float] = CLIP_PIXEL_STD
    probability: str = "softmax"
    sliding_windows: None = None

    def as_dict(self):
        return dataclasses.asdict(self)


class Toy(SegmentationModel):
    kind = "toy"
    text_tower = "words."
    context_length = 16

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_rows, config.width)
        self.colours = nn.Conv2d(3, config.width, 4, stride=4)
        self.mix = nn.Linear(config.width, config.width)

    @classmethod
    def recognises(cls, tensors):
        return {"words.weight", "colours.weight", "mix.weight"} <= tensors.keys()

    @classmethod
    def build(cls, settings, tensors):
        rows, width = tensors["words.weight"].shape
        return cls(ToyConfig(**settings) if settings else ToyConfig(width, rows))

    @property
    def text_shape(self):
        return (self.config.width,)

    def encode_text(self, token_ids):
        return F.normalize((self.words(token_ids) * (token_ids > 0)[..., None]).sum(dim=1), dim=-1)

    def forward(self, images, text, presence=None):
        cells = self.mix(self.colours(images).permute(0, 2, 3, 1))
        return torch.einsum("bhwc,tc->bthw", cells, text.to(cells.dtype))

    def lora_targets(self):
        return ["mix"]
