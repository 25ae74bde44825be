"""Which parameters are set for a node by its name, by the rules of rcl."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import rclpy
from graph import Graph
from rclpy.context import Context
from rclpy.node import Node

from semla_ros.nodes.parameter_sources import files_for_others, named_for
from semla_ros.nodes.rclpy_internals import given_parameters

# Parameter -> the section it stands in; every form that rcl knows.
SECTIONS = {
    "all": "/**", "star": "/*", "below": "/car/**", "in_car": "/car/*",
    "named_anywhere": "/**/perception", "named_one_up": "/*/perception", "named": "/car/perception",
    "named_without_slash": "car/perception", "named_at_root": "perception", "other": "/car/camera",
    "other_place": "/van/perception", "other_deep": "/car/front/perception",
}  # fmt: skip


@contextmanager
def started(graph: Graph, arguments: list[str]) -> Iterator[Node]:
    context = Context()
    rclpy.init(args=arguments, context=context, domain_id=graph.domain)
    node = rclpy.create_node("perception", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize("namespace", ["", "/car", "/car/front"])
def test_a_section_counts_as_the_nodes_own_where_it_applies_and_ends_in_the_nodes_name(
    graph: Graph, tmp_path: Path, namespace: str
) -> None:
    file = tmp_path / "parameters.yaml"
    sections = [f"{section}:\n  ros__parameters: {{{name}: 1}}\n" for name, section in SECTIONS.items()]
    nested = "/*/*:\n  ros__parameters: {tagged: !!python/tuple [a, b]}\n"  # as launch writes lists
    nested += "car:\n  perception:\n    ros__parameters: {nested: 1, group: {deep: {named: 1}}}\n"
    # rcl takes all that stands in a section that comes twice, and in all documents of a file.
    nested += (
        "/car/perception:\n  ros__parameters: {again: 1}\n---\n/car/perception:\n  ros__parameters: {document: 1}\n"
    )
    file.write_text("".join(sections) + nested, encoding="utf-8")
    arguments = ["node", "--ros-args", "--params-file", str(file), "-r", f"__ns:={namespace or '/'}"]
    with started(graph, arguments) as node:
        given = set(given_parameters(node)) - {"use_sim_time"}
        wildcards = {name for name, section in SECTIONS.items() if section.endswith("*")} | {"tagged"}
        assert given & wildcards
        assert given - wildcards
        assert named_for(node, arguments) == given - wildcards
        assert given & {"again", "document"} == ({"again", "document"} if namespace == "/car" else set())
        assert files_for_others(node, arguments) == []


def test_a_rule_counts_as_the_nodes_own_where_it_names_the_node(graph: Graph) -> None:
    rules = ["-p", "all:=1", "--param", "also_all:=a:=b", "-p", "seg:own:=1", "-p", "seg:qos_overrides./a.b:=x:=y"]
    arguments = ["node", "-p", "before:=1", "--ros-args", *rules, "-p", "camera:other:=1", "-r", "__node:=seg", "--"]
    arguments += ["-p", "seg:after:=1"]
    with started(graph, arguments) as node:
        assert set(given_parameters(node)) == {"all", "also_all", "own", "qos_overrides./a.b"}
        assert named_for(node, arguments) == {"own", "qos_overrides./a.b"}


def test_files_that_say_nothing_set_nothing(graph: Graph, tmp_path: Path) -> None:
    arguments = ["node", "--ros-args"]
    texts = ["", "perception:\n  ros__parameters:\n", "/**:\n  ros__parameters: {}\n", "{}", "perception: null"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.yaml").write_text(text, encoding="utf-8")
    with started(graph, arguments) as node:
        for path in tmp_path.iterdir():
            assert named_for(node, [*arguments, "--params-file", str(path)]) == set()
