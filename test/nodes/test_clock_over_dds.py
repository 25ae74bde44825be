"""Whatever the clock does, masks, reports and the library watch go on; ages go by it, and say where they cannot."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from graph import RELIABLE, Graph, NodeProcess, PerceptionClient, start_costless, wait_for
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from semla_ros.cli import main
from semla_ros.nodes.messages import to_stamp


@contextmanager
def camera(client: PerceptionClient) -> Iterator[None]:
    """A camera at 20 Hz."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.05):
            client.send(client.image())

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def message(client: PerceptionClient, name: str) -> str:
    status = client.status(name)
    return "" if status is None else str(status.message)


def assert_all_goes_on(graph: Graph, client: PerceptionClient, process: NodeProcess, library: Path) -> None:
    """Masks, reports and the library watch."""
    masks = graph.collect(Image, f"{client.prefix}/mask")
    reports = graph.collect(DiagnosticArray, "/diagnostics")
    wait_for(lambda: len(masks) > 5 and len(reports) > 5, "masks and reports")
    assert all(report.header.stamp.sec > 0 for report in reports)
    refused = "library '/nowhere' is no folder"  # what the model that costs nothing says of whatever is new
    before = process.output.count(refused)
    (library / f"{time.monotonic_ns()}").touch()
    wait_for(lambda: process.output.count(refused) > before, "a look at the library")


def test_a_clock_that_is_silent_starts_stands_and_jumps_back_keeps_nothing_from_going_on(
    graph: Graph, tmp_path: Path
) -> None:
    client = PerceptionClient(graph, "clocks")
    process = start_costless(graph, "clocks", use_sim_time=True, library=tmp_path, watch_library_s=0.1)
    client.wait_for_state("active")
    with camera(client):
        status = client.wait_for_message("node", "nothing is heard on /clock")
        assert status.level == DiagnosticStatus.WARN
        wait_for(lambda: client.values("camera").get("Frame age") == "unknown", "an age that is unknown")
        assert_all_goes_on(graph, client, process, tmp_path)
        assert "carry no stamp" not in message(client, "camera")

        clock = graph.node.create_publisher(Clock, "/clock", RELIABLE)
        now_ns = client._stamp_ns + 3_700_000_000_000

        def tick() -> None:
            nonlocal now_ns
            now_ns += 50_000_000
            clock.publish(Clock(clock=to_stamp(now_ns)))
            time.sleep(0.05)

        wait_for(lambda: tick() or "Frame age p50 (ms)" in client.values("camera"), "an age")
        wait_for(lambda: tick() or "/clock" not in message(client, "node"), "a clock that goes")
        client.wait_for_message("node", "/clock stands still for")  # a recording that pauses
        assert_all_goes_on(graph, client, process, tmp_path)

        clock.publish(Clock(clock=Time(sec=-5)))  # rclpy raises at such a time
        client.wait_for_message("node", "a callback failed")
        assert_all_goes_on(graph, client, process, tmp_path)

        now_ns -= 3_600_000_000_000
        wait_for(lambda: tick() or "/clock" not in message(client, "node"), "a clock that goes again")
        assert_all_goes_on(graph, client, process, tmp_path)
        assert float(client.values("camera")["Mask rate (Hz)"]) > 1.0
    assert process.stop() == 0, process.output


def test_the_status_command_hears_a_node_whose_clock_is_silent(
    graph: Graph, capsys: pytest.CaptureFixture[str]
) -> None:
    client = PerceptionClient(graph, "status_without_clock")
    process = start_costless(graph, "status_without_clock", use_sim_time=True)
    client.wait_for_message("node", "nothing is heard on /clock")
    assert main(["status", "--timeout", "30"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "use_sim_time is set" in told
    assert "ROS_DOMAIN_ID is the same" not in told
    assert process.stop() == 0, process.output
