from pathlib import Path

import numpy as np

from semla_ros.lab.training.centroids import centroid_of, write_statistics
from semla_ros.library.domain_statistics import parse_statistics


def two_kinds(count: int) -> np.ndarray:
    """Embeddings of a domain that has two kinds of scenes, far apart."""
    rng = np.random.default_rng(3)
    kinds = np.array([[10.0, 0, 0], [0, 10, 0]])[rng.integers(2, size=count)]
    return (kinds + 0.1 * rng.standard_normal((count, 3))).astype(np.float32)


def test_several_centroids_lie_where_the_images_are_and_the_mean_need_not() -> None:
    embeddings = two_kinds(80)
    centroid = centroid_of(embeddings)
    assert centroid.several is not None
    to_mean = np.linalg.norm(embeddings - centroid.mean, axis=1)
    to_nearest = np.linalg.norm(embeddings[:, None] - centroid.several[None], axis=2).min(1)
    assert to_nearest.max() < 0.5 < to_mean.min()


def test_the_same_images_give_the_same_centroids() -> None:
    first, again = (centroid_of(two_kinds(80)) for _ in range(2))
    np.testing.assert_array_equal(first.several, again.several)


def test_a_few_images_have_one_centroid() -> None:
    assert centroid_of(two_kinds(15)).several is None


def test_the_file_holds_the_published_key_and_the_clusters_beside_it(tmp_path: Path) -> None:
    centroid = centroid_of(two_kinds(80))
    file = tmp_path / "dusk_statistics.npz"
    write_statistics(file, centroid)
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["train_average_embedding"].shape == (1, 3)
        assert arrays["train_average_embedding"].dtype == np.float32
    read = parse_statistics(file.read_bytes(), "dusk")
    np.testing.assert_array_equal(read.centroid, centroid.mean)
    np.testing.assert_array_equal(read.centroids, centroid.several)
