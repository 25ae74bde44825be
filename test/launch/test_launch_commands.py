"""What the launch files start: by the double, and the same by the real launch where that is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import rclpy
import yaml
from launch_tables import FILES, LAUNCH, arguments
from launcher import IS_REAL_THERE, LAUNCHERS, Launcher, options_of
from rclpy.context import Context

from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.nodes.rclpy_internals import given_parameters
from semla_ros.serving.dds_profile import VARIABLES, shared_memory_problem

SHIPPED = str(LAUNCH.parent / "config" / "fastdds.xml")
VEHICLE = """
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription, SetEnvironmentVariable
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node, PushRosNamespace, SetParameter

def generate_launch_description():
    source = PythonLaunchDescriptionSource({path!r})
    include = IncludeLaunchDescription(source, launch_arguments={arguments!r}.items())
    camera = Node(package="semla_ros", executable="scene_camera", name="camera")
    return LaunchDescription([{before} include, camera])
"""


@pytest.fixture
def environment() -> dict[str, str]:
    variables = isolated_environment(free_domain())
    return {key: value for key, value in variables.items() if not key.startswith("FAST")}


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest, tmp_path: Path, environment: dict[str, str]) -> Launcher:
    return Launcher(request.param, tmp_path, environment)


def vehicle(folder: Path, *before: str, **given: str) -> Path:
    """A launch file that includes ours, with actions before it."""
    path = folder / "vehicle.launch.py"
    text = VEHICLE.format(path=str(LAUNCH / "perception.launch.py"), arguments=given, before="".join(before))
    path.write_text(text, encoding="utf-8")
    return path


def effective(record: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Full name and given parameters of a node that is started so, by rcl itself."""
    context, command = Context(), ["node"]
    for argument in record["arguments"]:
        if argument in record["files"]:
            path = folder / f"given_{len(command)}.yaml"
            path.write_text(record["files"][argument], encoding="utf-8")
            argument = str(path)
        command.append(argument)
    rclpy.init(args=command, context=context, domain_id=free_domain())
    node = rclpy.create_node("anything", context=context)
    found = node.get_fully_qualified_name(), given_parameters(node)
    node.destroy_node()
    rclpy.shutdown(context=context)
    return found


# Parameter -> as an argument, as a parameter, another value.
VALUES: dict[str, tuple[str, Any, Any]] = {
    "use_sim_time": ("false", False, True), "autostart": ("True", True, False), "model": ("7", "7", "tiny"),
    "library": ("/a/b", "/a/b", "/c"), "device": ("cuda:0", "cuda:0", "cpu"), "engine": ("onnx", "onnx", "torch"),
    "image_transport": ("compressed", "compressed", "raw"),
    "cameras": ("front=/f/image_raw, left", ["front=/f/image_raw", "left"], ["rear"]),
}  # fmt: skip


def test_every_parameter_that_is_an_argument_is_tried_here() -> None:
    named = re.search(r"^PARAMETERS = (\(.*\))$", (LAUNCH / "perception.launch.py").read_text("utf-8"), re.MULTILINE)
    assert named is not None
    assert set(VALUES) == set(yaml.safe_load(named[1].replace("(", "[").replace(")", "]")))


@pytest.mark.parametrize("section", ["/**", "/car/perception", "/**/perception", "/car/*"])
def test_an_argument_counts_before_the_file_and_that_before_what_the_vehicle_sets_for_all(
    launcher: Launcher, tmp_path: Path, section: str
) -> None:
    file = tmp_path / "params.yaml"
    others = {name: other for name, (_, _, other) in VALUES.items()}
    file.write_text(yaml.safe_dump({section: {"ros__parameters": others | {"top_k": 2}}}), encoding="utf-8")
    texts = [f"{name}:={text}" for name, (text, _, _) in VALUES.items()]
    base = (f"params_file:={file}", "namespace:=car")
    record = launcher.records("perception", *base, *texts)["perception"]
    name, found = effective(record, tmp_path)
    assert name == "/car/perception"
    assert found == {name: value for name, (_, value, _) in VALUES.items()} | {"top_k": 2}
    record = launcher.records("perception", *base)["perception"]
    assert effective(record, tmp_path)[1] == others | {"top_k": 2}
    path = vehicle(tmp_path, "SetParameter('top_k', 9), SetParameter('wheel_radius', 0.3),", params_file=str(file))
    record = launcher.records(path, "namespace:=car")["perception"]
    assert effective(record, tmp_path)[1] == others | {"top_k": 2, "wheel_radius": 0.3}


