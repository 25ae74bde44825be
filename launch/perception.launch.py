"""The perception node. `ros2 launch semla_ros perception.launch.py --show-args` lists the arguments."""

from __future__ import annotations

from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from launch import Action, LaunchContext, LaunchDescription

SHARE = Path(__file__).resolve().parents[1]
ARGUMENTS = (
    ("namespace", "", "Namespace of the node and its topics"),
    ("use_sim_time", "false", "Take the time from /clock, as with a recording"),
    ("params_file", str(SHARE / "config" / "perception.yaml"), "Parameter file; the arguments below count before it"),
    ("respawn", "false", "Start the node again 2 s after it ended by itself, as watchdog_s lets it"),
    ("autostart", "true", "Configure and activate without a lifecycle manager"),
    ("log_level", "info", "debug, info, warn or error"),
    ("image_topic", "image", "Topic of the camera's images"),
    ("camera_info_topic", "camera_info", "Topic of the camera's calibration"),
    ("image_transport", "", "raw or compressed (then <image_topic>/compressed is taken); empty: as in params_file"),
    ("cameras", "", "Names of several cameras, with commas; each has <name>/image; empty: as in params_file"),
    ("model", "", "Model id or path; empty: as in params_file"),
    ("library", "", "Adapter library folder; empty: as in params_file"),
    ("device", "", "auto, cpu, cuda or cuda:<index>; empty: as in params_file"),
    ("engine", "", "auto, torch, onnx, openvino or tensorrt; empty: as in params_file"),
    ("dds_profile", str(SHARE / "config" / "fastdds.xml"), "Fast DDS profile for large images; empty: none"),
)


def make_node(context: LaunchContext) -> list[Action]:
    def value_of(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters = [
        value_of("params_file"),
        {"use_sim_time": value_of("use_sim_time").lower() == "true"},
        {"autostart": value_of("autostart").lower() == "true"},
    ]
    given = {
        name: value_of(name) for name in ("model", "library", "device", "engine", "image_transport") if value_of(name)
    }
    if value_of("cameras"):
        given["cameras"] = [name.strip() for name in value_of("cameras").split(",") if name.strip()]
    if given:
        parameters.append(given)
    actions: list[Action] = []
    if value_of("dds_profile"):
        # The first name is Humble's and Jazzy's, the second one that of later distributions.
        variables = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
        actions += [SetEnvironmentVariable(variable, value_of("dds_profile")) for variable in variables]
    actions.append(
        LifecycleNode(
            package="semla_ros",
            executable="perception",
            name="perception",
            namespace=value_of("namespace"),
            output="screen",
            respawn=value_of("respawn").lower() == "true",
            respawn_delay=2.0,
            emulate_tty=True,
            parameters=parameters,
            remappings=[
                ("image", value_of("image_topic")),
                ("camera_info", value_of("camera_info_topic")),
            ],
            arguments=["--ros-args", "--log-level", value_of("log_level")],
        )
    )
    return actions


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=make_node)])
