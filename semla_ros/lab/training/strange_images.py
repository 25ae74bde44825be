"""Images that are no scene of any domain, to hold scenes against: test patterns, and a domain's images taken apart.

They stand for what a camera or a driver may send instead of a scene: one colour, noise, gradients, stripes, pages and
screens, heaps of shapes. A domain's own images with their tiles in another order, or under a foreign texture, stand for
scenes that share its colours and nothing else. `adaptation/strangeness.py` names the sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from semla_ros.results import ImageArray

HEIGHT, WIDTH = 96, 128
PATTERNS = 112  # for one domain; those of the others of its library add up to a denser set
TAKEN_APART = 64  # own images, every other one with its tiles in another order, the rest under a foreign texture

Pixels = NDArray[np.float64]


def strange_images(images: Sequence[ImageArray], seed: int) -> list[ImageArray]:
    """What a domain's scenes are held against.

    Args:
        images: Some of the domain's own, RGB, shape (H, W, 3), uint8, of any sizes; `TAKEN_APART` are enough.
        seed: Of the patterns; equal arguments give equal images.

    Returns:
        `PATTERNS` patterns and, in turn, each image shuffled or textured.
    """
    rng = np.random.default_rng(seed)
    kinds = list(_KINDS)
    drawn = [kinds[index](rng) for index in rng.choice(len(kinds), PATTERNS, p=np.array(list(_KINDS.values())) / 16)]
    apart = [(_shuffled, _textured)[index % 2](image, rng) for index, image in enumerate(images)]
    return [np.clip(pixels, 0, 255).astype(np.uint8) for pixels in (*drawn, *apart)]


def _shuffled(image: ImageArray, rng: np.random.Generator, across: int = 4) -> Pixels:
    """Its tiles in another order."""
    image = image if min(image.shape[:2]) >= across else cv2.resize(image, (WIDTH, HEIGHT)).astype(np.uint8)
    height, width = (max(1, size // across) for size in image.shape[:2])
    tiles = [
        image[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(across)
        for column in range(across)
    ]
    order = rng.permutation(len(tiles)).reshape(across, across)
    mixed: Pixels = np.vstack([np.hstack([tiles[index] for index in row]) for row in order]).astype(np.float64)
    return mixed


def _textured(image: ImageArray, rng: np.random.Generator) -> Pixels:
    """Lighter and darker by a texture that falls off with frequency as those of photographs do."""
    texture = _spectrum(rng, image.shape[0], image.shape[1], rng.uniform(0.5, 1.5))
    textured: Pixels = image.astype(np.float64) * np.exp(rng.uniform(0.2, 0.6) * texture)[..., None]
    return textured


def _spectrum(rng: np.random.Generator, height: int, width: int, slope: float) -> Pixels:
    """Noise with an amplitude of frequency^-slope, mean 0, deviation 1, shape (height, width)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    values = np.fft.ifft2(frequency**-slope * np.exp(2j * np.pi * rng.random((height, width)))).real
    normalised: Pixels = (values - values.mean()) / max(float(values.std()), 1e-9)
    return normalised


def _colour(rng: np.random.Generator) -> Pixels:
    return rng.uniform(0, 256, 3)


def _constant(rng: np.random.Generator) -> Pixels:
    colour = _colour(rng) if rng.random() < 0.6 else np.full(3, rng.uniform(0, 256))
    return colour + rng.normal(0, rng.uniform(0, 12), (HEIGHT, WIDTH, 3))


