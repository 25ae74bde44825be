"""A recording played to the perception node, whose answers are recorded beside it.

    ros2 launch semla_ros replay.launch.py bag:=out/demo-bag image_topic:=/front/image output:=out/masks

Plays in real time, so images may be dropped and two runs may differ. `semla replay` needs no ROS, drops nothing and
gives the same masks every time.
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import Action, LaunchContext, LaunchDescription
from semla_ros.serving.dds_profile import profile_variables

HERE = Path(__file__).resolve().parent
ARGUMENTS = (
    ("bag", None, "Recording to play"),
    ("output", "", "Folder of the new recording; empty: none is made"),
    ("rate", "1.0", "Speed of the player, times real time"),
    ("start_delay_s", "10.0", "Time that the node gets to load its model before the player starts"),
    ("namespace", "", "Namespace of the node and its topics"),
    ("params_file", "", "Parameter file; the arguments count before it"),
    ("image_topic", "", "Topic of the camera's images in the recording; empty: image"),
    (
        "camera_info_topic",
        "",
        "Topic of the camera's calibration in the recording; empty: camera_info beside the images",
    ),
    ("image_transport", "", "raw or compressed (then <image_topic>/compressed is taken)"),
    ("cameras", "", "Several cameras, with commas: <name> for <name>/image, or <name>=<topic>"),
    ("model", "", "Model id or path; empty: the shipped one"),
    ("library", "", "Adapter library folder; empty: the one shipped with the model"),
    ("device", "", "auto, cpu, cuda or cuda:<index>"),
    ("log_level", "", "debug, info, warn or error; also <logger>:=<level>"),
)
PASSED_ON = (
    "namespace", "params_file", "image_topic", "camera_info_topic", "image_transport", "cameras", "model", "library",
    "device", "log_level",
)  # fmt: skip


def make_processes(context: LaunchContext) -> list[Action]:
    def value_of(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    variables = profile_variables(context.environment)
    player = ExecuteProcess(
        cmd=[
            "ros2", "bag", "play", value_of("bag"), "--clock", "100",
            "--rate", value_of("rate"), "--delay", value_of("start_delay_s"),
        ],
        name="player",
        output="screen",
        additional_env=variables,
    )  # fmt: skip
    perception = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(HERE / "perception.launch.py")),
        launch_arguments={"use_sim_time": "true", **{name: value_of(name) for name in PASSED_ON}}.items(),
    )
    actions: list[Action] = [perception, player]
    if value_of("output"):
        prefix = f"/{value_of('namespace').strip('/')}" if value_of("namespace").strip("/") else ""
        actions.append(
            ExecuteProcess(
                cmd=[
                    "ros2", "bag", "record", "--storage", "mcap", "--output", value_of("output"), "--use-sim-time",
                    "--regex", f"{prefix}/perception/.*|/diagnostics",
                ],
                name="recorder",
                output="screen",
                additional_env=variables,
            )
        )  # fmt: skip
    end = OnProcessExit(target_action=player, on_exit=[EmitEvent(event=Shutdown(reason="the recording has ended"))])
    return [*actions, RegisterEventHandler(end)]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, description=description)
        if default is None
        else DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=make_processes)])
