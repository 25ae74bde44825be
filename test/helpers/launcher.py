"""Run launch files in a process: by `launch_double.py`, and by the real launch where it is installed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graph import NodeProcess

HERE = Path(__file__).parent
LAUNCH = HERE.parents[1] / "launch"
_REAL = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
given = [item.split(":=", 1) for item in sys.argv[2:]]
service = LaunchService()
source = PythonLaunchDescriptionSource(sys.argv[1])
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(source, launch_arguments=given)]))
sys.exit(service.run())
"""
# The folder of the launch files is found as a package named `launch`, too, so ask for what only the real one has.
IS_REAL_THERE = importlib.util.find_spec("launch_ros") is not None
LAUNCHERS = ["double", "real"] if IS_REAL_THERE else ["double"]
_RECORDER = """#!{python}
import json, os, signal, sys, time
arguments, files = sys.argv[1:], {{}}
for option, value in zip(arguments, arguments[1:]):
    if option == "--params-file":
        files[value] = open(value, encoding="utf-8").read()
variables = {{key: value for key, value in os.environ.items() if key.startswith(("FAST", "TEST_"))}}
name = f"{{arguments[1] if {name!r} == 'ros2' else {name!r}}}-{{os.getpid()}}.json"
with open(os.path.join(os.environ["RECORDS"], name), "w", encoding="utf-8") as file:
    json.dump({{"arguments": arguments, "files": files, "environment": variables}}, file)
if "play" in arguments:
    time.sleep(2)
elif "TEST_STAYS" in os.environ:
    signal.pause()
"""
_NODE = """#!{python}
import runpy, sys
sys.argv[0] = {program!r}
runpy.run_path({program!r}, run_name="__main__")
"""


def install(prefix: Path, programs: Mapping[str, str]) -> None:
    """What `colcon build` makes of the package, as far as launch looks for it: an index entry and executables.

    Args:
        prefix: An empty folder.
        programs: Executable -> Python file; empty: it only records what it was started with.
    """
    index, scripts = prefix / "share" / "ament_index" / "resource_index" / "packages", prefix / "lib" / "semla_ros"
    for folder in (index, scripts, prefix / "bin"):
        folder.mkdir(parents=True)
    (index / "semla_ros").touch()
    for name, program in programs.items():
        script = (prefix / "bin" if name == "ros2" else scripts) / name
        script.write_text((_NODE if program else _RECORDER).format(python=sys.executable, name=name, program=program))
        script.chmod(0o755)


class Launcher:
    """Runs launch files with the executables of a prefix.

    Args:
        kind: Of `LAUNCHERS`.
        folder: Where the prefix, the logs and the records are.
        environment: Of the processes.
        programs: See `install`.
    """

    def __init__(
        self, kind: str, folder: Path, environment: Mapping[str, str], programs: Mapping[str, str] | None = None
    ) -> None:
        self.kind, self.folder = kind, folder
        self.processes: list[NodeProcess] = []
        install(folder / "prefix", programs or dict.fromkeys(("perception", "scene_camera", "ros2"), ""))
        paths = [str(folder / "prefix"), *filter(None, [environment.get("AMENT_PREFIX_PATH")])]
        python_paths = [str(LAUNCH.parent), *filter(None, [environment.get("PYTHONPATH")])]
        self.environment = dict(environment) | {
            "AMENT_PREFIX_PATH": os.pathsep.join(paths),
            "PYTHONPATH": os.pathsep.join(python_paths),
            "PATH": os.pathsep.join([str(folder / "prefix" / "bin"), environment["PATH"]]),
            "ROS_LOG_DIR": str(folder / "log"),
        }

    def start(self, file: str | Path, *arguments: str, **variables: str) -> NodeProcess:
        """Start a launch file of ours, by name, or any other by path."""
        path = LAUNCH / f"{file}.launch.py" if isinstance(file, str) else file
        program = [str(HERE / "launch_double.py")] if self.kind == "double" else ["-c", _REAL]
        log = self.folder / f"launch_{len(self.processes)}.log"
        command = [sys.executable, *program, str(path), *arguments]
        self.processes.append(NodeProcess(command, self.environment | variables, log))
        return self.processes[-1]

    def records(self, file: str | Path, *arguments: str, **variables: str) -> dict[str, dict[str, Any]]:
        """What each executable was started with, by its name, once all have ended."""
        records = self.folder / f"records_{len(self.processes)}"
        records.mkdir()
        process = self.start(file, *arguments, RECORDS=str(records), **variables)
        assert process.wait() == 0, process.output
        found = {path.name.split("-")[0]: json.loads(path.read_text("utf-8")) for path in records.iterdir()}
        assert len(found) == len(list(records.iterdir()))
        return found

    def refusal(self, file: str, *arguments: str, **variables: str) -> str:
        """The output of a launch that must not start anything."""
        process = self.start(file, *arguments, RECORDS=str(self.folder / "nowhere"), **variables)
        assert process.wait() == 1, process.output
        assert "process started" not in process.output
        return process.output


def options_of(record: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """ROS options of a command and their values, the text of a file in place of its name."""
    arguments = record["arguments"]
    pairs = itertools.pairwise(arguments)
    return [(option, record["files"].get(value, value)) for option, value in pairs if option.startswith("-")]
