"""What can be held of the launch files on a machine without `launch`."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from launch_tables import FILES, LAUNCH, arguments

ROOT = LAUNCH.parent
NOT_PARAMETERS = {
    "namespace", "params_file", "log_level", "image_topic", "camera_info_topic", "dds_profile", "use_sim_time",
    "use_respawn", "node_name",
}  # fmt: skip
# The files whose command lines name launch files and arguments.
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", *sorted(LAUNCH.glob("*.launch.py")),
    *sorted((ROOT / "docker").iterdir()), ROOT / "deploy" / "semla-perception.service",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_argument_is_described(name: str) -> None:
    assert arguments(name)
    assert all(text[0].isupper() or len(text) > 8 for text in arguments(name).values())


def test_perception_has_the_arguments_that_users_expect() -> None:
    expected = "namespace node_name use_sim_time params_file autostart use_respawn log_level image_topic cameras"
    expected += " camera_info_topic model library device engine"
    assert set(expected.split()) <= set(arguments("perception"))


def test_arguments_of_perception_are_parameters_of_the_node() -> None:
    pytest.importorskip("semla_ros.serving.parameters")
    from semla_ros.serving.parameters import SPECS

    assert set(arguments("perception")) - NOT_PARAMETERS <= set(SPECS)


@pytest.mark.parametrize("name", ["multi_camera", "replay"])
def test_what_is_passed_on_is_an_argument_of_perception(name: str) -> None:
    own = {"bag", "output", "rate", "start_delay_s"} if name == "replay" else set()
    assert set(arguments(name)) - own <= set(arguments("perception"))


@pytest.mark.parametrize("name", FILES)
def test_executables_named_in_launch_files_are_installed(name: str) -> None:
    scripts = set(re.findall(r'"(\w+) = semla_ros', (ROOT / "setup.py").read_text(encoding="utf-8")))
    for call in ast.walk(ast.parse((LAUNCH / f"{name}.launch.py").read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("Node", "LifecycleNode"):
            named = {item.arg: item.value for item in call.keywords}
            assert ast.literal_eval(named["package"]) == "semla_ros"
            assert ast.literal_eval(named["executable"]) in scripts


def launch_commands(path: Path) -> list[tuple[str, list[str]]]:
    """Launch file and given arguments of each `ros2 launch semla_ros` in a file."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"semla_ros (\w+)\.launch\.py((?: +[\w]+:=[^\s`'\"]+)*)", text)
    return [(name, [item.partition(":=")[0] for item in shlex.split(given)]) for name, given in commands]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_in_the_project_name_files_and_arguments_that_exist(path: Path) -> None:
    for name, given in launch_commands(path):
        assert name in FILES
        assert set(given) <= set(arguments(name))


def test_command_lines_are_found() -> None:
    assert launch_commands(LAUNCH / "multi_camera.launch.py") == [("multi_camera", ["cameras", "namespace"])]