def test_what_is_not_given_sets_nothing(launcher: Launcher, tmp_path: Path) -> None:
    record = launcher.records("perception")["perception"]
    assert options_of(record) == [("--ros-args", "-r"), ("-r", "__node:=perception"), ("-r", "__ns:=/")]
    path = vehicle(tmp_path, "SetParameter('use_sim_time', True), SetParameter('autostart', False),")
    record = launcher.records(path)["perception"]
    assert effective(record, tmp_path)[1] == {"use_sim_time": True, "autostart": False}


def test_names_follow_arguments_and_the_namespaces_around(launcher: Launcher, tmp_path: Path) -> None:
    path = vehicle(tmp_path, "PushRosNamespace('robot1'),", node_name="seg", namespace="front")
    given = ("image_topic:=/cam/image_raw", "log_level:=debug", "camera_info_topic:=/cam/info", "device:=cpu")
    record = launcher.records(path, *given)["perception"]
    assert effective(record, tmp_path) == ("/robot1/front/seg", {"device": "cpu"})
    options = options_of(record)
    assert {("--log-level", "debug"), ("-r", "image:=/cam/image_raw"), ("-r", "camera_info:=/cam/info")} <= set(options)
    record = launcher.records("perception", "image_topic:=/cam/image_raw")["perception"]
    assert not any("camera_info" in value for _, value in options_of(record))


