"""What the published code does in its own way and this package does not: for comparison with the reference set only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from semla_ros.segmentation import clip
from semla_ros.segmentation.inference import Predict, normalise, probabilities, resize
from semla_ros.segmentation.model import CatSeg, CatSegConfig

PADDING = 32  # images are padded to a multiple of this many pixels
_project = clip.project


@contextmanager
def duplicated_hooks(model: CatSeg) -> Iterator[None]:
    """Both guidance maps come from the first guidance block."""
    visual = model.clip.visual

    def dense(images: Tensor, layers: tuple[int, ...]) -> clip.DenseFeatures:
        return type(visual).dense(visual, images, (layers[0], layers[0]))

    object.__setattr__(visual, "dense", dense)
    try:
        yield
    finally:
        object.__delattr__(visual, "dense")


def project_without_delta(module: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
    """`clip.project` on the plain weight, whatever LoRA layer wraps it: deltas on CLIP's q, k and v never act."""
    return _project(getattr(module, "base_layer", module), x, bias)


def plain_maps(predict: Predict, config: CatSegConfig, image: Tensor) -> Tensor:
    """The single view, padded, of an image (3, H, W); the crop to the unpadded size is of maps of another scale."""
    height, width = image.shape[-2:]
    padding = (0, -width % PADDING, 0, -height % PADDING)
    view = resize(F.pad(normalise(image[None], config), padding), config.working_resolution)
    return probabilities(predict(view), config)[0][:, :height, :width]


def plain_probabilities(model: CatSeg, image: Tensor, text: Tensor, size: tuple[int, int]) -> Tensor:
    """Probability of each class at each pixel of a size, (T, *size), by the single view."""
    with torch.no_grad():
        return resize(plain_maps(lambda views: model(views, text), model.config, image)[None], size)[0]
