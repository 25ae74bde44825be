"""Fusion weights against the reference, edge cases included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semla_ros.adaptation.retrieval import Retriever
from semla_ros.config import RetrievalConfig
from semla_ros.errors import AdapterError, LibraryError
from semla_ros.lab.evaluation.published_retrieval import (
    PublishedRetriever,
    published_similarities,
    published_weights,
)
from semla_ros.lab.evaluation.variants import equal_mix
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.results import AdapterMix

TOLERANCE = 1e-5  # distances are evaluated in float32
NEAR_DISTANCE = 1e-3  # added to a centroid for the recorded overflow; its distance is checked against the recorded one


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def library(golden_dir: Path) -> AdapterLibrary:
    return AdapterLibrary.load(golden_dir / "adapters")


@pytest.fixture(scope="module")
def queries(golden_dir: Path) -> np.ndarray:
    queries = read_arrays(golden_dir / "inputs.npz")["queries"]
    return queries.reshape(len(queries), -1)


@pytest.fixture(scope="module")
def cases(golden_dir: Path) -> list[dict[str, Any]]:
    return read_json(golden_dir / "retrieval.json")


def settings(case: Mapping[str, Any]) -> RetrievalConfig:
    return RetrievalConfig(top_k=case["top_k"], temperature=case["temperature"], distance=case["measure"])


def has_query(case: Mapping[str, Any]) -> bool:
    """Whether a case can be asked of the safe retriever: a recorded query and settings that are allowed."""
    return case.get("query", -1) >= 0 and case["top_k"] > 0 and case["temperature"] > 0


def excluded(case: Mapping[str, Any]) -> tuple[str, ...]:
    return (case["removed"],) if case.get("removed") else ()


def assert_weights(mix: AdapterMix, expected: Mapping[str, float], tag: str) -> None:
    found = mix.as_dict()
    assert set(found) <= set(expected), tag
    for name, weight in expected.items():
        assert abs(found.get(name, 0.0) - weight) <= TOLERANCE, (tag, name)


def published(case: Mapping[str, Any], similarities: Mapping[str, float]) -> dict[str, float]:
    chosen, weights = published_weights(
        np.array(list(similarities.values())), temperature=case["temperature"], top_k=case["top_k"]
    )
    names = list(similarities)
    return {names[index]: float(weight) for index, weight in zip(chosen, weights, strict=True)}


def test_weights_of_every_recorded_query(library: AdapterLibrary, queries: np.ndarray, cases: list[dict]) -> None:
    asked = [case for case in cases if has_query(case)]
    assert len(asked) > 0
    for case in asked:
        # By cosine the published code prefers the farthest; its other weights are ours.
        kind = PublishedRetriever if case["measure"] == "cosine" else Retriever
        mix = kind(library, settings(case)).retrieve(queries[case["query"]], excluded(case))
        assert_weights(mix, case["weights"], case["tag"])
        assert list(mix.names) == sorted(mix.names, key=lambda name: -mix.as_dict()[name])


def test_similarities_of_every_recorded_query(library: AdapterLibrary, queries: np.ndarray, cases: list[dict]) -> None:
    for case in cases:
        if not has_query(case):
            continue
        distances = Retriever(library, settings(case)).distances(queries[case["query"]])
        similarities = published_similarities(distances, is_cosine=case["measure"] == "cosine")
        found = dict(zip(library.names, similarities, strict=True))
        for name, similarity in case["similarity_all"].items():
            assert abs(found[name] - similarity) <= TOLERANCE, (case["tag"], name)


def test_the_published_softmax_gives_the_recorded_numbers_and_nans(cases: list[dict]) -> None:
    recorded = [case for case in cases if "similarity_all" in case and "weights" in case]
    assert len(recorded) > 0
    for case in recorded:
        found = published(case, case["similarity_all"])
        expected = {name: float(weight) for name, weight in case["weights"].items()}
        assert set(found) == set(expected), case["tag"]
        for name, weight in expected.items():
            assert np.isnan(found[name]) == np.isnan(weight), (case["tag"], name)
            assert np.isnan(weight) or abs(found[name] - weight) <= TOLERANCE, (case["tag"], name)


def test_recorded_errors_of_the_published_code(cases: list[dict]) -> None:
    for case in cases:
        if case.get("error") == "ZeroDivisionError":
            with pytest.raises(ZeroDivisionError):
                published_similarities(np.array([0.0, 1.0]), is_cosine=False)
        elif case.get("error") == "ValueError":
            with pytest.raises(ValueError, match="top_k"):
                published(case, case["similarity_all"])


def test_a_scene_that_equals_a_centroid_gets_that_adapter_alone(library: AdapterLibrary) -> None:
    for name, centroid in zip(library.names, library.centroids, strict=True):
        assert Retriever(library, RetrievalConfig()).retrieve(centroid).as_dict() == {name: 1.0}
        with pytest.raises(AdapterError, match="divides by zero"):
            PublishedRetriever(library, RetrievalConfig()).retrieve(centroid)


def test_a_scene_very_near_a_centroid_is_safe_here_and_overflows_as_published(library: AdapterLibrary) -> None:
    config = RetrievalConfig()
    for name, centroid in zip(library.names, library.centroids, strict=True):
        scene = centroid.copy()
        scene[0] += NEAR_DISTANCE
        mix = Retriever(library, config).retrieve(scene)
        assert mix.names[0] == name
        assert mix.weights[0] == pytest.approx(1.0)
        with pytest.raises(AdapterError, match="not numbers"):
            PublishedRetriever(library, config).retrieve(scene)


def test_uniform_mixes_as_recorded(library: AdapterLibrary, cases: list[dict]) -> None:
    uniform = [case for case in cases if case["tag"].startswith("uniform")]
    assert len(uniform) > 0
    for case in uniform:
        names = [name for name in library.names if name not in excluded(case)]
        assert_weights(equal_mix(names), case["weights"], case["tag"])


def test_weights_used_for_the_images(golden_dir: Path, library: AdapterLibrary, queries: np.ndarray) -> None:
    for index, expected in read_json(golden_dir / "semla_weights.json").items():
        assert_weights(Retriever(library, RetrievalConfig()).retrieve(queries[int(index)]), expected, index)


def test_by_default_cosine_prefers_the_nearest(library: AdapterLibrary, queries: np.ndarray) -> None:
    retriever = Retriever(library, RetrievalConfig(distance="cosine"))
    for query in queries:
        distances = dict(zip(library.names, retriever.distances(query), strict=True))
        assert retriever.retrieve(query).names[0] == min(distances, key=lambda name: distances[name])


def test_an_embedding_of_another_length_is_refused(library: AdapterLibrary, queries: np.ndarray) -> None:
    with pytest.raises(LibraryError, match="scene encoder"):
        Retriever(library, RetrievalConfig()).retrieve(queries[0][:-1])
