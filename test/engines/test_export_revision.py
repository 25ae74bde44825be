"""Graphs and plans on disk are found by the revision of the export: what is exported must not change without it."""

import hashlib
from collections.abc import Collection
from importlib.metadata import version

import onnx
import pytest
import torch

from semla_ros.engines.export import EXPORT_REVISION, exported

# Revision, torch, exporter -> digest of what they export. With another version of either, a new line stands beside.
RECORDED = {
    (4, "2.13.0", "0.7.2"): "473e0d512f2216f4",
    (5, "2.13.0", "0.7.2"): "333a329ce711a385",
}


def structure(graph: onnx.GraphProto, weights: Collection[str]) -> str:
    """Operators with attributes, constants and wiring; inputs; names and shapes of the weights without their values."""
    numbers: dict[str, int] = {}  # values by their first appearance: the exporter's names for them may change

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    lines = [f"input {item.name} {number(item.name)}" for item in graph.input]
    for item in graph.initializer:
        values = "" if item.name in weights else onnx.numpy_helper.to_array(item).tolist()
        lines.append(f"value {list(item.dims)} {number(item.name)} {item.name if not values else ''} {values}")
    for node in graph.node:
        attributes = sorted(f"{item.name}={onnx.helper.get_attribute_value(item)}" for item in node.attribute)
        wiring = f"{[number(name) for name in node.input]} {[number(name) for name in node.output]}"
        lines.append(f"{node.op_type} {attributes} {wiring}")
    return "\n".join(lines)


def test_the_revision_is_raised_when_something_else_is_exported(world, graphs) -> None:
    exporter = (EXPORT_REVISION, torch.__version__.partition("+")[0], version("onnxscript"))
    if exporter[1:] not in {known[1:] for known in RECORDED}:
        pytest.skip(f"no export of torch {exporter[1]} with onnxscript {exporter[2]} is on record; add it")
    digest = hashlib.sha256()
    for component in sorted(world.components, key=lambda item: item.name):
        weights = [name for name, _ in [*component.module.named_parameters(), *component.module.named_buffers()]]
        digest.update(structure(onnx.load(exported(component, graphs)).graph, weights).encode())
    assert RECORDED.get(exporter) == digest.hexdigest()[:16], (
        "what is exported has changed: raise EXPORT_REVISION in semla_ros/engines/export.py and record its digest here"
    )
