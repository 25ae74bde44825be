"""Settings: defaults once, unknown keys and wrong values refused by name."""

from dataclasses import dataclass

import numpy as np
import pytest

from semla_ros.config import DriftConfig, InferenceConfig, RetrievalConfig, SemlaConfig, from_mapping
from semla_ros.errors import ConfigError


def test_nested_mappings_become_nested_configs() -> None:
    config = from_mapping(SemlaConfig, {"classes": ["road", "sky"], "retrieval": {"top_k": 3, "temperature": 1}})
    assert config.classes == ("road", "sky")
    assert config.retrieval == RetrievalConfig(top_k=3, temperature=1.0)
    assert config.drift is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"topk": 3}, ["topk", "top_k"]),
        ({"top_k": 0}, ["top_k", "at least 1", "0"]),
        ({"top_k": "three"}, ["top_k", "int", "three"]),
        ({"top_k": True}, ["top_k", "int", "True"]),
        ({"temperature": 0.0}, ["temperature", "positive"]),
        ({"temperature": float("nan")}, ["temperature", "positive"]),
        ({"distance": "manhattan"}, ["distance", "euclidean", "manhattan"]),
        ({"fade_start": 3.0, "fade_end": 2.0}, ["fade_end", "3.0", "2.0"]),
        ({"fade_end": float("inf")}, ["fade_end", "positive and at most 1000000000", "inf"]),
        ({"top_k": 2**63 - 1}, ["top_k", "at least 1 and at most 2147483647", str(2**63 - 1)]),
        ({"min_weight": 1.0}, ["min_weight", "in [0, 1)", "1.0"]),
        ({"compat": {}}, ["compat", "docs/compat.md"]),
        ({1: 2, "x": 3}, ["unknown setting '1'"]),
    ],
)
def test_a_wrong_setting_is_refused_by_name(values: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(RetrievalConfig, values)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", ["drift_threshold", "release_threshold", "min_dwell_s", "smoothing_s"])
def test_a_setting_of_an_earlier_gate_says_what_took_its_place(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}': .*(mix_threshold|max_fusions_per_min|steady_s)"):
        from_mapping(DriftConfig, {name: 0.5})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_numbers_must_be_finite_and_in_range_however_a_config_is_made(value: float) -> None:
    with pytest.raises(ConfigError, match="steady_s"):
        DriftConfig(steady_s=value)
    with pytest.raises(ConfigError, match="steady_s"):
        DriftConfig(steady_s=np.float64(value))


def test_words_must_be_among_those_of_the_field_however_a_config_is_made() -> None:
    with pytest.raises(ConfigError, match="'engine' must be one of auto, torch, onnx, openvino, tensorrt, got 'tf'"):
        InferenceConfig(engine="tf")  # type: ignore[arg-type]


def test_where_a_mapping_comes_from_is_named_in_its_errors() -> None:
    with pytest.raises(ConfigError, match="recipe: retrieval: 'top_k' must be at least 1"):
        from_mapping(SemlaConfig, {"retrieval": {"top_k": -1}}, where="recipe")


def test_a_setting_without_a_default_that_is_missing_is_named() -> None:
    @dataclass(frozen=True)
    class Two:
        first: int
        second: int = 0

    with pytest.raises(ConfigError, match=r"recipe\.yaml: 'first' is missing"):
        from_mapping(Two, {"second": 1}, where="recipe.yaml")
