"""A day on the vehicle: the node as launch files start it, and what operators do to it, over DDS."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from graph import RELIABLE, SEGMENT, Graph, NodeProcess, PerceptionClient, wait_for
from launcher import LAUNCHERS, Launcher
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from semla_ros.nodes.messages import to_stamp
from semla_ros.serving.dds_profile import VARIABLES

PROGRAM = str(Path(__file__).parents[1] / "helpers" / "costless_node.py")
OWN_MIB = 8
OWN_PROFILE = f"""<profiles xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles">
  <transport_descriptors>
    <transport_descriptor>
      <transport_id>vehicle</transport_id><type>SHM</type><segment_size>{OWN_MIB << 20}</segment_size>
    </transport_descriptor>
  </transport_descriptors>
  <participant profile_name="vehicle" is_default_profile="true">
    <rtps>
      <userTransports><transport_id>vehicle</transport_id></userTransports>
      <useBuiltinTransports>false</useBuiltinTransports>
    </rtps>
  </participant>
</profiles>
"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    graph = Graph(tmp_path_factory.mktemp("operation"))
    yield graph
    graph.close()


@pytest.fixture(params=LAUNCHERS)
def launcher(graph: Graph, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Launcher]:
    launcher = Launcher(request.param, tmp_path, graph.environment, {"perception": PROGRAM})
    yield launcher
    for process in launcher.processes:
        process.stop()


def params_file(folder: Path, **sections: dict[str, Any]) -> Path:
    """A parameter file with a section for the node in each namespace."""
    path = folder / "params.yaml"
    tree = {}
    for namespace, parameters in sections.items():
        reports = {"diagnostics.period_s": 0.1, "diagnostics.hardware_id": namespace}
        tree[f"/{namespace}/perception"] = {"ros__parameters": {**reports, **parameters}}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def pids(process: NodeProcess) -> list[int]:
    """Of the nodes that a launch has started by now."""
    return [int(pid) for pid in re.findall(r"perception-1\]: process started with pid \[(\d+)\]", process.output)]


def profile_of(process: NodeProcess) -> str:
    """The Fast DDS profile that the node of a launch has."""
    (profile,) = {psutil.Process(pids(process)[0]).environ().get(name, "") for name in VARIABLES}
    return profile


def segments_mib(process: NodeProcess) -> set[int]:
    """Sizes of the shared memory that the node of a launch has, its own and that of others."""
    paths = {item.path for item in psutil.Process(pids(process)[0]).memory_maps() if re.match(SEGMENT, item.path)}
    return {os.path.getsize(path) >> 20 for path in paths}


