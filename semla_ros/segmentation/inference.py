"""From an image of any size to one probability map per class.

Two ways: "whole" (one view; what a camera gets), and "sliding" (the published windows plus a global view).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from semla_ros.errors import ConfigError, ImageError
from semla_ros.segmentation.protocol import ModelConfig, SlidingConfig

InferenceMode = Literal["whole", "sliding"]
Predict = Callable[[Tensor], Tensor]  # normalised images (B, 3, h, w) at the working resolution -> logits (B, T, ., .)


class PixelStatistics(NamedTuple):
    """Mean and deviation of each channel on the 0..255 scale, RGB, each of shape (3, 1, 1), on the images' device."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, config: ModelConfig, device: torch.device) -> PixelStatistics:
        """Those that a model was trained with."""
        return cls(
            *(
                torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
                for values in (config.pixel_mean, config.pixel_std)
            )
        )


def normalise(images: Tensor, config: ModelConfig, statistics: PixelStatistics | None = None) -> Tensor:
    """Subtract the pixel mean, divide by the deviation; (..., 3, H, W), 0..255, RGB.

    Args:
        images: On any device.
        config: Of the model.
        statistics: Its statistics where they are on the device already: a GPU waits for their upload.
    """
    mean, std = statistics or PixelStatistics.of(config, images.device)
    return (images.float() - mean) / std


def probabilities(logits: Tensor, config: ModelConfig) -> Tensor:
    """Logits (B, T, h, w) to probabilities, fp32, 0..1."""
    return logits.float().sigmoid() if config.probability == "sigmoid" else logits.float().softmax(dim=1)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (B, C, H, W) as in the published code: no corner alignment, no antialiasing."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def probability_maps(predict: Predict, config: ModelConfig, image: Tensor, mode: InferenceMode = "whole") -> Tensor:
    """Probability maps at the size that the chosen way works at, before the last resize.

    Args:
        predict: The forward pass with the vocabulary bound.
        config: Of the model behind it.
        image: RGB, shape (3, H, W), 0..255, uint8 or float.
        mode: See the module's docstring.

    Returns:
        Shape (T, h, w), 0..1.
    """
    return merged(predict(views(image, config, mode)), config, mode)


def views(image: Tensor, config: ModelConfig, mode: InferenceMode, statistics: PixelStatistics | None = None) -> Tensor:
    """What the model sees of an image (3, H, W), 0..255, uint8 or float; see `normalise` for `statistics`.

    Returns:
        Normalised views, shape (V, 3, h, w) of the working resolution: one, or the windows and then the whole image.

    Raises:
        ImageError: The image has another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ImageError(f"expected an RGB image of shape (3, H, W) with H and W at least 1, got {tuple(image.shape)}")
    if mode == "whole":
        return whole_view(image, config, statistics)
    windows = windows_of(config)
    height, width = windows.kernel
    whole = image[None].float()
    canvas = resize(whole, windows.canvas)
    cut = [canvas[..., top : top + height, left : left + width] for top, left in _corners(windows)]
    seen = torch.cat([*cut, resize(whole, windows.kernel)])
    return resize(normalise(seen, config, statistics), config.working_resolution)


def merged(logits: Tensor, config: ModelConfig, mode: InferenceMode) -> Tensor:
    """Probability maps (T, h, w), 0..1, from the logits (V, T, ., .) of the views of one image."""
    if mode == "whole":
        return probabilities(logits, config)[0]
    windows, logits = windows_of(config), logits.float()
    height, width = windows.kernel
    total = logits.new_zeros(logits.shape[1], *windows.canvas)
    count = logits.new_zeros(windows.canvas)
    for view, (top, left) in zip(logits[:-1], _corners(windows), strict=True):
        # One view at a time: all of them together would be 56 MB at B size with 19 classes.
        total[:, top : top + height, left : left + width] += _view_maps(view, config)
        count[top : top + height, left : left + width] += 1
    overview = resize(_view_maps(logits[-1], config)[None], windows.canvas)[0]
    return total.div_(count).add_(overview).div_(2)


def windows_of(config: ModelConfig) -> SlidingConfig:
    """Windows of the sliding inference; raises ConfigError where the model has none."""
    if config.sliding_windows is None:
        raise ConfigError("this model has one view of an image only: inference 'whole', not 'sliding'")
    return config.sliding_windows


def whole_view(image: Tensor, config: ModelConfig, statistics: PixelStatistics | None = None) -> Tensor:
    """One normalised view of a whole image (3, H, W), shape (1, 3, h, w); antialiased where it shrinks."""
    size = config.working_resolution
    if tuple(image.shape[-2:]) != size:
        if image.dtype == torch.uint8 and image.device.type != "cpu":
            image = image.float()  # resizing bytes exists on CPUs only
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    return normalise(image[None], config, statistics)


def _corners(windows: SlidingConfig) -> list[tuple[int, int]]:
    """Top and left of each window on the canvas."""
    (height, width), (rows, columns) = windows.kernel, windows.stride
    return [
        (top, left)
        for top in range(0, windows.canvas[0] - height + 1, rows)
        for left in range(0, windows.canvas[1] - width + 1, columns)
    ]


def _view_maps(logits: Tensor, config: ModelConfig) -> Tensor:
    """Probability maps of one view at the windows' size."""
    return probabilities(resize(logits[None], windows_of(config).kernel), config)[0]
