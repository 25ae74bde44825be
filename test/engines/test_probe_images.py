import itertools

import numpy as np
import pytest

from semla_ros.engines.probe_images import probe_images


def spectral_slope(image: np.ndarray) -> float:
    """Exponent of the power spectrum over the spatial frequency; about -2 for photographs."""
    grey = image.mean(axis=2)
    window = np.outer(*(np.hanning(size) for size in grey.shape))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(size) for size in grey.shape), indexing="ij"))
    edges = np.geomspace(0.02, 0.3, 10)
    mean = [power[(low <= frequency) & (frequency < high)].mean() for low, high in itertools.pairwise(edges)]
    return float(np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(mean), 1)[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_spectrum_falls_as_that_of_photographs(seed: int) -> None:
    for image in probe_images(192, 256, seed):
        assert image.shape == (192, 256, 3)
        assert image.dtype == np.uint8
        assert -3.2 < spectral_slope(image) < -1.6


def test_the_lights_differ_and_the_images_are_always_the_same() -> None:
    day, night, fog, dusk = probe_images(192, 256)
    assert night.mean() < 0.5 * dusk.mean() < dusk.mean() < day.mean()
    assert fog.std() < 0.6 * day.std()
    assert all(np.array_equal(a, b) for a, b in zip((day, night, fog, dusk), probe_images(192, 256), strict=True))
    assert not np.array_equal(day, probe_images(192, 256, seed=1)[0])


def test_small_images_are_made_too() -> None:
    assert [image.shape for image in probe_images(8, 12)] == [(8, 12, 3)] * 4
