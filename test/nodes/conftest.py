"""Fixtures for tests over DDS: one graph per test process, one costless perception node per module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from graph import Graph, PerceptionClient, start_costless


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    graph = Graph(tmp_path_factory.mktemp("nodes"))
    yield graph
    graph.close()


@pytest.fixture(scope="module")
def perception(graph: Graph, request: pytest.FixtureRequest) -> Iterator[PerceptionClient]:
    """An active node on a model that costs nothing, in a namespace named after the test module."""
    namespace = request.module.__name__.split(".")[-1]
    client = PerceptionClient(graph, namespace)
    process = start_costless(graph, namespace)
    client.process = process
    client.wait_for_state("active")
    yield client
    assert process.is_alive, process.output
    assert process.stop() == 0, process.output
