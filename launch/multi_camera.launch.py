"""One perception node for several cameras: <camera>/image in, perception/<camera>/mask out.

Example: `ros2 launch semla_ros multi_camera.launch.py cameras:=front,left,right namespace:=car`
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription

HERE = Path(__file__).resolve().parent
PASSED_ON = (
    ("cameras", "front,left,right", "Cameras, with commas: <name> for <name>/image, or <name>=<topic>"),
    ("namespace", "", "Namespace of the node and its topics"),
    ("node_name", "perception", "Name of the node, below which its own topics stand"),
    ("params_file", "", "Parameter file; the arguments count before it"),
    ("use_sim_time", "", "true or false: take the time from /clock, as with a recording"),
    ("autostart", "", "true or false: configure and activate without a lifecycle manager"),
    ("use_respawn", "false", "true or false: start the node again 2 s after it ended by itself, as watchdog_s lets it"),
    ("log_level", "", "debug, info, warn or error; also <logger>:=<level>"),
    ("image_transport", "", "raw or compressed"),
    ("model", "", "Model id or path"),
    ("library", "", "Adapter library folder"),
    ("device", "", "auto, cpu, cuda or cuda:<index>"),
)


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in PASSED_ON
    ]
    include = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(HERE / "perception.launch.py")),
        launch_arguments={name: LaunchConfiguration(name) for name, _, _ in PASSED_ON}.items(),
    )
    return LaunchDescription([*declared, include])
