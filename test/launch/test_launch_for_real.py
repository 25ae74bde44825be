"""The launch files run by `launch`, where that is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch_tables import FILES, LAUNCH, arguments

# The folder of the launch files is found as a package named `launch`, too, so ask for what only the real one has.
pytest.importorskip("launch_ros.actions", reason="launch_ros is not installed")

from launch.launch_context import LaunchContext
from launch.launch_description_sources import PythonLaunchDescriptionSource

from semla_ros.lab.isolation import free_domain, isolated_environment

CHECK = Path(__file__).parent / "perception_launch_check.py"


@pytest.mark.parametrize("name", FILES)
def test_a_launch_file_declares_the_arguments_of_its_tables(name: str) -> None:
    source = PythonLaunchDescriptionSource(str(LAUNCH / f"{name}.launch.py"))
    description = source.get_launch_description(LaunchContext())
    declared = [item.name for item in description.get_launch_arguments()]
    assert declared[: len(arguments(name))] == list(arguments(name))


def install(prefix: Path) -> None:
    """What `colcon build` makes of the package, as far as launch looks for it: an index entry and executables."""
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    scripts = prefix / "lib" / "semla_ros"
    index.mkdir(parents=True)
    scripts.mkdir(parents=True)
    (index / "semla_ros").touch()
    for name, module in (("perception", "nodes.perception_node"), ("scene_camera", "lab.demo.scene_camera_node")):
        script = scripts / name
        script.write_text(
            f"#!{sys.executable}\nimport sys\nfrom semla_ros.{module} import main\nsys.exit(main())\n",
            encoding="utf-8",
        )
        script.chmod(0o755)


@pytest.mark.skipif(importlib.util.find_spec("launch_testing") is None, reason="launch_testing is not installed")
def test_the_launched_node_answers_and_ends_cleanly(tmp_path: Path) -> None:
    install(tmp_path)
    environment = isolated_environment(free_domain()) | {"OMP_NUM_THREADS": "1", "ROS_LOG_DIR": str(tmp_path / "log")}
    paths = [str(tmp_path), *filter(None, [environment.get("AMENT_PREFIX_PATH")])]
    environment["AMENT_PREFIX_PATH"] = os.pathsep.join(paths)
    environment["PYTHONPATH"] = os.pathsep.join([str(LAUNCH.parent), environment.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", "launch_testing.launch_test", str(CHECK)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
