"""Containers, systemd unit and SROS 2 policy name only what exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

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
