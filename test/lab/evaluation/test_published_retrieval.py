"""Retrieval with the published defects, beside what is used otherwise; the golden tests hold its numbers."""

from __future__ import annotations

import numpy as np
import pytest
from centroid_library import library_of

from semla_ros.adaptation.retrieval import Retriever
from semla_ros.config import RetrievalConfig
from semla_ros.errors import AdapterError
from semla_ros.lab.evaluation.published_retrieval import PublishedRetriever

LINE = np.array([[0.0, 0], [1, 0], [2, 0], [4, 0], [8, 0]])


def test_the_published_cosine_prefers_the_farthest() -> None:
    library, scene = library_of(np.array([[1.0, 0], [0, 1], [1, 1]])), np.array([1.0, 0.2])
    settings = RetrievalConfig(distance="cosine", top_k=1)
    assert Retriever(library, settings).retrieve(scene).names == ("a0",)
    assert PublishedRetriever(library, settings).retrieve(scene).names == ("a1",)


def test_the_published_softmax_reports_its_defects_instead_of_weights() -> None:
    retriever = PublishedRetriever(library_of(LINE), RetrievalConfig())
    with pytest.raises(AdapterError, match="divides by zero"):
        retriever.retrieve(np.zeros(2))
    with pytest.raises(AdapterError, match="not numbers"):
        retriever.retrieve(np.array([1e-4, 0.0]))
    safe = Retriever(library_of(LINE), RetrievalConfig())
    scene = np.array([1.9, 0.5])
    assert retriever.retrieve(scene).as_dict() == pytest.approx(safe.retrieve(scene).as_dict())


def test_adapters_left_out_are_ignored_as_if_they_were_not_in_the_library() -> None:
    library, scene = library_of(LINE), np.array([1.9, 0.5])
    without = PublishedRetriever(library, RetrievalConfig(top_k=2)).retrieve(scene, exclude=("a2",))
    assert set(without.names) == {"a0", "a1"}
