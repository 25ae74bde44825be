"""Centroid and spread of a domain: the same in any order, and the same in and out of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semla_ros.errors import AdapterError
from semla_ros.library.centroids import MAX_KNOWN, statistics_of, write_statistics
from semla_ros.library.domain_statistics import CENTROID_KEY, nearest_gaps, parse_statistics


def some_embeddings() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.normal(size=(500, 16)) * rng.uniform(1e-3, 1e3, (500, 1))).astype(np.float32)


def test_the_centroid_is_the_same_to_the_last_bit_in_any_order() -> None:
    embeddings = some_embeddings()
    expected = statistics_of(embeddings)
    for seed in range(5):
        found = statistics_of(np.random.default_rng(seed).permutation(embeddings))
        np.testing.assert_array_equal(found.centroid, expected.centroid)
        assert (found.spread_mean, found.spread_p95) == (expected.spread_mean, expected.spread_p95)
    np.testing.assert_allclose(expected.centroid, embeddings.astype(np.float64).mean(0), rtol=1e-5)


def test_95_of_100_images_lie_within_the_spread() -> None:
    embeddings = some_embeddings()
    statistics = statistics_of(embeddings)
    distances = np.linalg.norm(embeddings - statistics.centroid, axis=1)
    assert (distances <= statistics.spread_p95).mean() == 0.95
    assert statistics.images == len(embeddings)


def test_the_file_holds_the_published_key_and_what_retrieval_needs_beside_it(tmp_path: Path) -> None:
    statistics = statistics_of(some_embeddings())
    file = tmp_path / "dusk_statistics.npz"
    write_statistics(file, statistics)
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["train_average_embedding"].shape == (1, 16)
        assert arrays["train_average_embedding"].dtype == np.float32
    read = parse_statistics(file.read_bytes(), "dusk")
    np.testing.assert_array_equal(read.centroid, statistics.centroid)
    assert (read.images, read.spread_mean, read.spread_p95) == (500, statistics.spread_mean, statistics.spread_p95)


@pytest.mark.parametrize("key", ["images", "spread_mean", "spread_p95"])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, 1e300, "x", [1.0, 2.0], 1j, [], True])
def test_a_number_that_can_be_none_of_a_domain_is_named(tmp_path: Path, key: str, value: object) -> None:
    file = tmp_path / "dusk_statistics.npz"
    np.savez(file, **{CENTROID_KEY: np.ones((1, 4), np.float32), key: np.asarray(value)})
    with pytest.raises(AdapterError, match=rf"'dusk'.*'{key}' must be a number from 0 to 1e\+09, got"):
        parse_statistics(file.read_bytes(), "dusk")


def test_examples_come_back_from_the_file_and_leave_no_scene_far_from_one(tmp_path: Path) -> None:
    embeddings, strange = some_embeddings(), 3 + some_embeddings()[:20]
    statistics = statistics_of(embeddings, strange)
    write_statistics(tmp_path / "fog_statistics.npz", statistics)
    read = parse_statistics((tmp_path / "fog_statistics.npz").read_bytes(), "fog")
    np.testing.assert_array_equal(read.scenes("known"), statistics.scenes("known"))
    np.testing.assert_allclose(read.scenes("strange"), strange, atol=read.step)
    assert len(read.scenes("known")) == MAX_KNOWN
    gaps = nearest_gaps(embeddings, read.scenes("known"))
    assert gaps.max() < nearest_gaps(embeddings, embeddings[: len(read.scenes("known"))]).max()
    assert 0 < read.reach < statistics.spread_p95 * 2


def test_statistics_without_examples_have_none() -> None:
    assert statistics_of(some_embeddings()).scenes("known").shape == (0, some_embeddings().shape[1])


@pytest.mark.parametrize("known", [np.zeros((3, 4), np.float32), np.zeros((3, 5), np.int8), np.zeros(4, np.int8)])
def test_examples_of_another_form_are_refused(tmp_path: Path, known: np.ndarray) -> None:
    file = tmp_path / "fog_statistics.npz"
    np.savez(file, train_average_embedding=np.zeros((1, 4), np.float32), known=known)
    with pytest.raises(AdapterError, match="cannot be read"):
        parse_statistics(file.read_bytes(), "fog")