def test_two_robots_on_one_machine_with_a_profile_of_the_vehicle(
    graph: Graph, launcher: Launcher, tmp_path: Path
) -> None:
    others = {"top_k": 4, "cameras": ["front=/robot2/cam/image_raw"]}
    file = params_file(tmp_path, robot1={"top_k": 2, "diagnostics.stale_after_s": 60.0}, robot2=others)
    profile = tmp_path / "vehicle.xml"
    profile.write_text(OWN_PROFILE, encoding="utf-8")
    own = {"FASTRTPS_DEFAULT_PROFILES_FILE": str(profile), "FASTDDS_DEFAULT_PROFILES_FILE": str(profile)}
    robots = [PerceptionClient(graph, name) for name in ("robot1", "robot2")]
    heard: dict[str, list[bytes]] = {}

    def hear(message: DiagnosticArray) -> None:
        for status in message.status:
            heard.setdefault(status.name, []).append(status.level)

    graph.node.create_subscription(DiagnosticArray, "/diagnostics", hear, RELIABLE)
    started = [
        launcher.start("perception", f"namespace:={robot.namespace}", f"params_file:={file}", **own) for robot in robots
    ]
    for robot, top_k in zip(robots, (2, 4), strict=True):
        robot.wait_for_state("active")
        assert robot.parameter("top_k") == top_k
    for process in started:
        assert profile_of(process) == str(profile)
        assert OWN_MIB in segments_mib(process)
    masks = graph.collect(Image, "/robot1/perception/mask")
    first, second = robots
    wait_for(lambda: first.send(first.image()) and masks, "a mask of the first robot")
    wait_for(lambda: first.status("camera").level != DiagnosticStatus.STALE, "a report of the mask")
    second.wait_for_message("camera front", "no image on /robot2/cam/image_raw")
    cameras = ("/robot1/perception: camera", "/robot2/perception: camera front")
    heard.clear()
    wait_for(lambda: all(len(heard.get(name, ())) > 9 for name in cameras), "ten reports of both")
    assert DiagnosticStatus.STALE not in heard[cameras[0]]
    assert set(heard[cameras[1]]) == {DiagnosticStatus.STALE}
    assert all(name.startswith(("/robot1/perception: ", "/robot2/perception: ")) for name in heard)
    camera = graph.node.create_publisher(Image, "/robot2/cam/image_raw", RELIABLE)
    masks = graph.collect(Image, "/robot2/perception/front/mask")
    wait_for(lambda: camera.publish(second.image()) or masks, "a mask of the second robot's named topic")
    infos = graph.node.get_subscriptions_info_by_topic("/robot2/cam/camera_info")
    assert [item.node_namespace for item in infos] == ["/robot2"]
    assert [process.stop() for process in started] == [0, 0]


def test_life_cycle_by_hand_and_what_survives_a_cleanup(graph: Graph, launcher: Launcher, tmp_path: Path) -> None:
    client = PerceptionClient(graph, "by_hand")
    file = params_file(tmp_path, by_hand={"autostart": False, "release_on_deactivate": True})
    nothing_said = dict.fromkeys(VARIABLES, "")
    process = launcher.start("perception", "namespace:=by_hand", f"params_file:={file}", **nothing_said)
    client.wait_for_state("unconfigured")
    assert bool(profile_of(process)) != ("--shm-size" in process.output)
    assert OWN_MIB not in segments_mib(process)
    masks = graph.collect(Image, f"{client.prefix}/mask")
    for name, state in (("configure", "inactive"), ("activate", "active")):
        assert client.transition(name)
        assert client.state() == state
    wait_for(lambda: client.send(client.image()) and masks, "a mask")
    assert client.set_parameters(top_k=7).successful
    assert client.switch("freeze_adaptation", True).success
    assert client.switch("enable", False).success
    told = client.wait_for_message("node", "switched off: call the enable service with true to go on")
    assert told.level == DiagnosticStatus.WARN
    assert client.wait_for_message("camera", "switched off").level != DiagnosticStatus.OK
    assert client.transition("deactivate")
    assert client.transition("activate")
    wait_for(lambda: client.values("adaptation").get("Frozen") == "yes", "adaptation that is frozen still")
    assert client.values("node")["Enabled"] == "no"
    for name in ("deactivate", "cleanup", "configure", "activate"):
        assert client.transition(name)
    wait_for(lambda: client.values("node")["Enabled"] == "yes", "an enabled node")
    wait_for(lambda: client.values("adaptation").get("Frozen") == "no", "adaptation that follows the scene")
    assert client.parameter("top_k") == 7
    masks.clear()
    wait_for(lambda: client.send(client.image()) and masks, "a mask after all that")
    assert process.stop() == 0, process.output