@pytest.mark.parametrize("own", [*VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS"])
def test_what_the_environment_says_of_dds_stays(launcher: Launcher, own: str) -> None:
    value = "UDPv4" if own.endswith("TRANSPORTS") else "/etc/vehicle.xml"
    for file in ("perception", "demo", "multi_camera"):
        for record in launcher.records(file, **{own: value}).values():
            assert record["environment"] == {own: value}


def test_a_profile_of_the_vehicle_stays_and_ours_is_for_our_node_alone(launcher: Launcher, tmp_path: Path) -> None:
    records = launcher.records("perception")
    is_too_large = shared_memory_problem({VARIABLES[0]: SHIPPED}) != ""
    ours = {} if is_too_large else dict.fromkeys(VARIABLES, SHIPPED)
    assert records["perception"]["environment"] == ours
    records = launcher.records(vehicle(tmp_path))
    assert records["perception"]["environment"] == ours
    assert records["scene_camera"]["environment"] == {}
    path = vehicle(tmp_path, f"SetEnvironmentVariable('{VARIABLES[0]}', '/etc/vehicle.xml'),")
    assert launcher.records(path)["perception"]["environment"] == {VARIABLES[0]: "/etc/vehicle.xml"}


def test_a_profile_that_is_asked_for_counts_before_the_environment(launcher: Launcher, tmp_path: Path) -> None:
    other = {VARIABLES[0]: "/etc/vehicle.xml"}
    chosen = tmp_path / "own.xml"
    chosen.write_text("<profiles/>", encoding="utf-8")
    record = launcher.records("perception", f"dds_profile:={chosen}", **other)["perception"]
    assert record["environment"] == dict.fromkeys(VARIABLES, str(chosen))
    assert launcher.records("perception", "dds_profile:=none")["perception"]["environment"] == {}
    assert launcher.records("perception", "dds_profile:=none", **other)["perception"]["environment"] == other


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("dds_profile:=/nowhere.xml", "dds_profile must be the path of a Fast DDS profile"),
        ("params_file:=/nowhere.yaml", "params_file: there is no file '/nowhere.yaml'"),
        ("autostart:=flase", 'Argument "autostart" provided value "flase" is not valid'),
        ("use_sim_time:=yes", 'Argument "use_sim_time" provided value "yes" is not valid'),
        ("use_respawn:=2", 'Argument "use_respawn" provided value "2" is not valid'),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused(launcher: Launcher, argument: str, words: str) -> None:
    assert words in launcher.refusal("perception", argument)


def test_a_recording_is_played_and_recorded_and_its_end_ends_all(launcher: Launcher, tmp_path: Path) -> None:
    given = ("bag:=/bags/drive", "output:=/out", "namespace:=/car/", "image_topic:=/front/image", "rate:=2.0")
    records = launcher.records("replay", *given, TEST_STAYS="1")
    played, recorded = (" ".join(records[name]["arguments"]) for name in ("play", "record"))
    assert played == "bag play /bags/drive --clock 100 --rate 2.0 --delay 10.0"
    options = "--storage mcap --output /out --use-sim-time --regex /car/perception/.*|/diagnostics"
    assert recorded == f"bag record {options}"
    name, parameters = effective(records["perception"], tmp_path)
    assert (name, parameters) == ("/car/perception", {"use_sim_time": True})
    assert ("-r", "image:=/front/image") in options_of(records["perception"])
    assert "bag" in launcher.refusal("replay")
    assert set(launcher.records("replay", "bag:=b")) == {"play", "perception"}


def test_the_demo_starts_the_node_and_its_camera(launcher: Launcher, tmp_path: Path) -> None:
    records = launcher.records("demo", "seed:=3", "loop:=true", "threads:=2")
    camera, node = (effective(records[name], tmp_path) for name in ("scene_camera", "perception"))
    assert camera[0] == "/scene_camera"
    assert (camera[1]["seed"], camera[1]["loop"], camera[1]["rate_hz"]) == (3, True, 10.0)
    assert node == ("/perception", {"threads": 2})


def test_several_cameras_are_one_nodes(launcher: Launcher, tmp_path: Path) -> None:
    record = launcher.records("multi_camera", "namespace:=car", "cameras:=front=/f/raw,left", "use_sim_time:=true")
    found = effective(record["perception"], tmp_path)
    assert found == ("/car/perception", {"cameras": ["front=/f/raw", "left"], "use_sim_time": True})


@pytest.mark.parametrize("name", FILES)
def test_arguments_are_shown(tmp_path: Path, environment: dict[str, str], name: str) -> None:
    process = Launcher("double", tmp_path, environment).start(name, "--show-args")
    assert process.wait() == 0, process.output
    assert re.findall(r"'(\w+)':", process.output) == list(arguments(name))


@pytest.mark.skipif(not IS_REAL_THERE, reason="launch_ros is not installed")
def test_double_and_real_launch_start_the_same(tmp_path: Path, environment: dict[str, str]) -> None:
    cases: list[tuple[str | Path, list[str]]] = [
        ("perception", []),
        ("perception", ["namespace:=/a/b", "node_name:=n", "cameras:=x,y=/z", "autostart:=false", "log_level:=warn"]),
        (vehicle(tmp_path, "SetParameter('top_k', 2), PushRosNamespace('r'),"), ["image_topic:=/i"]),
        ("multi_camera", ["device:=cpu"]),
        ("demo", []),
        ("replay", ["bag:=b"]),
    ]
    launchers = [Launcher(kind, tmp_path / kind, environment) for kind in ("double", "real")]
    for file, given in cases:
        double, real = (launcher.records(file, *given) for launcher in launchers)
        assert set(double) == set(real)
        for name in real:
            found, expected = (
                [(option, yaml.load(text, yaml.BaseLoader)) for option, text in sorted(options_of(records[name]))]
                for records in (double, real)
            )
            assert [item for item in found if item[0] != "--ros-args"] == [  # which the real one repeats
                item for item in expected if item[0] != "--ros-args"
            ]
            assert double[name]["environment"] == real[name]["environment"]
