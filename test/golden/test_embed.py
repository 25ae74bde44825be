"""Scene embeddings against the reference: preprocessing, features, average."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semla_ros.adaptation.scene_embedding import SceneEncoder


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def encoder(golden_dir: Path) -> SceneEncoder:
    return SceneEncoder.load(golden_dir / "embed")


@pytest.fixture(scope="module")
def expected(golden_dir: Path) -> Mapping[str, np.ndarray]:
    return read_arrays(golden_dir / "embed" / "expected.npz")


@pytest.fixture(scope="module")
def images(golden_dir: Path, expected: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(Image.open(golden_dir / "embed" / str(name)).convert("RGB")) for name in expected["files"]]


def test_images_are_resized_and_cropped_as_published(
    encoder: SceneEncoder, expected: Mapping[str, np.ndarray], images: list[np.ndarray]
) -> None:
    for image, resized in zip(images, expected["resized_cropped_uint8"], strict=True):
        found = encoder.preprocessing.resized(image)
        assert np.array_equal(found.transpose(2, 0, 1), resized)


def test_embeddings_are_those_of_the_reference(
    encoder: SceneEncoder, expected: Mapping[str, np.ndarray], images: list[np.ndarray]
) -> None:
    for image, reference in zip(images, expected["embeddings"], strict=True):
        difference = np.abs(encoder.embed(image) - reference.reshape(-1)).max()
        assert difference <= 2e-5 * np.linalg.norm(reference)


def test_the_average_of_the_files_is_the_recorded_one(
    encoder: SceneEncoder, expected: Mapping[str, np.ndarray], images: list[np.ndarray]
) -> None:
    average = encoder.embed_batch(images).mean(0)
    reference = expected["average_embedding"].reshape(-1)
    assert np.abs(average - reference).max() <= 2e-5 * np.linalg.norm(reference)
    assert encoder.dim == len(reference)
