"""`semla status` reads a running node, and says so when there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from graph import Graph, PerceptionClient, wait_for
from rich.console import Console

from semla_ros.cli import main
from semla_ros.commands.status import as_table, folded
from semla_ros.results import Level, Status


def test_a_running_node_is_shown_with_its_level_and_values(
    graph: Graph, perception: PerceptionClient, capsys: pytest.CaptureFixture[str]
) -> None:

    def is_answered() -> bool:
        perception.send(perception.image())  # best effort: one alone may be lost
        return int(perception.values("camera").get("Masks published", "0")) > 0

    wait_for(is_answered, "a mask")

    def told(node: str) -> dict[str, Any]:
        """By part; empty where only others of that name were heard in time."""
        assert main(["status", "--json", "--timeout", "10", "--node", node]) in (0, 1)
        statuses = json.loads(capsys.readouterr().out).items()
        mine = "/test_status_command/perception: "
        return {name.removeprefix(mine): report for name, report in statuses if name.startswith(mine)}

    for node in ("/test_status_command/perception", "test_status_command/perception", "perception"):
        parts = wait_for(lambda node=node: told(node), f"{node} is heard")
        assert parts["node"]["values"]["Lifecycle state"] == "active"
        assert parts["adaptation"]["level"] == "WARN"  # the costless library has a broken adapter
    assert main(["status", "--node", "/test_status_command/perception", "--timeout", "10"]) == 1


@pytest.mark.parametrize("node", ["/perception", "/test_status_command", "/robot2/perception", "command/perception"])
def test_a_node_of_another_name_is_not_taken_for_the_one_asked_for(
    perception: PerceptionClient, capsys: pytest.CaptureFixture[str], node: str
) -> None:
    perception.wait_for_state("active")
    wait_for(lambda: names_told(node, capsys), "the node that is there instead")


def names_told(node: str, capsys: pytest.CaptureFixture[str]) -> bool:
    assert main(["status", "--node", node, "--timeout", "0.5"]) == 2
    told = capsys.readouterr().err
    assert f"node '{node}' was not heard" in told
    return "--node may be /test_status_command/perception; check" in told


def test_silence_is_one_line_and_status_2(graph: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--node", "nobody", "--timeout", "0.3"]) == 2
    assert "node 'nobody' was not heard on /diagnostics within 0.3 s" in capsys.readouterr().err


def test_latencies_fold_into_one_row_and_empty_values_are_left_out() -> None:
    values = {"Latency total p50 (ms)": "1.0", "Latency total p95 (ms)": "2.0", "Latency total max (ms)": "3.0"}
    assert folded({**values, "Last error": "", "Generation": "4"}) == {
        "Latency total (ms)": "p50 1.0   p95 2.0   max 3.0", "Generation": "4",
    }  # fmt: skip


def test_the_table_shows_every_message() -> None:
    console = Console(width=100, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(as_table({
            "/perception: camera": Status(name="/perception: camera", level=Level.STALE, message="no image", values={}),
        }))  # fmt: skip
    assert "STALE" in captured.get()
    assert "no image" in captured.get()
