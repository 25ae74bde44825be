"""How the demo's nodes are started: by the launch file where `ros2 launch` is installed, else one by one."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping

from semla_ros.lab.demo.settings import DemoSettings
from semla_ros.lab.processes import Children
from semla_ros.resources import share_folder

FRAME_ID = "demo_camera"

MODULES = {
    "perception": "semla_ros.nodes.perception_node",
    "scene_camera": "semla_ros.lab.demo.scene_camera_node",
}


def has_ros2_command() -> bool:
    """Whether the `ros2` command is installed; the wheels do not bring it."""
    return shutil.which("ros2") is not None


def has_ros2_launch() -> bool:
    """Whether `ros2 launch` can be called."""
    return has_ros2_command() and importlib.util.find_spec("launch_ros") is not None


def parameters(settings: DemoSettings) -> dict[str, dict[str, str]]:
    """Node -> parameter -> value, as written on a command line."""
    perception = {"model": settings.model, "library": settings.library, "threads": str(settings.threads)}
    if settings.is_fast:
        # The short drive passes five times as fast, and so must the gate: look at every frame, wait and smooth less.
        rate_hz = f"{settings.camera_rate_hz:.3f}"
        perception |= {"retrieval_rate_hz": rate_hz, "min_dwell_s": "0.1", "smoothing_s": "0.15"}
    camera = {
        "seed": str(settings.seed),
        "rate_hz": f"{settings.camera_rate_hz:.3f}",
        "width": str(settings.width),
        "height": str(settings.height),
        "duration_s": f"{settings.duration_s:.1f}",
        "frame_id": FRAME_ID,
        "wait_for_subscribers": "2",  # the perception node and the monitor
    }
    return {"perception": {key: value for key, value in perception.items() if value}, "scene_camera": camera}


def start_nodes(children: Children, settings: DemoSettings, environment: Mapping[str, str]) -> None:
    """Start camera and perception node as processes of their own; their output goes to log files in `settings.out`."""
    if has_ros2_launch():
        given = {key: value for values in parameters(settings).values() for key, value in values.items()}
        command = ["ros2", "launch", str(share_folder() / "launch" / "demo.launch.py")]
        command += [f"{key}:={value}" for key, value in given.items()]
        children.start("ros2 launch", command, environment, settings.out / "launch.log")
        return
    for name, values in parameters(settings).items():
        command = [sys.executable, "-m", MODULES[name], "--ros-args"]
        command += [item for key, value in values.items() for item in ("-p", f"{key}:={value}")]
        children.start(f"{name} node", command, environment, settings.out / f"{name}.log")