def _noise(rng: np.random.Generator) -> Pixels:
    cell = int(rng.choice([1, 1, 1, 2, 4, 8, 16, 32]))
    shape = (-(-HEIGHT // cell), -(-WIDTH // cell), int(rng.choice([1, 3])))
    values = np.clip(rng.normal(rng.uniform(0, 255), rng.uniform(10, 120), shape), 0, 255)
    kind = cv2.INTER_NEAREST if rng.random() < 0.5 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.repeat(values, 3 // shape[2], axis=2), (WIDTH, HEIGHT), interpolation=kind))


def _gradient(rng: np.random.Generator) -> Pixels:
    rows, columns = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    slope = columns * np.cos(angle) + rows * np.sin(angle)
    share: Pixels = ((slope - slope.min()) / np.ptp(slope))[..., None]
    return _colour(rng) * share + _colour(rng) * (1 - share)


def _stripes(rng: np.random.Generator) -> Pixels:
    """Bars, rows or squares in black and white, or in two to eight colours."""
    rows, columns = np.indices((HEIGHT, WIDTH)) // max(1, int(WIDTH / 2 ** rng.uniform(1, 6)))
    colours = rng.uniform(0, 256, (int(rng.integers(2, 9)), 3))
    if rng.random() < 0.4:
        colours = np.array([[0.0] * 3, [255.0] * 3])
    elif rng.random() < 0.4:  # as test patterns have them: each channel all or nothing
        colours = np.where(colours < 128, 0.0, 255.0)
    striped: Pixels = colours[[columns, rows, rows + columns][rng.integers(3)] % len(colours)]
    return striped


def _screen(rng: np.random.Generator) -> Pixels:
    """A page or a desktop at four times the size: panes on one ground, with words, bars and cards."""
    image = np.empty((4 * HEIGHT, 4 * WIDTH, 3))
    kind = rng.random()
    if kind < 0.75:  # a light or a dark theme, near grey
        ground = np.full(3, rng.uniform(225, 256) if kind < 0.45 else rng.uniform(0, 60)) + rng.normal(0, 4, 3)
    else:
        ground = _colour(rng)
    _pane(rng, image, ground, int(rng.integers(0, 4)))
    if rng.random() < 0.4:  # a window before it
        top, left = int(rng.uniform(0, 2 * HEIGHT)), int(rng.uniform(0, 2 * WIDTH))
        window = image[top : top + int(rng.uniform(1, 3) * HEIGHT), left : left + int(rng.uniform(1, 3) * WIDTH)]
        _pane(rng, window, _near(rng, 255 - ground if rng.random() < 0.4 else np.full(3, 250.0)), 1)
    for bar in (image[: int(rng.integers(8, 40))], image[-int(rng.integers(8, 40)) :]):
        if rng.random() < 0.4:
            bar[:] = _near(rng, ground)
    return np.asarray(cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.float64)


def _near(rng: np.random.Generator, ground: Pixels) -> Pixels:
    """A tone that goes with a ground: mostly a little lighter or darker, now and then a colour."""
    return _colour(rng) if rng.random() < 0.25 else np.clip(ground + rng.normal(0, 25), 0, 255)


def _pane(rng: np.random.Generator, image: Pixels, ground: Pixels, splits: int) -> None:
    """Fill a part of a screen, split in two up to so many times."""
    height, width = image.shape[:2]
    image[:] = ground
    if splits and min(height, width) > 60 and rng.random() < 0.8:
        share = rng.uniform(0.15, 0.85)
        halves = (
            np.split(image, [int(share * height)]) if rng.random() < 0.4 else np.split(image, [int(share * width)], 1)
        )
        for half in halves:
            _pane(rng, half, ground if rng.random() < 0.6 else _near(rng, ground), splits - 1)
        return
    ink = np.clip(ground + (1 if ground.mean() < 128 else -1) * rng.uniform(120, 230), 0, 255)
    content = rng.random()
    if content < 0.55:
        _words(rng, image, ink)
    elif content < 0.7:
        colour, step = _colour(rng), int(rng.integers(8, 40))
        for left in range(8, width - 8, step):
            image[height - int(rng.uniform(0.05, 0.95) * height) :, left : left + max(2, step // 2)] = colour
    elif content < 0.85:
        step = int(rng.integers(30, 90))
        for top in range(8, height, step):
            for left in range(8, width, step):
                image[top : top + step - 10, left : left + step - 10] = _near(rng, ground)


def _words(rng: np.random.Generator, image: Pixels, ink: Pixels) -> None:
    """Lines of letters, more or less ragged to the right."""
    fullness = rng.uniform(0.2, 1.2)
    size, drawn = rng.uniform(0.2, 0.6), np.ascontiguousarray(image)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz(),.    "))
    for line in range(int(30 * size), image.shape[0], int(rng.uniform(24, 50) * size)):
        text = "".join(
            rng.choice(letters, int(min(1.0, fullness * rng.uniform(0.6, 1.1)) * image.shape[1] / (17 * size)) + 1)
        )
        cv2.putText(drawn, text, (8, line), cv2.FONT_HERSHEY_SIMPLEX, size, ink.tolist(), 1, cv2.LINE_AA)
    image[:] = drawn


def _leaves(rng: np.random.Generator) -> Pixels:
    """Shapes that cover each other, sizes falling off as in photographs ("dead leaves"), in colours or near grey."""
    image = np.empty((2 * HEIGHT, 2 * WIDTH, 3))
    base, apart = _colour(rng), rng.uniform(10, 90)
    saturation = rng.choice([1.0, 0.2])
    base = base * saturation + base.mean() * (1 - saturation)
    image[:] = base
    for _ in range(int(rng.integers(60, 400))):
        radius = min(int(3 / (rng.random() ** 0.8 + 0.01)), 90)
        colour = np.clip(base + rng.normal(0, apart * saturation, 3) + rng.normal(0, apart), 0, 255).tolist()
        centre = (int(rng.integers(0, 2 * WIDTH)), int(rng.integers(0, 2 * HEIGHT)))
        axes = (radius, max(1, int(radius * rng.uniform(0.1, 1))))
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 3)))
    return _halved(image) + rng.normal(0, rng.uniform(0, 10), (HEIGHT, WIDTH, 3))


def _clouds(rng: np.random.Generator) -> Pixels:
    slope = rng.uniform(0.7, 2)
    grey = _spectrum(rng, HEIGHT, WIDTH, slope)[..., None]
    colours = np.stack([_spectrum(rng, HEIGHT, WIDTH, slope) for _ in range(3)], axis=-1)
    return _colour(rng) + rng.uniform(15, 80) * (grey + rng.uniform(0, 1) * colours)


def _halved(image: Pixels) -> Pixels:
    return np.asarray(cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.float64)


_KINDS: dict[Callable[[np.random.Generator], Pixels], int] = {
    _constant: 3,
    _noise: 2,
    _gradient: 1,
    _stripes: 1,
    _screen: 6,
    _leaves: 2,
    _clouds: 1,
}  # with how many of 16 patterns are of each kind
