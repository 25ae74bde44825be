"""Random crops, flips and light changes: one seeded batch from a sample source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from semla_ros.lab.training.samples import SampleSource
from semla_ros.results import ImageArray, MaskArray


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How much a training image may differ from its source."""

    flip: bool = True  # mirror left-right, half of the time
    min_crop: float = 0.7  # side of the smallest crop relative to the image, 0..1; 1 = no cropping
    brightness: float = 0.1  # gain in 1 - b .. 1 + b
    colour: float = 0.0  # gain of each channel in 1 - c .. 1 + c
    saturation: float = 0.0  # gain of the distance from each pixel's grey in 1 - s .. 1 + s, 0..1
    contrast: float = 0.0  # gain of the distance from the image's mean in 1 - c .. 1 + c
    gamma: float = 0.0  # exponent in 2**-g .. 2**g
    # > 0: crops of this many source pixels at their longer side, of the shape that the model takes, so that nothing is
    # stretched; for a square model they are square, as the published adapters were trained
    crop_size: int = 0


def draw_batch(
    source: SampleSource,
    count: int,
    size: tuple[int, int],
    augment: AugmentConfig,
    generator: torch.Generator,
    mean: Tensor,
    std: Tensor,
    indices: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw a batch.

    Args:
        source: Images and masks.
        count: Images in the batch, B.
        size: Height and width that the model takes.
        augment: Random changes.
        generator: Everything random comes from it.
        mean: Per channel on the 0..255 scale, shape (3,).
        std: Likewise.
        indices: Which samples, `count` of them; None = random ones.

    Returns:
        Normalised images (B, 3, h, w), float32; masks (B, h, w), int64.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    images = np.empty((count, *size, 3), np.float32)
    masks = np.empty((count, *size), np.int64)
    for slot, index in enumerate(rng.integers(len(source), size=count) if indices is None else indices):
        image, mask = _augmented(source.image(int(index)), source.mask(int(index)), size, augment, rng)
        interpolation = cv2.INTER_AREA if image.shape[0] > size[0] else cv2.INTER_LINEAR
        images[slot] = cv2.resize(image, size[::-1], interpolation=interpolation)
        images[slot] *= rng.uniform(1 - augment.brightness, 1 + augment.brightness)
        _relight(images[slot], augment, rng)
        masks[slot] = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
    tensor = torch.from_numpy(images.clip(0, 255)).permute(0, 3, 1, 2)
    normalised = (tensor - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return normalised.contiguous(), torch.from_numpy(masks)


def _relight(image: np.ndarray, augment: AugmentConfig, rng: np.random.Generator) -> None:
    """Change the light of a float32 image, (h, w, 3), in place; draws only what is asked for."""
    if augment.colour:
        image *= rng.uniform(1 - augment.colour, 1 + augment.colour, size=3).astype(np.float32)
    if augment.saturation:
        grey = image.mean(-1, keepdims=True)
        image[:] = grey + (image - grey) * rng.uniform(1 - augment.saturation, 1 + augment.saturation)
    if augment.contrast:
        mean = image.mean(dtype=np.float64)
        image[:] = mean + (image - mean) * rng.uniform(1 - augment.contrast, 1 + augment.contrast)
    if augment.gamma:
        image[:] = 255 * (image.clip(0, 255) / 255) ** (2 ** rng.uniform(-augment.gamma, augment.gamma))


def _augmented(
    image: ImageArray, mask: MaskArray, size: tuple[int, int], augment: AugmentConfig, rng: np.random.Generator
) -> tuple[ImageArray, MaskArray]:
    height, width = image.shape[:2]
    if augment.crop_size:
        scale = min(augment.crop_size / max(size), height / size[0], width / size[1])
        crop_height, crop_width = round(size[0] * scale), round(size[1] * scale)
    else:
        scale = rng.uniform(augment.min_crop, 1)
        crop_height, crop_width = round(height * scale), round(width * scale)
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    image = image[top : top + crop_height, left : left + crop_width]
    mask = mask[top : top + crop_height, left : left + crop_width]
    if augment.flip and rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(mask, dtype=np.uint8)
