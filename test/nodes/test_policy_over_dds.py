"""The SROS 2 policy against what a running node publishes, hears and serves."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from graph import Graph, PerceptionClient, wait_for

POLICY = Path(__file__).resolve().parents[2] / "deploy" / "sros2" / "policy.xml"
OPTIONAL = {
    "~/label_info",
    "bond",
    "image/compressed",
    "/clock",
    "/parameter_events",
}  # vision_msgs, transport, sim time


def allowed(attribute: str) -> set[str]:
    profile = next(item for item in ElementTree.parse(POLICY).iter("profile") if item.get("node") == "perception")
    return {item.text or "" for group in profile if attribute in group.attrib for item in group}


def test_the_policy_allows_what_the_node_does_and_nothing_else(graph: Graph, perception: PerceptionClient) -> None:
    namespace = f"/{perception.namespace}"

    def short(found: list[tuple[str, list[str]]]) -> set[str]:
        names = {name for name, _ in found}
        return {name.replace(f"{perception.prefix}/", "~/").replace(f"{namespace}/", "") for name in names}

    node = graph.node
    wait_for(lambda: ("perception", namespace) in node.get_node_names_and_namespaces(), "the node in the graph")
    wait_for(lambda: "image" in short(node.get_subscriber_names_and_types_by_node("perception", namespace)), "inputs")
    wait_for(lambda: "~/mask" in short(node.get_publisher_names_and_types_by_node("perception", namespace)), "outputs")
    published = short(node.get_publisher_names_and_types_by_node("perception", namespace))
    heard = short(node.get_subscriber_names_and_types_by_node("perception", namespace))
    served = short(node.get_service_names_and_types_by_node("perception", namespace))
    for attribute, found in (("publish", published), ("subscribe", heard), ("reply", served)):
        assert found - OPTIONAL <= allowed(attribute), attribute
        assert allowed(attribute) - OPTIONAL <= found, attribute
