from pathlib import Path

import numpy as np

from semla_ros.lab.training.centroids import centroid_of, write_statistics
from semla_ros.library.domain_statistics import parse_statistics


def test_the_file_holds_the_published_key(tmp_path: Path) -> None:
    centroid = centroid_of(np.random.default_rng(3).standard_normal((80, 3)).astype(np.float32))
    file = tmp_path / "dusk_statistics.npz"
    write_statistics(file, centroid)
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["train_average_embedding"].shape == (1, 3)
        assert arrays["train_average_embedding"].dtype == np.float32
    read = parse_statistics(file.read_bytes(), "dusk")
    np.testing.assert_array_equal(read.centroid, centroid.mean)
