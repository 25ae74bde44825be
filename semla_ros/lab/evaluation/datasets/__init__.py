"""The ten data sets of the published benchmark and its 20 domains, read from their own folder layouts."""

from semla_ros.lab.evaluation.datasets.labels import class_names, decode_labels
from semla_ros.lab.evaluation.datasets.semla20 import (
    SEMLA20,
    BenchmarkDomain,
    DomainImages,
    Sample,
    check_domains,
    open_domain,
)
from semla_ros.lab.evaluation.datasets.sizes import SizeRule, stretch_to

__all__ = [
    "SEMLA20",
    "BenchmarkDomain",
    "DomainImages",
    "Sample",
    "SizeRule",
    "check_domains",
    "class_names",
    "decode_labels",
    "open_domain",
    "stretch_to",
]
