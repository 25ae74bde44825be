"""Where a node's parameters come from: set for this node by its name, or for whichever nodes there are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from rclpy.node import Node

_RULE = re.compile(r"(?:(?P<node>\w+):)?(?P<name>[^:]+):=")  # of `-p` and `-r`


def named_for(node: Node, arguments: Sequence[str]) -> set[str]:
    """Names of the parameters that a command line, its files included, sets for a node by the node's own name.

    The others are for every node: of a section that ends in a wildcard, such as `/**`, or given to `-p` without a
    node's name, as launch does with `SetParameter`. A vehicle sets them around all it starts, so they may well be no
    parameters of this node.
    """
    names: set[str] = set()
    for option, value in _ros_options(arguments):
        if option in ("-p", "--param"):
            rule = _RULE.match(value)
            if rule is not None and rule["node"] == node.get_name():
                names.add(rule["name"])
        elif option == "--params-file":
            for section, parameters in _read(value):
                if section[-1:] == (node.get_name(),) and _fits(section, node.get_fully_qualified_name()):
                    names.update(_flat(parameters))
    return names


def remapped_topics(node: Node, arguments: Sequence[str]) -> set[str]:
    """Full names that a command line remaps for a node, those to themselves among them: they are meant as they are."""
    rules = [_RULE.match(value) for option, value in _ros_options(arguments) if option in ("-r", "--remap")]
    return {
        node.resolve_topic_name(rule["name"], only_expand=True)
        for rule in rules
        if rule is not None and rule["node"] in (None, node.get_name()) and not rule["name"].startswith("__")
    }


def files_for_others(node: Node, arguments: Sequence[str]) -> list[str]:
    """A sentence for each parameter file of a command line that has sections, and none for a node."""
    full_name, sentences = node.get_fully_qualified_name(), []
    for option, value in _ros_options(arguments):
        sections = [section for section, _ in _read(value)] if option == "--params-file" else []
        if sections and not any(_fits(section, full_name) for section in sections):
            names = ", ".join(sorted(f"/{'/'.join(section)}" for section in sections))
            sentences.append(
                f"parameter file {value} sets nothing for {full_name}: it is for {names}; "
                f"name a section {full_name}, or /** for every node"
            )
    return sentences


def _read(file: str) -> Iterator[tuple[tuple[str, ...], yaml.Node]]:
    """Name, as its parts, and parameters of each section of a file, with all that rcl takes.

    These are launch's tags, several documents and a section that comes twice, so no tree of values is made of it.
    """
    for document in yaml.compose_all(Path(file).read_text("utf-8"), yaml.BaseLoader):
        yield from _sections(document)


def _ros_options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Option and value of what stands between `--ros-args` and `--`, or the end."""
    is_ros, before = False, ""
    for argument in arguments:
        if is_ros and before.startswith("-"):
            yield before, argument
        is_ros = argument == "--ros-args" or (is_ros and argument != "--")
        before = argument


def _sections(tree: yaml.Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], yaml.Node]]:
    for key, value in _items(tree):
        if key == "ros__parameters":
            yield path, value
        else:
            yield from _sections(value, (*path, *key.strip("/").split("/")))


def _items(tree: yaml.Node) -> list[tuple[str, yaml.Node]]:
    return [(str(key.value), value) for key, value in tree.value] if isinstance(tree, yaml.MappingNode) else []


def _fits(section: Sequence[str], full_name: str) -> bool:
    """Whether a section is for a node; `*` stands for one part of a name, `**` for any number of them."""
    patterns = {"*": r"/\w+", "**": r"(/\w+)*"}
    return re.fullmatch("".join(patterns.get(part, f"/{part}") for part in section), full_name) is not None


def _flat(parameters: yaml.Node, start: str = "") -> Iterator[str]:
    """Full names of parameters, those of groups with dots."""
    for key, value in _items(parameters):
        if isinstance(value, yaml.MappingNode):
            yield from _flat(value, f"{start}{key}.")
        else:
            yield f"{start}{key}"
