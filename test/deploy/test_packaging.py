"""Wheel and source distribution hold what they must; extras, requirements and locks say one thing."""

from __future__ import annotations

import argparse
import ast
import email
import re
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import semla_ros
from semla_ros.cli import COMMANDS, build_parser, main, perception
from semla_ros.extras import MODULES, require

ROOT = Path(__file__).resolve().parents[2]
SHARED = ("launch", "config", "adapters", "models")
SOURCES = (
    *("semla_ros", "resource", "requirements", *SHARED),
    *("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "package.xml", "README.md", "LICENSE"),
)
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
EXTRAS = sorted(path.stem for path in (ROOT / "requirements").glob("*.txt") if "-" not in path.stem)
# Used where the machine brings them; no package index has what fits.
BROUGHT = {"ament_index_python", "bond", "cv_bridge", "launch", "launch_ros", "tensorrt", "vision_msgs"}
ZSTD = {"compression", "backports"}  # Python 3.14's module, and what rosbags brings in its place before


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def files_below(*folders: str) -> set[str]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and source distribution of a copy of the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    for name in ("bdist_wheel", "sdist"):
        command = [sys.executable, "setup.py", "-q", name, "--dist-dir", "dist"]
        subprocess.run(command, cwd=tree, check=True, capture_output=True)
    return next((tree / "dist").glob("*.whl")), next((tree / "dist").glob("*.tar.gz"))


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (item for item in archive.namelist() if item.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_has_every_module_and_every_shared_file_and_nothing_of_the_tests(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(item).decode() for item in names if item.endswith("/entry_points.txt"))
    data = {name.partition(".data/data/")[2] for name in names if ".data/data/" in name}
    assert {f"share/semla_ros/{name}" for name in files_below(*SHARED)} < data
    assert {"share/semla_ros/package.xml", "share/ament_index/resource_index/packages/semla_ros"} < data
    assert files_below("semla_ros") == {name for name in names if name.startswith("semla_ros/")}
    tops = {PurePosixPath(name).parts[0] for name in names}
    assert {top for top in tops if not re.fullmatch(r"semla_ros(-[\d.]+\.(data|dist-info))?", top)} == set()
    assert set(re.findall(r"^(\w+) = ", entry_points, re.MULTILINE)) == {"perception", "scene_camera", "semla"}


def test_the_source_distribution_has_all_that_a_wheel_is_built_from(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {item.name.partition("/")[2] for item in archive.getmembers() if item.isfile()}
    files = {name for name in SOURCES if (ROOT / name).is_file()}
    folders = {name for name in SOURCES if (ROOT / name).is_dir()}
    assert (files | files_below(*folders)) - names == set()
    assert not [name for name in names if name.startswith(("test/", "bench/", "docs/"))]


def test_one_version_stands_everywhere(built: tuple[Path, Path]) -> None:
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert semla_ros.__version__ == version
    assert metadata(built[0])["Version"] == version
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation is not None
    assert citation[1] == version


def test_the_wheel_asks_for_what_the_requirements_say(built: tuple[Path, Path]) -> None:
    told: dict[str, set[str]] = {}
    for text in metadata(built[0]).get_all("Requires-Dist") or []:
        item = Requirement(text)
        extra = re.search(r'extra == "(\w+)"', text)
        told.setdefault(extra[1] if extra else "robot", set()).add(f"{item.name}{item.specifier}")
    wanted = {name: {f"{item.name}{item.specifier}" for item in requirements(name)} for name in EXTRAS}
    assert told == wanted | {"test": {"pytest"}}
    assert {"lab", "view", "openvino", "ray", "ros", "dev", "docs", "onnx"} < set(wanted)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_locks_meet_every_requirement(python: str) -> None:
    lines = (ROOT / "requirements" / "locks" / f"python{python}.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("==") for line in lines if "==" in line)
    locked = {canonicalize_name(name): version for name, _, version in pairs}
    extras = [name for name in EXTRAS if (name, python) != ("ros", "3.14")]
    for item in (item for name in extras for item in requirements(name)):
        version = locked.get(canonicalize_name(item.name))
        assert version is not None, f"{item}: not locked; run tools/lock"
        assert item.specifier.contains(version), f"{item}: {version} is locked; run tools/lock"


def test_a_distribution_that_two_extras_ask_for_has_one_range() -> None:
    ranges: dict[str, set[str]] = {}
    for item in (item for name in EXTRAS for item in requirements(name)):
        ranges.setdefault(item.name, set()).add(str(item.specifier))
    assert {name for name, found in ranges.items() if len(found) > 1} == set()


def third_party_modules() -> set[str]:
    """What the package imports beside Python's own modules and itself."""
    imported: set[str] = set()
    for path in (ROOT / "semla_ros").rglob("*.py"):
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(item, ast.Import):
                imported |= {name.name.partition(".")[0] for name in item.names}
            elif isinstance(item, ast.ImportFrom) and not item.level:
                imported.add((item.module or "").partition(".")[0])
    return imported - set(sys.stdlib_module_names) - {"semla_ros", "bench"}


def test_every_module_that_is_imported_belongs_to_an_extra_that_asks_for_it() -> None:
    known = {module: extra for extra, names in MODULES.items() for module in names.split()}
    assert third_party_modules() - BROUGHT - ZSTD - set(known) == set()
    distributions = packages_distributions()
    for module, extra in known.items():
        asked = {canonicalize_name(item.name) for item in requirements(extra)}
        if extra != "ros" and module in distributions:
            assert asked & {canonicalize_name(name) for name in distributions[module]}, f"{module}: not in {extra}.txt"


def without(*extras: str) -> str:
    names = [name for extra in extras for name in MODULES[extra].split()]
    return f"import sys; sys.modules.update(dict.fromkeys({names}))\n"


def test_without_any_extra_every_command_starts_or_names_the_extra_that_it_lacks() -> None:
    source = (
        without(*(name for name in MODULES if name != "robot"))
        + f"""
import contextlib, io
from semla_ros.cli import main

for name in {list(COMMANDS)}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            status = main([name, "--help"])
        except SystemExit as end:
            status = end.code
    print(name, status, told.getvalue().strip())
"""
    )
    answer = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split(" ", 2) for line in answer.stdout.splitlines()]
    assert [name for name, *_ in lines] == list(COMMANDS)
    assert {"segment", "library", "fetch", "completion"} < {name for name, status, _ in lines if status == "0"}
    for name, status, told in lines:
        assert status == "0" or re.fullmatch(rf"semla {name}: .+ pip install 'semla_ros\[\w+\]'", told), told


def test_what_a_command_will_need_later_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("rclpy", "rosbags", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["demo", "--fast"]) == 2
    told = capsys.readouterr().err
    assert "pip install 'semla_ros[lab]'" in told
    assert "pip install 'semla_ros[ros]'" in told


# Options that need an extra of their own -> the shortest line with each; "{out}" is a place to write.
LINES = {
    "--ray": (
        "replay no-bag --ray local",
        "evaluate --ray local",
        "train library --benchmark x --data x --ray local --out {out}",
    ),
    "--rerun": ("replay no-bag --rerun {out}.rrd", "view --rerun {out}.rrd"),
    "--log-to": ("evaluate --log-to tensorboard --log-dir {out}", "train all --log-to wandb --log-dir {out}"),
}
PACKAGES = {"--ray": "ray", "--rerun": "rerun", "--log-to": "torch.utils.tensorboard wandb"}


def options_of(parser: argparse.ArgumentParser, command: str = "") -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        yield from ((option, command) for option in action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from options_of(below, command or name)


@pytest.mark.parametrize(("option", "line"), [(option, line) for option, lines in LINES.items() for line in lines])
def test_an_option_names_the_package_that_it_lacks_before_any_work(
    option: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in PACKAGES[option].split():
        monkeypatch.setitem(sys.modules, name, None)
    assert main(line.format(out=tmp_path / "out").split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"semla \w+: .*pip install .+\n", said.err), said.err
    assert list(tmp_path.iterdir()) == []


def test_every_option_with_a_package_of_its_own_is_tried() -> None:
    found = {(option, command) for option, command in options_of(build_parser(*COMMANDS)) if option in LINES}
    assert found == {(option, line.split()[0]) for option, lines in LINES.items() for line in lines}


def test_a_module_of_the_package_that_is_missing_is_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "semla_ros.commands.fetch", None)
    with pytest.raises(ImportError):
        main(["fetch", "--list"])


def test_the_node_names_ros_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("perception", "perception_node"):
        monkeypatch.delitem(sys.modules, f"semla_ros.nodes.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "rclpy", None)
    assert perception() == 2
    assert re.fullmatch(
        r"perception: rclpy .*: source ROS 2, or on x86_64 pip install 'semla_ros\[ros\]'\n", capsys.readouterr().err
    )


def test_what_is_installed_is_not_asked_for() -> None:
    require("robot", "lab")
