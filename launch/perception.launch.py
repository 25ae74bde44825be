"""The perception node. `ros2 launch semla_ros perception.launch.py --show-args` lists the arguments.

What is given as an argument counts before `params_file`, and that before the node's defaults; an argument that is not
given sets nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from launch import Action, LaunchContext, LaunchDescription
from semla_ros.serving.dds_profile import profile_variables, shared_memory_problem

ARGUMENTS = (
    ("namespace", "", "Namespace of the node and its topics"),
    ("node_name", "perception", "Name of the node, below which its own topics stand"),
    ("params_file", "", "Parameter file; the arguments below count before it"),
    ("use_sim_time", "", "true or false: take the time from /clock, as with a recording"),
    ("autostart", "", "true or false: configure and activate without a lifecycle manager"),
    ("use_respawn", "false", "true or false: start the node again 2 s after it ended by itself, as watchdog_s lets it"),
    ("log_level", "", "debug, info, warn or error; also <logger>:=<level>"),
    ("image_topic", "", "Topic of the camera's images; empty: image"),
    ("camera_info_topic", "", "Topic of the camera's calibration; empty: camera_info beside the images"),
    ("image_transport", "", "raw or compressed (then <image_topic>/compressed is taken)"),
    ("cameras", "", "Several cameras, with commas: <name> for <name>/image, or <name>=<topic>"),
    ("model", "", "Model id or path"),
    ("library", "", "Adapter library folder"),
    ("device", "", "auto, cpu, cuda or cuda:<index>"),
    ("engine", "", "auto, torch, onnx, openvino or tensorrt"),
    ("dds_profile", "", "Fast DDS profile, or none; empty: the environment's, else the shipped one for large images"),
)
PARAMETERS = ("use_sim_time", "autostart", "image_transport", "cameras", "model", "library", "device", "engine")
SWITCHES = ("use_sim_time", "autostart", "use_respawn")


def make_node(context: LaunchContext) -> list[Action]:
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    given = {name: text for name, text in given.items() if text}
    parameters: dict[str, Any] = {name: given[name] for name in PARAMETERS if name in given}
    for name in SWITCHES:
        if name in parameters:
            parameters[name] = given[name].lower() == "true"
    if "cameras" in given:
        parameters["cameras"] = [entry.strip() for entry in given["cameras"].split(",") if entry.strip()]
    file = given.get("params_file")
    if file is not None and not Path(file).is_file():
        raise FileNotFoundError(f"params_file: there is no file '{file}'")
    variables = profile_variables(context.environment, given.get("dds_profile", ""))
    problem = "" if "dds_profile" in given else shared_memory_problem(variables)
    node = LifecycleNode(
        package="semla_ros",
        executable="perception",
        name=given.get("node_name", "perception"),
        namespace=given.get("namespace", ""),
        output="screen",
        respawn=given.get("use_respawn", "").lower() == "true",
        respawn_delay=2.0,
        emulate_tty=True,
        parameters=[*filter(None, (file, parameters))],
        remappings=[(name, given[f"{name}_topic"]) for name in ("image", "camera_info") if f"{name}_topic" in given],
        arguments=["--ros-args", "--log-level", given["log_level"]] if "log_level" in given else [],
        additional_env={} if problem else variables,
    )
    return [LogInfo(msg=problem), node] if problem else [node]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(
            name,
            default_value=default,
            description=description,
            choices=["", "true", "false", "True", "False"] if name in SWITCHES else None,
        )
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=make_node)])
