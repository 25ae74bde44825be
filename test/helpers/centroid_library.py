"""A library that has centroids and nothing else, for tests of retrieval."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from semla_ros.library.adapter_files import AdapterFiles
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.domain_statistics import DomainStatistics
from semla_ros.library.lora_settings import LoraSettings
from semla_ros.library.manifest import AdapterEntry, LibraryManifest

SETTINGS = LoraSettings(8, 16.0, False, {}, {})


def library_of(
    centroids: np.ndarray,
    spread: list[float] | None = None,
    home: DomainStatistics | None = None,
) -> AdapterLibrary:
    """A library of adapters a0, a1, ... that has centroids and nothing else."""
    centroids = np.asarray(centroids, np.float32)
    files = [
        AdapterFiles(Path("library"), f"a{index}", SETTINGS, DomainStatistics(centroid))
        for index, centroid in enumerate(centroids)
    ]
    entries = {f"a{index}": AdapterEntry(spread_p95=value) for index, value in enumerate(spread or [])}
    return AdapterLibrary(Path("library"), files, LibraryManifest(adapters=entries), {}, base_statistics=home)


def library_with(statistics: list[DomainStatistics], home: DomainStatistics | None = None) -> AdapterLibrary:
    """A library of adapters a0, a1, ... that has statistics and nothing else."""
    files = [AdapterFiles(Path("library"), f"a{index}", SETTINGS, item) for index, item in enumerate(statistics)]
    return AdapterLibrary(Path("library"), files, LibraryManifest(), {}, base_statistics=home)
