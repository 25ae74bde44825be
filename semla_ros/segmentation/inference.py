"""From an image of any size to one probability map per class.

Two ways: "whole" (one view; what a camera gets), and "sliding" (the published windows plus a global view).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from semla_ros.errors import ImageError
from semla_ros.segmentation.model import CatSeg, CatSegConfig

InferenceMode = Literal["whole", "sliding"]
Predict = Callable[[Tensor], Tensor]  # normalised images (B, 3, h, w) at the working resolution -> logits (B, T, ., .)


def normalise(images: Tensor, config: CatSegConfig) -> Tensor:
    """Subtract the pixel mean, divide by the deviation; (..., 3, H, W), 0..255, RGB."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=images.device)[:, None, None]
        for values in (config.pixel_mean, config.pixel_std)
    )
    return (images.float() - mean) / std


def probabilities(logits: Tensor, config: CatSegConfig) -> Tensor:
    """Logits (B, T, h, w) to probabilities, fp32, 0..1."""
    return logits.float().sigmoid() if config.probability == "sigmoid" else logits.float().softmax(dim=1)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (B, C, H, W) as in the published code: no corner alignment, no antialiasing."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def probability_maps(predict: Predict, config: CatSegConfig, image: Tensor, mode: InferenceMode = "whole") -> Tensor:
    """Probability maps at the size that the chosen way works at, before the last resize.

    Args:
        predict: The forward pass with the vocabulary bound.
        config: Of the model behind it.
        image: RGB, shape (3, H, W), 0..255, uint8 or float.
        mode: See the module's docstring.

    Returns:
        Shape (T, h, w), 0..1.
    """
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ImageError(f"expected an RGB image of shape (3, H, W) with H and W at least 1, got {tuple(image.shape)}")
    if mode == "sliding":
        return _sliding(predict, config, image)
    return probabilities(predict(whole_view(image, config)), config)[0]


def whole_view(image: Tensor, config: CatSegConfig) -> Tensor:
    """One normalised view of a whole image (3, H, W), shape (1, 3, h, w); antialiased where it shrinks."""
    size = config.working_resolution
    if tuple(image.shape[-2:]) != size:
        if image.dtype == torch.uint8 and image.device.type != "cpu":
            image = image.float()  # resizing bytes exists on CPUs only
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    return normalise(image[None], config)


def _sliding(predict: Predict, config: CatSegConfig, image: Tensor) -> Tensor:
    windows = config.sliding_windows
    (height, width), (rows, columns) = windows.kernel, windows.stride
    whole = image[None].float()
    canvas = resize(whole, windows.canvas)
    corners = [
        (top, left)
        for top in range(0, windows.canvas[0] - height + 1, rows)
        for left in range(0, windows.canvas[1] - width + 1, columns)
    ]
    views = [canvas[..., top : top + height, left : left + width] for top, left in corners]
    views.append(resize(whole, windows.kernel))
    batch = resize(normalise(torch.cat(views), config), config.working_resolution)
    logits = predict(batch).float()
    total = logits.new_zeros(logits.shape[1], *windows.canvas)
    count = logits.new_zeros(windows.canvas)
    for view, (top, left) in zip(logits[:-1], corners, strict=True):
        # One view at a time: all of them together would be 56 MB at B size with 19 classes.
        total[:, top : top + height, left : left + width] += _view_maps(view, config)
        count[top : top + height, left : left + width] += 1
    overview = resize(_view_maps(logits[-1], config)[None], windows.canvas)[0]
    return total.div_(count).add_(overview).div_(2)


def _view_maps(logits: Tensor, config: CatSegConfig) -> Tensor:
    """Probability maps of one view at the windows' size."""
    return probabilities(resize(logits[None], config.sliding_windows.kernel), config)[0]


def segment_probabilities(
    model: CatSeg,
    image: Tensor,
    text_features: Tensor,
    output_size: tuple[int, int],
    mode: InferenceMode = "whole",
) -> Tensor:
    """Probability of each class at each pixel.

    Args:
        model: In evaluation mode.
        image: RGB, shape (3, H, W), 0..255, on the model's device.
        text_features: Class embeddings, shape (T, C), see `CatSeg.encode_text`.
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