def test_a_dump_starts_the_node_again_and_is_loaded_into_a_running_one(
    graph: Graph, launcher: Launcher, tmp_path: Path
) -> None:
    client = PerceptionClient(graph, "dump")
    file = params_file(tmp_path, dump={"steady_s": 3.0})
    process = launcher.start("perception", "namespace:=dump", f"params_file:={file}")
    client.wait_for_state("active")
    assert client.set_parameters(classes=["cat", "dog"], top_k=4).successful
    dump = client.dump()
    assert process.stop() == 0, process.output

    file.write_text(yaml.safe_dump({"/dump/perception": {"ros__parameters": dump}}), encoding="utf-8")
    arguments = ("image_topic:=/dump/other/image_raw", "image_transport:=compressed")
    process = launcher.start("perception", "namespace:=dump", f"params_file:={file}", *arguments)
    topic = "/dump/other/image_raw/compressed"
    wait_for(lambda: graph.node.get_subscriptions_info_by_topic(topic), "a subscription to the other topic")
    again = client.dump()
    assert {name for name in dump if dump[name] != again.get(name, dump[name])} == {"image_transport"}
    lost = {name.split(".")[1] for name in dump.keys() - again.keys()}
    assert lost == {"/dump/image", "/dump/camera_info"}
    assert client.set_parameters(classes=[], top_k=9).successful
    request = SetParameters.Request(
        parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in dump.items()]
    )
    results = graph.call(SetParameters, f"{client.prefix}/set_parameters", request).results
    reasons = {item.name: result.reason for item, result in zip(request.parameters, results, strict=True)}
    is_live = {item.name: result.successful for item, result in zip(request.parameters, results, strict=True)}
    assert is_live["classes"]
    assert is_live["top_k"]
    refused = [reasons[name] for name, done in is_live.items() if not done]
    assert [reason for reason in refused if not re.search("read-only|no topic of this node", reason)] == []
    assert (client.parameter("classes"), client.parameter("top_k")) == (["cat", "dog"], 4)
    assert client.state() == "active"
    assert process.stop() == 0, process.output


def test_a_killed_node_comes_back(graph: Graph, launcher: Launcher, tmp_path: Path) -> None:
    client = PerceptionClient(graph, "killed")
    file = params_file(tmp_path, killed={})
    process = launcher.start("perception", "namespace:=killed", f"params_file:={file}", "use_respawn:=true")
    client.wait_for_state("active")
    masks = graph.collect(Image, f"{client.prefix}/mask")
    wait_for(lambda: client.send(client.image()) and masks, "a mask")
    os.kill(pids(process)[0], signal.SIGKILL)
    wait_for(lambda: len(pids(process)) == 2, "a second process")
    masks.clear()
    wait_for(lambda: client._image.publish(client.image()) or time.sleep(0.1) or masks, "a mask of the second process")
    assert process.stop() == 0, process.output
    assert not psutil.pid_exists(pids(process)[1])


def test_simulated_time_may_pause_and_start_over(graph: Graph, launcher: Launcher, tmp_path: Path) -> None:
    client = PerceptionClient(graph, "simulated")
    file = params_file(tmp_path, simulated={"use_sim_time": True})
    process = launcher.start("perception", "namespace:=simulated", f"params_file:={file}")
    clock = graph.node.create_publisher(Clock, "/clock", RELIABLE)
    masks = graph.collect(Image, f"{client.prefix}/mask")
    client.wait_for_message("node", "nothing is heard on /clock")
    now_ns = 100_000_000_000

    def play(moves: bool = True) -> None:
        nonlocal now_ns
        now_ns += 100_000_000 if moves else 0
        if moves:
            clock.publish(Clock(clock=to_stamp(now_ns)))
        image = client.image()
        image.header.stamp = to_stamp(now_ns)
        client._image.publish(image)
        time.sleep(0.05)

    for start_ns in (100_000_000_000, 20_000_000_000, 20_000_000_000):  # twice from the start again
        now_ns = start_ns
        masks.clear()
        wait_for(lambda: play() or len(masks) > 3, f"masks from {start_ns} on")
        wait_for(lambda: play() or "/clock" not in client.status("node").message, "a clock that goes")
        assert masks[-1].header.stamp.sec - start_ns // 10**9 < 60
        wait_for(lambda: play(False) or "/clock stands still" in client.status("node").message, "a clock that stands")
        masks.clear()
        wait_for(lambda: play(False) or masks, "masks while the clock stands")
    assert client.state() == "active"
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output, process.output
