"""A node that hangs somewhere says so in time, and ends in time, whatever it is that hangs."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from costless_node import HANGING
from diagnostic_msgs.msg import DiagnosticStatus
from graph import Graph, NodeProcess, PerceptionClient, start_costless, wait_for
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image


def running(graph: Graph, name: str, hangs_in: str, **parameters: Any) -> tuple[PerceptionClient, NodeProcess]:
    client = PerceptionClient(graph, name)
    process = start_costless(graph, name, model=f"hangs in {hangs_in}", **parameters)
    if hangs_in not in ("loading", "importing"):
        client.wait_for_state("active")
    return client, process


def hang(graph: Graph, client: PerceptionClient, process: NodeProcess) -> float:
    """Let the forward pass hang; returns when."""
    masks = graph.collect(Image, f"{client.prefix}/mask")

    def camera(value: int = 0) -> None:
        client.send(client.image(value))
        time.sleep(0.05)

    wait_for(lambda: camera() or len(masks) > 9, "masks")
    wait_for(lambda: camera(HANGING) or "now hanging: forward" in process.output, "a forward pass that hangs")
    return time.monotonic()


def test_a_forward_pass_that_never_returns_is_an_error_in_three_seconds_that_names_it(graph: Graph) -> None:
    parameters = {"diagnostics.period_s": 0.5, "diagnostics.hold_s": 4.0, "diagnostics.min_rate_hz": 5.0}
    client, process = running(graph, "hung", "forward", **parameters)
    began_s = hang(graph, client, process)
    stop = threading.Event()

    def camera() -> None:
        while not stop.wait(0.1):
            client.send(client.image())

    sending = threading.Thread(target=camera)
    sending.start()
    try:
        for what in ("node", "camera"):
            status = client.wait_for_message(what, "the frame path hangs")
            assert status.level == DiagnosticStatus.ERROR
            found = re.search(r"for (\S+) s in stage 'segment', there in 'forward' for (\S+) s", status.message)
            assert found, status.message
            assert "lower the camera's rate" not in status.message
        assert time.monotonic() - began_s < 3.5  # with the way over DDS, beside other tests
        assert float(found[1]) < 3.0
        values = wait_for(
            lambda: (now := client.values("camera")).get("Mask rate (Hz)") == "0.00" and now, "a rate of 0"
        )
        assert float(values["Image rate (Hz)"]) > 3.0
        status = client.status("camera")
        assert status is not None
        assert "the frame path hangs" in status.message  # for as long as it lasts
    finally:
        stop.set()
        sending.join()
    assert process.stop() == 130, process.output


@pytest.mark.parametrize(
    ("where", "number", "named"),
    [
        ("forward", signal.SIGTERM, "there in 'forward'"),
        ("a change", signal.SIGINT, "semla-changes"),
        ("stopping", signal.SIGTERM, "in stop"),  # as where the adaptation thread does not end
        ("loading", signal.SIGINT, "loading model"),
    ],
)
def test_a_signal_ends_the_process_in_five_seconds_whatever_hangs(
    graph: Graph, where: str, number: signal.Signals, named: str
) -> None:
    client, process = running(graph, f"end_in_{where.replace(' ', '_')}", where)
    if where == "forward":
        hang(graph, client, process)
        client.wait_for_message("node", "the frame path hangs")
    elif where == "a change":
        parameter = Parameter("classes", value=["a"]).to_parameter_msg()
        service = f"{client.prefix}/set_parameters_atomically"
        caller = graph.node.create_client(SetParametersAtomically, service)
        assert caller.wait_for_service(60.0)
        time.sleep(0.2)
        caller.call_async(SetParametersAtomically.Request(parameters=[parameter]))
    if where != "stopping":
        wait_for(lambda: f"now hanging: {where}" in process.output, f"{where} that hangs")
    began_s = time.monotonic()
    assert process.stop(number) == 128 + number, process.output
    assert time.monotonic() - began_s < 5.0
    assert f"not ended 4 s after {number.name}" in process.output
    assert named in process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("making_s", "model", "named"),
    [
        (1.0, "any", ""),
        (1.0, "hangs in loading", "loading model"),
        (60.0, "any", "the node is being made"),
        (60.0, "hangs in loading", "the node is being made"),
    ],
)
def test_a_signal_while_the_node_is_made_ends_the_process_in_five_seconds(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, making_s: float, model: str, named: str
) -> None:
    monkeypatch.setitem(graph.environment, "TEST_MAKING_TAKES_S", str(making_s))
    process = start_costless(graph, "being_made", model=model)
    wait_for(lambda: "now hanging: making" in process.output, "a node that is being made")
    began_s = time.monotonic()
    assert process.stop(number) == (128 + number if named else 0), process.output
    assert time.monotonic() - began_s < 5.0
    assert named in process.output
    assert "Traceback" not in process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_while_modules_of_the_model_are_imported_ends_the_process_without_a_word(
    graph: Graph, number: signal.Signals
) -> None:
    process = running(graph, f"importing_{number.name.lower()}", "importing")[1]
    wait_for(lambda: "now hanging: importing" in process.output, "an import that hangs")
    said = process.output
    began_s = time.monotonic()
    assert process.stop(number) == 128 + number, process.output
    assert time.monotonic() - began_s < 2.0
    assert process.output == said


def test_a_second_signal_ends_a_process_that_hangs_at_once(graph: Graph) -> None:
    client, process = running(graph, "twice", "forward")
    hang(graph, client, process)
    process.send(signal.SIGTERM)
    time.sleep(1.0)
    assert process.is_alive
    began_s = time.monotonic()
    assert process.stop(signal.SIGINT) == 128 + signal.SIGTERM, process.output
    assert time.monotonic() - began_s < 1.5


def test_the_watchdog_ends_the_process_with_a_status_of_its_own_and_systemd_is_told(
    graph: Graph, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        heard: list[str] = []

        def listen() -> list[str]:
            try:
                while True:
                    heard.append(systemd.recv(100).decode())
            except BlockingIOError:
                return heard

        graph.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            client, process = running(graph, "watched", "forward", watchdog_s=4.0)
            healthy = running(graph, "healthy", "nothing", watchdog_s=4.0)[1]
        finally:
            del graph.environment["NOTIFY_SOCKET"]
        wait_for(lambda: listen().count("READY=1") == 2, "two nodes that are ready")
        wait_for(lambda: listen().count("WATCHDOG=1") > 4, "a sign of life of nodes that have nothing to do")
        assert healthy.stop() == 0, healthy.output
        assert "STOPPING=1" in listen()
        hang(graph, client, process)
        client.wait_for_message("node", "the frame path hangs")
        listen()
        heard.clear()
        wait_for(lambda: not process.is_alive, "the end of the process")
        assert process.stop() == 70, process.output
        assert listen() == []  # no sign of life while it hangs
    assert "watchdog_s (4)" in process.output
    assert "semla-frames" in process.output
