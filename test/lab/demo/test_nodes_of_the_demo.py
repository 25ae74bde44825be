import sys

import pytest

from semla_ros.lab.demo import nodes
from semla_ros.lab.demo.settings import DemoSettings


class RecordedChildren:
    def __init__(self) -> None:
        self.started: dict[str, list[str]] = {}

    def start(self, name, command, environment, log) -> None:
        self.started[name] = list(command)


@pytest.fixture
def started(monkeypatch, tmp_path):
    def start(settings: DemoSettings, *, with_launch: bool) -> dict[str, list[str]]:
        monkeypatch.setattr(nodes, "has_ros2_launch", lambda: with_launch)
        children = RecordedChildren()
        nodes.start_nodes(children, settings, {})
        return children.started

    return start


def test_without_ros2_launch_each_node_is_a_process_with_its_parameters(started) -> None:
    commands = started(DemoSettings(seed=3, rate_hz=4, model="other"), with_launch=False)
    assert list(commands) == ["perception node", "scene_camera node"]
    perception, camera = commands.values()
    assert perception[:4] == [sys.executable, "-m", "semla_ros.nodes.perception_node", "--ros-args"]
    assert perception[4:6] == ["-p", "model:=other"]
    assert any(item.startswith("threads:=") for item in perception)
    assert {"seed:=3", "rate_hz:=4.000", "width:=256", "duration_s:=90.0"} <= set(camera)


def test_with_ros2_launch_the_launch_file_gets_the_same_values(started) -> None:
    (command,) = started(DemoSettings(seed=3, rate_hz=4), with_launch=True).values()
    assert command[:2] == ["ros2", "launch"]
    assert command[2].endswith("demo.launch.py")
    assert {"seed:=3", "rate_hz:=4.000", "model:=semla-tiny"} <= set(command[3:])


def test_a_short_drive_lets_the_gate_follow_it(started) -> None:
    perception, camera = started(DemoSettings(is_fast=True, rate_hz=4), with_launch=False).values()
    assert {"retrieval_rate_hz:=4.000", "min_dwell_s:=0.1"} <= set(perception)
    assert "duration_s:=18.0" in camera
