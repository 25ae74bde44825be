"""The node's end of a bond: what it says and when, without the package whose messages it speaks in."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from std_msgs.msg import Header

from semla_ros.nodes.perception_node import bond_of

MODULE = "semla_ros.nodes.bond"


@dataclass
class Status:
    """The fields of bond/msg/Status."""

    header: Header = field(default_factory=Header)
    id: str = ""
    instance_id: str = ""
    active: bool = False
    heartbeat_timeout: float = 0.0
    heartbeat_period: float = 0.0


class Node:
    """Stands for rclpy's."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.sent: list[Status] = []
        self.listeners = 1
        self.get_name = lambda: "perception"
        self.get_clock = lambda: SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: Header().stamp))

    def create_publisher(self, kind: type, topic: str, *_: Any, **__: Any) -> Any:
        self.topics.append(topic)
        return SimpleNamespace(publish=self.sent.append, get_subscription_count=lambda: self.listeners)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    package, messages = ModuleType("bond"), ModuleType("bond.msg")
    messages.Status = Status  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bond", package)
    monkeypatch.setitem(sys.modules, "bond.msg", messages)
    return Node()


def test_an_active_node_beats_under_its_name_and_takes_leave_once(node: Node) -> None:
    bond = bond_of(node)
    assert node.topics == ["bond"]
    bond.beat()
    bond.stop()
    assert node.sent == []  # not active
    bond.start()
    bond.beat()
    bond.beat()
    bond.stop()
    bond.stop()
    bond.beat()
    assert [status.active for status in node.sent] == [True, True, False]
    assert {(status.id, status.instance_id) for status in node.sent} == {("perception", node.sent[0].instance_id)}
    assert node.sent[0].heartbeat_period * 4 < node.sent[0].heartbeat_timeout


def test_each_activation_is_a_new_life(node: Node) -> None:
    bond = bond_of(node)
    for _ in range(2):
        bond.start()
        bond.beat()
        bond.stop()
    assert len({status.instance_id for status in node.sent}) == 2
    assert all(status.instance_id for status in node.sent)


def test_nobody_is_told_who_does_not_listen(node: Node) -> None:
    bond = bond_of(node)
    node.listeners = 0
    bond.start()
    bond.beat()
    assert node.sent == []


def test_without_the_package_nothing_is_said_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bond", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    node = Node()
    assert bond_of(node) is None
    assert node.topics == []
    assert MODULE not in sys.modules
