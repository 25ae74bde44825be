"""Containers, systemd unit, SROS 2 policy, viewers' layouts and package.xml name only what exists, and all of it."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
POLICY = ROOT / "deploy" / "sros2" / "policy.xml"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_file_that_an_image_copies_exists(path: Path) -> None:
    copies = re.findall(r"^COPY (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    sources = [source for line in copies for source in shlex.split(line)[:-1]]
    assert "requirements.txt" in sources
    assert all((ROOT / source).exists() for source in sources)


def test_the_entry_point_is_valid_shell_and_executable() -> None:
    script = ROOT / "docker" / "entrypoint.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("path", [POLICY, ROOT / "config" / "fastdds.xml", ROOT / "package.xml"], ids=lambda p: p.name)
def test_xml_is_well_formed(path: Path) -> None:
    assert len(ElementTree.parse(path).getroot())


def test_the_unit_ends_the_node_as_ctrl_c_does_and_has_its_sections() -> None:
    unit = (ROOT / "deploy" / "semla-perception.service").read_text(encoding="utf-8")
    assert re.findall(r"^\[(\w+)\]$", unit, re.MULTILINE) == ["Unit", "Service", "Install"]
    assert "\nKillSignal=SIGINT\n" in unit
    # The node is a child of launch, and so are its words to systemd.
    assert all(f"\n{line}\n" in unit for line in ("Type=notify", "NotifyAccess=all", "WatchdogSec=30"))


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
    assert names == {"perception: adaptation"}


def test_every_ros_package_that_is_imported_is_a_dependency() -> None:
    imported: set[str] = set()
    for path in [*(ROOT / "semla_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(item, ast.Import):
                imported |= {name.name.partition(".")[0] for name in item.names}
            elif isinstance(item, ast.ImportFrom) and not item.level:
                imported.add((item.module or "").partition(".")[0])
    ros = {
        name for name in imported
        if re.fullmatch(r"\w+_(msgs|srvs|interfaces)|rclpy|launch|launch_ros|cv_bridge|ament_index_python", name)
    }  # fmt: skip
    package = ElementTree.parse(ROOT / "package.xml")
    assert ros <= {item.text for item in package.iter("exec_depend")}
    assert {"rclpy", "sensor_msgs", "launch_ros"} <= ros
