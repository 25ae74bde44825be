"""The parameter files for nav2 and Autoware hold what the node takes, and name what it publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_deployment_files import topics_given

from semla_ros.serving.parameters import Settings

CONFIG = Path(__file__).resolve().parents[2] / "config"
NODE = {"nav2.yaml": "/**/perception", "autoware.yaml": "/**"}


def parameters(file: str, node: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIG / file).read_text(encoding="utf-8"))[node]["ros__parameters"]  # type: ignore[no-any-return]


def flat(values: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Names with dots, as ROS has them."""
    items: dict[str, Any] = {}
    for name, value in values.items():
        items |= flat(value, f"{start}{name}.") if isinstance(value, dict) else {f"{start}{name}": value}
    return items


@pytest.mark.parametrize("file", NODE)
def test_the_nodes_part_is_a_set_of_its_parameters(file: str) -> None:
    given = flat(parameters(file, NODE[file]))
    assert Settings.make(given).explicit == set(given)


def test_the_semantic_layer_listens_to_what_the_node_publishes_and_knows_its_classes() -> None:
    whole = yaml.safe_load((CONFIG / "nav2.yaml").read_text(encoding="utf-8"))
    layer = whole["local_costmap"]["local_costmap"]["ros__parameters"]["semantic_segmentation_layer"]
    source = layer[layer["observation_sources"]]
    assert {source[f"{name}_topic"] for name in ("segmentation", "confidence", "labels")} <= topics_given()
    named = [name for kind in source["class_types"] for name in source[kind]["classes"]]
    assert sorted(named) == sorted(parameters("nav2.yaml", NODE["nav2.yaml"])["classes"])


def test_the_lifecycle_manager_starts_a_node_that_waits_for_it() -> None:
    assert parameters("nav2.yaml", NODE["nav2.yaml"])["autostart"] is False
    manager = parameters("nav2.yaml", "lifecycle_manager_perception")
    assert manager["node_names"] == ["perception"]
    assert manager["bond_timeout"] == 4.0
