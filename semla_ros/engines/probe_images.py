"""Images to judge precision, compilation and engines on, before the first one has come from a camera."""

from __future__ import annotations

import cv2
import numpy as np

from semla_ros.results import ImageArray

_LEAVES = 400
_LIGHT = ((1.0, 0.0, 2.0), (0.2, 0.0, 8.0), (0.9, 0.6, 2.0), (0.6, 0.2, 4.0))  # gain, haze 0..1, noise: day, night, ...


def probe_images(height: int, width: int, seed: int = 0) -> list[ImageArray]:
    """Dead leaves, shapes that hide each other, in four lights: clear day, night, fog and dusk.

    Discs and rectangles whose sizes r have a density of r ** -3 look alike at every scale, as photographs do: their
    spectrum falls as that of those, with smooth areas, straight and round edges and occlusion.

    Args:
        height: Rows in pixels, >= 8.
        width: Columns in pixels, >= 8.
        seed: Another one gives other images.

    Returns:
        RGB, each of shape (height, width, 3), uint8.

    Source: Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001.
    """
    generator = np.random.default_rng(seed)
    return [_in_light(_leaves(generator, height, width), generator, *light) for light in _LIGHT]


def _leaves(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    canvas = np.full((height, width, 3), generator.uniform(60, 200, 3), np.float32)
    smallest, largest = min(height, width) / 64, min(height, width) / 2
    sizes = 1 / np.sqrt(generator.uniform(largest**-2, smallest**-2, _LEAVES))  # density r ** -3
    for size in sizes:
        colour = np.clip(generator.uniform(20, 235) + generator.normal(0, 20, 3), 0, 255).tolist()
        x, y = generator.uniform(0, (width, height))
        stretch = generator.uniform(0.5, 2)
        if generator.random() < 0.5:
            cv2.circle(canvas, (round(x), round(y)), round(size), colour, cv2.FILLED, cv2.LINE_AA)
        else:
            start, end = [(round(x + side * size * stretch), round(y + side * size / stretch)) for side in (-1, 1)]
            cv2.rectangle(canvas, start, end, colour, cv2.FILLED)
    return canvas


def _in_light(image: np.ndarray, generator: np.random.Generator, gain: float, haze: float, noise: float) -> ImageArray:
    """Uneven light, what lies in the air, and the sensor's noise."""
    height, width = image.shape[:2]
    shading = cv2.resize(generator.uniform(0.6, 1.2, (3, 4)), (width, height), interpolation=cv2.INTER_CUBIC)
    lit = image * (gain * shading[..., None]) * (1 - haze) + 200 * haze
    return np.asarray(np.clip(lit + generator.normal(0, noise, image.shape), 0, 255), np.uint8)
