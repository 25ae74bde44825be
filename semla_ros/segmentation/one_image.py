"""Probabilities of one image from a model as it is; engines have their own ways there."""

from __future__ import annotations

import torch
from torch import Tensor

from semla_ros.segmentation.inference import InferenceMode, probability_maps, resize
from semla_ros.segmentation.protocol import SegmentationModel


def segment_probabilities(
    model: SegmentationModel,
    image: Tensor,
    text_features: Tensor,
    output_size: tuple[int, int],
    mode: InferenceMode = "whole",
) -> Tensor:
    """Probability of each class at each pixel.

    Args:
        model: In evaluation mode.
        image: RGB, shape (3, H, W), 0..255, on the model's device.
        text_features: Class embeddings, see `SegmentationModel.encode_text`.
        output_size: Height and width of the result.
        mode: "whole", or "sliding" (published, used in all its experiments).

    Returns:
        Shape (T, *output_size), 0..1.
    """

    def predict(images: Tensor) -> Tensor:
        logits: Tensor = model(images, text_features)
        return logits

    with torch.no_grad():
        maps = probability_maps(predict, model.config, image, mode)
        return resize(maps[None], output_size)[0]
