"""Settings: defaults once, unknown keys and wrong values refused by name."""

from pathlib import Path

import pytest

from semla_ros.config import DriftConfig, RetrievalConfig, SemlaConfig, from_mapping, load_yaml
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
    ],
)
def test_a_wrong_setting_is_refused_by_name(values: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(RetrievalConfig, values)
    assert all(word in str(caught.value) for word in words), caught.value


def test_hysteresis_must_release_below_its_threshold() -> None:
    with pytest.raises(ConfigError, match="release_threshold"):
        DriftConfig(drift_threshold=0.1, release_threshold=0.2)


def test_a_settings_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("retrieval: {top_k: -1}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"settings\.yaml.*top_k"):
        load_yaml(SemlaConfig, path)
    with pytest.raises(ConfigError, match="missing"):
        load_yaml(SemlaConfig, tmp_path / "missing.yaml")
