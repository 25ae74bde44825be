"""What the node says in its log: at the start, where it cannot start, and where it is asked what it is."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest
from graph import Graph, PerceptionClient, start_costless, wait_for


def test_an_active_node_says_what_runs_where_and_where_to_look(graph: Graph) -> None:
    client = PerceptionClient(graph, "told")
    remappings, qos = (
        {"image": "/told/camera/image_raw"},
        {"qos_overrides./told/camera/image_raw.subscription.depth": 3},
    )
    process = start_costless(graph, "told", remappings, top_k=3, start_frozen=True, **qos)
    client.wait_for_state("active")
    lines = wait_for(lambda: re.search(r"active in \d+\.\d s\n((?:  .+\n)+)", process.output), "the start log")[
        1
    ].splitlines()
    assert [line.strip() for line in lines] == [
        "model semla-tiny, 3 classes, on auto by costless fp32",
        "library None, 2 adapters; mix base model 100.0%, frozen",
        "listens to /told/camera/image_raw (Image, best effort, last 3)",
        "listens to /told/camera/camera_info (CameraInfo, best effort, last 1)",
        "parameters unlike their defaults: diagnostics.hardware_id='told', diagnostics.period_s=0.1, "
        "start_frozen=True, top_k=3",
        "what it is doing: semla status --node /told/perception",
    ]  # fmt: skip
    assert process.stop() == 0, process.output


def test_a_node_that_cannot_start_says_what_to_do_next(graph: Graph) -> None:
    process = start_costless(graph, "lost", model="missing")
    words = "model 'missing' was not found in /nowhere; then: ros2 lifecycle set /lost/perception configure; "
    words += "where a parameter is wrong that is not live, start it again"
    wait_for(lambda: words in process.output, "the next step")
    assert process.stop() == 0, process.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--params-file", "/nowhere.yaml"), "'--params-file /nowhere.yaml'. Error: Error opening YAML file"),
        (("-p", "use_sim_time:=1"), "'use_sim_time' to '1' of type 'INTEGER', expecting type 'BOOL'"),
        (("-r", "__node:=my-node"), "Couldn't parse remap rule: '-r __node:=my-node'"),
        (("-r", "__ns:=/robot2/"), "invalid node namespace"),
        (("--log-level", "chatty"), "'--log-level chatty'. Error: Argument does not use a valid severity level"),
        (("--hepl",), "no arguments of ROS: ['--hepl']"),
    ],
)
@pytest.mark.parametrize("name", ["perception", "scene_camera"])
def test_what_ros_refuses_of_a_command_line_ends_with_one_line_and_status_2(
    graph: Graph, name: str, arguments: tuple[str, ...], words: str
) -> None:
    command = [sys.executable, "-c", f"import sys; from semla_ros import cli; sys.exit(cli.{name}())", "--ros-args"]
    answer = subprocess.run(
        [*command, *arguments], env=graph.environment, capture_output=True, text=True, check=False, timeout=90
    )
    assert answer.returncode == 2, answer.stderr
    line = answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.stderr
    assert line.startswith(f"{name}: ")
    assert words in line
    assert ".c:" not in line


def test_help_explains_and_starts_no_node() -> None:
    command = [sys.executable, "-m", "semla_ros.nodes.perception", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "usage: perception" in answer.stdout
    assert "--ros-args -r image:=" in answer.stdout
    assert re.search(r"/config/perception.yaml$", answer.stdout, re.MULTILINE)
    assert not answer.stderr


def test_signals_that_come_again_and_again_give_the_status_of_the_first_one(graph: Graph) -> None:
    client = PerceptionClient(graph, "impatient")
    process = start_costless(graph, "impatient")
    client.wait_for_state("active")
    while process.is_alive:
        process.send(signal.SIGINT)
        time.sleep(0.02)
    assert process.stop() in (0, 128 + signal.SIGINT), process.output  # all had ended, or it was ended at once
