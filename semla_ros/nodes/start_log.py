"""What the node says in the log once it is active: what runs where, on which topics, and where to look next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile

from semla_ros.errors import counted
from semla_ros.serving.model_bank import ModelBank, device_of
from semla_ros.serving.parameters import SPECS, Settings


def start_lines(node: Node, settings: Settings, bank: ModelBank, subscriptions: Iterable[Any]) -> Iterator[str]:
    """A line for each thing that somebody asks first.

    Args:
        node: The node.
        settings: Its parameters in use.
        bank: Its models, loaded.
        subscriptions: To images and calibrations.
    """
    pipeline, name = bank.any, node.get_fully_qualified_name()
    engine, status = pipeline.engine, pipeline.status()
    device = device_of(pipeline) or settings.pipeline.inference.device
    how = f"on {device} by {engine.name} {getattr(engine, 'precision', '')}"
    yield f"model {settings.pipeline.model}, {counted(len(pipeline.class_names), 'class', 'classes')}, {how}"
    frozen, adapters = ", frozen" if status.is_frozen else "", counted(status.library_size, "adapter")
    yield f"library {bank.library_folder}, {adapters}; mix {pipeline.generation.mix}{frozen}"
    for item in subscriptions:
        yield f"listens to {item.topic_name} ({item.msg_type.__name__}, {in_words(item.qos_profile)})"
    values = settings.values
    changed = [f"{key}={values[key]!r}" for key in sorted(settings.explicit) if values[key] != SPECS[key].default]
    yield f"parameters unlike their defaults: {', '.join(changed) or 'none'}"
    yield f"what it is doing: semla status --node {name}"


def in_words(profile: QoSProfile) -> str:
    """Reliability and depth, such as "best effort, last 1"."""
    return f"{profile.reliability.name.lower().replace('_', ' ')}, last {profile.depth}"
