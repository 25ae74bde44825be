"""Containers, systemd unit, SROS 2 policy, viewers' layouts and package.xml name only what exists, and all of it."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.serving.dds_profile import VARIABLES

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
JETPACK_6 = {"torch": "2.6.0a0", "torchvision": "0.20.0a0", "numpy": "1.26.4"}  # NVIDIA's container 24.12-py3-igpu
ROS_PACKAGE = r"\w+_(msgs|srvs|interfaces)|rclpy|launch|launch_ros|cv_bridge|bond|ament_index_python"
POLICY = ROOT / "deploy" / "sros2" / "policy.xml"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_file_that_an_image_copies_exists(path: Path) -> None:
    copies = re.findall(r"^COPY (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    sources = [source for line in copies for source in shlex.split(line)[:-1]]
    assert {"requirements", "requirements/robot.txt"} & set(sources)
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing_in_an_image(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint, of the extra dev, is not installed")
    answer = subprocess.run([hadolint, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "")


def test_what_a_robot_needs_allows_what_jetpack_6_brings() -> None:
    lines = (ROOT / "requirements" / "robot.txt").read_text(encoding="utf-8").splitlines()
    ranges = {item.name: item.specifier for item in (Requirement(line) for line in lines if line and line[0] != "#")}
    for name, brought in JETPACK_6.items():
        assert ranges[name].contains(brought, prereleases=True), f"{name}{ranges[name]} excludes JetPack 6's {brought}"


def test_the_entry_point_is_valid_shell_and_executable() -> None:
    script = ROOT / "docker" / "entrypoint.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("path", [POLICY, ROOT / "config" / "fastdds.xml", ROOT / "package.xml"], ids=lambda p: p.name)
def test_xml_is_well_formed(path: Path) -> None:
    assert len(ElementTree.parse(path).getroot())


UNIT = (ROOT / "deploy" / "semla-perception.service").read_text(encoding="utf-8")


def test_the_unit_restarts_what_failed_and_ends_the_node_as_ctrl_c_does() -> None:
    assert re.findall(r"^\[(\w+)\]$", UNIT, re.MULTILINE) == ["Unit", "Service", "Install"]
    lines = ("KillSignal=SIGINT", "Restart=on-failure", "Type=notify", "NotifyAccess=main", "WatchdogSec=30")
    lines += (f"SuccessExitStatus={128 + signal.SIGINT} {128 + signal.SIGTERM}",)
    assert [line for line in lines if f"\n{line}\n" not in UNIT] == []
    if (systemd := shutil.which("systemd-analyze")) is not None:
        path = ROOT / "deploy" / "semla-perception.service"
        answer = subprocess.run([systemd, "verify", str(path)], capture_output=True, text=True, check=False)
        assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.ros
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)], ids=["stopped", "killed"]
)
def test_what_the_unit_starts_is_the_node_whose_end_systemd_sees(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy")
    install = tmp_path / "semla" / "install"
    executable = install / "semla_ros" / "lib" / "semla_ros" / "perception"
    for file in (tmp_path / "ros" / "jazzy" / "setup.bash", install / "setup.bash", executable):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    node = ROOT / "test" / "helpers" / "costless_node.py"
    executable.write_text(f'#!/bin/sh\nexec {sys.executable} {node} "$@"\n')
    executable.chmod(0o755)
    parameters = tmp_path / "perception.yaml"
    parameters.write_text("/**/perception:\n  ros__parameters:\n    top_k: 3\n")
    command = re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    assert command is not None
    text = command[1].replace("/opt/", f"{tmp_path}/").replace("/etc/semla/perception.yaml", str(parameters))
    environment = isolated_environment(free_domain()) | {
        "ROS_ARGUMENTS": "-r __ns:=/unit -r image:=/camera/image_raw",
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "PYTHONPATH": str(ROOT),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(90.0)
        log = tmp_path / "log"
        with log.open("wb") as output:
            service = subprocess.Popen(shlex.split(text), env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            assert systemd.recv(100) == b"READY=1", log.read_text()
            service.send_signal(number)
            assert service.wait(90.0) == status, log.read_text()
        finally:
            service.kill()
    told = log.read_text()
    assert "/camera/image_raw" in told
    assert "top_k=3" in told


def profiles_given(starter: str, folder: Path, said: dict[str, str]) -> list[str]:
    """Both variables for a profile, as the container's entry point or the unit starts the node with them."""
    install = folder / "semla" / ("workspace/install" if starter == "container" else "install")
    executable = install / "semla_ros" / "lib" / "semla_ros" / "perception"
    for file in (folder / "ros" / "jazzy" / "setup.bash", install / "setup.bash", executable):
        file.parent.mkdir(parents=True)
        file.touch()
    executable.write_text(f'#!/bin/bash\necho "${VARIABLES[0]},${VARIABLES[1]}"\n')
    executable.chmod(0o755)
    command = [
        "bash",
        "-c",
        (ROOT / "docker" / "entrypoint.sh").read_text(encoding="utf-8"),
        "entrypoint",
        "perception",
    ]
    if starter == "unit":
        assert not re.search(r"^Environment=.*FAST", UNIT, re.MULTILINE)
        command = shlex.split(re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)[0])
    answer = subprocess.run(
        [item.replace("/opt/", f"{folder}/") for item in command],
        env={key: value for key, value in os.environ.items() if not key.startswith("FAST")} | said,
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    shipped = str(install / "semla_ros" / "share" / "semla_ros" / "config" / "fastdds.xml")
    return answer.stdout.strip().replace(shipped, "shipped").split(",")


@pytest.mark.parametrize(
    ("said", "profiles"),
    [
        ({}, ["shipped", "shipped"]),
        ({VARIABLES[0]: "/etc/own.xml"}, ["/etc/own.xml", ""]),
        ({VARIABLES[1]: "/etc/own.xml"}, ["", "/etc/own.xml"]),
        ({"FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}, ["", ""]),
    ],
)
@pytest.mark.parametrize("starter", ["container", "unit"])
def test_container_and_unit_leave_what_the_vehicle_says_of_dds(
    starter: str, said: dict[str, str], profiles: list[str], tmp_path: Path
) -> None:
    assert profiles_given(starter, tmp_path, said) == profiles


@pytest.mark.parametrize("name", ["DEFAULT_FASTRTPS_PROFILES.xml", "DEFAULT_FASTDDS_PROFILES.xml"])
def test_a_container_leaves_the_profile_of_its_working_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert profiles_given("container", tmp_path, {}) == ["", ""]


def test_other_enclaves_ask_only_for_what_the_node_gives() -> None:
    given: dict[str, set[str]] = {"perception": set()}
    asked: set[str] = set()
    for profile in ElementTree.parse(POLICY).iter("profile"):
        for group in profile:
            names = {(item.text or "").replace("~", "/perception", 1) for item in group}
            if profile.get("node") == "perception" and ("publish" in group.attrib or "reply" in group.attrib):
                given["perception"] |= names
            elif "subscribe" in group.attrib or "request" in group.attrib:
                asked |= {name for name in names if name.startswith("/perception/")}
    assert asked
    assert asked <= given["perception"]


def topics_given() -> set[str]:
    """What the node publishes; the policy is held to a running node by test_policy_over_dds.py."""
    profile = next(item for item in ElementTree.parse(POLICY).iter("profile") if item.get("node") == "perception")
    names = {item.text or "" for group in profile if "publish" in group.attrib for item in group}
    return {name.replace("~", "/perception", 1) for name in names}


def layout_topics() -> dict[str, set[str]]:
    """Topics that RViz and Foxglove open on."""
    rviz = yaml.safe_load((ROOT / "config" / "semla.rviz").read_text(encoding="utf-8"))
    layout = (ROOT / "config" / "foxglove_layout.json").read_text(encoding="utf-8")
    displays = rviz["Visualization Manager"]["Displays"]
    named = re.findall(r'"(?:imageTopic|topicToRender|topicPath|value)": "(/[a-z_/]+)', layout)
    return {"rviz": {display["Topic"]["Value"] for display in displays}, "foxglove": set(named)}


@pytest.mark.parametrize("viewer", ["rviz", "foxglove"])
def test_viewers_open_on_topics_of_the_node(viewer: str) -> None:
    topics = layout_topics()[viewer]
    assert {"/image", "/perception/overlay", "/perception/confidence"} <= topics
    assert topics - {"/image"} <= topics_given()


def test_the_layout_shows_statuses_that_the_node_reports() -> None:
    layout = json.loads((ROOT / "config" / "foxglove_layout.json").read_text(encoding="utf-8"))
    names = {panel["selectedName"] for panel in layout["configById"].values() if "selectedName" in panel}
    assert names == {"/perception: adaptation"}


def test_the_aggregator_takes_the_statuses_of_our_nodes_in_every_namespace() -> None:
    tree = yaml.safe_load((ROOT / "config" / "diagnostic_aggregator.yaml").read_text(encoding="utf-8"))
    (pattern,) = tree["analyzers"]["ros__parameters"]["perception"]["regex"]
    for name in ("/perception: node", "/perception: camera left/wide", "/fleet/robot2/perception: adaptation"):
        assert re.fullmatch(pattern, name)
    for name in ("perception: node", "/perception_tools: node", "/perception/other: node", "/my_perception: node"):
        assert not re.fullmatch(pattern, name)


def ros_packages(source: str, *, also_optional: bool = True) -> set[str]:
    """ROS packages that a module imports; without the optional ones those outside of functions."""
    tree, imported = ast.parse(source), set()
    optional = {inner for item in ast.walk(tree) if isinstance(item, ast.FunctionDef) for inner in ast.walk(item)}
    for item in ast.walk(tree):
        if item in optional and not also_optional:
            continue
        if isinstance(item, ast.Import):
            imported |= {name.name.partition(".")[0] for name in item.names}
        elif isinstance(item, ast.ImportFrom) and not item.level:
            imported.add((item.module or "").partition(".")[0])
    return {name for name in imported if re.fullmatch(ROS_PACKAGE, name)}


def test_every_ros_package_that_is_imported_is_a_dependency_or_named_as_an_optional_one() -> None:
    sources = [
        path.read_text(encoding="utf-8")
        for path in [*(ROOT / "semla_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    ]
    needed = set().union(*(ros_packages(source, also_optional=False) for source in sources))
    optional = set().union(*map(ros_packages, sources)) - needed
    dependencies = {item.text for item in ElementTree.parse(ROOT / "package.xml").iter("exec_depend")}
    assert {"rclpy", "sensor_msgs", "launch_ros"} <= needed <= dependencies
    assert not {"cv_bridge", "vision_msgs"} & dependencies
    named = (ROOT / "package.xml").read_text(encoding="utf-8").partition("<!-- Optional")[2].partition("-->")[0]
    assert {name for name in optional - dependencies if not re.search(rf"\b{name}\b", named)} == set()


def test_plugins_for_pytest_that_a_sourced_ros_brings_are_left_alone(tmp_path: Path) -> None:
    """Those of launch_testing and its kin declare hooks that the pinned pytest refuses."""
    for name in ("launch_testing", "launch_pytest", "launch_ros"):
        information = tmp_path / f"{name}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[pytest11]\n{name} = {name}_hooks\n")
        (tmp_path / f"{name}_hooks.py").write_text("def pytest_pycollect_makemodule(path, parent): ...\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", "test/test_layout.py"]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_colcon_can_read_what_setup_says_and_finds_that_pytest_runs_the_tests() -> None:
    """It evaluates what these print as, which fails on what setuptools makes of a requires-python in pyproject.toml."""
    names = ("python_requires", "install_requires", "extras_require", "package_data", "data_files", "entry_points")
    script = (
        "import setuptools; setup = setuptools.distutils.core.run_setup('setup.py', stop_after='config');"
        f"print({{name: getattr(setup, name) for name in {names}}})"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    read = ast.literal_eval(result.stdout.splitlines()[-1])
    assert "pytest" in read["extras_require"]["test"]
    assert len(read["entry_points"]["console_scripts"]) == 3
