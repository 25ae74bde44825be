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
    ("cameras", "front,left,right", "Names of the cameras, with commas"),
    ("namespace", "", "Namespace of the node and its topics"),
    ("use_sim_time", "false", "Take the time from /clock, as with a recording"),
    ("params_file", str(HERE.parent / "config" / "perception.yaml"), "Parameter file"),
    ("model", "", "Model id or path; empty: as in params_file"),
    ("library", "", "Adapter library folder; empty: as in params_file"),
    ("device", "", "auto, cpu, cuda or cuda:<index>; empty: as in params_file"),
    ("image_transport", "", "raw or compressed; empty: as in params_file"),
    ("respawn", "false", "Start the node again 2 s after it ended by itself, as watchdog_s lets it"),
    ("log_level", "info", "debug, info, warn or error"),
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
