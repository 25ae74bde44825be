"""The published benchmark's file, its domains below any folder, and its encodings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from semla_ros.lab.evaluation.datasets.benchmark import DiskBenchmark, DomainImages, load_benchmark

BENCHMARK = load_benchmark("semla20", Path())


def below(root: Path) -> DiskBenchmark:
    return replace(BENCHMARK, root=root)


def open_domain(name: str, root: Path) -> DomainImages:
    return below(root).open(name)


def class_names(vocabulary: str) -> tuple[str, ...]:
    return BENCHMARK.classes[vocabulary]


def decode_labels(encoding: str, path: Path, segments: Mapping[int, int] | None = None) -> np.ndarray:
    used = BENCHMARK.encodings[encoding]
    return used.decode(class_names(used.classes), path, segments)
