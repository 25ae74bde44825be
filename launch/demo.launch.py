"""A camera that drives through changing weather, and the perception node that adapts to it, to look at with RViz or
Foxglove. `semla demo` measures such a drive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node

from launch import Action, LaunchContext, LaunchDescription
from semla_ros.serving.dds_profile import profile_variables

PERCEPTION = (
    ("model", "", str, "Model id or path; empty: the shipped one"),
    ("library", "", str, "Adapter library folder; empty: the one shipped with the model"),
    ("threads", "", int, "CPU threads of the model; empty: the node's default"),
    ("retrieval_rate_hz", "", float, "Scene embeddings per second of image time; empty: as the library recommends"),
    ("steady_s", "", float, "Time constant of a steady scene, seconds; empty: as the library recommends"),
    ("max_fusions_per_min", "", float, "Cap on fusions per minute; empty: as the library recommends"),
)
CAMERA = (
    ("city", "boulevard", str, "City of the drive"),
    ("seed", "7", int, "Seed of the street's layout"),
    ("rate_hz", "10.0", float, "Images per second"),
    ("width", "256", int, "Pixels per row"),
    ("height", "192", int, "Rows"),
    ("duration_s", "90.0", float, "Length of the drive, seconds"),
    ("frame_id", "demo_camera", str, "tf frame in the headers"),
    ("wait_for_subscribers", "1", int, "Subscriptions to the images before the drive starts"),
    ("loop", "false", lambda text: text.lower() == "true", "Start over at the end"),
)


def make_nodes(context: LaunchContext) -> list[Action]:
    def values(table: tuple[tuple[str, str, Callable[[str], Any], str], ...]) -> dict[str, Any]:
        texts = {name: (LaunchConfiguration(name).perform(context), kind) for name, _, kind, _ in table}
        return {name: kind(text) for name, (text, kind) in texts.items() if text}

    variables = profile_variables(context.environment)
    perception = LifecycleNode(
        package="semla_ros",
        executable="perception",
        name="perception",
        namespace="",
        output="screen",
        parameters=[values(PERCEPTION)] if values(PERCEPTION) else [],
        additional_env=variables,
    )
    camera = Node(
        package="semla_ros",
        executable="scene_camera",
        name="scene_camera",
        output="screen",
        parameters=[values(CAMERA)],
        additional_env=variables,
    )
    return [perception, camera]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, _, description in (*PERCEPTION, *CAMERA)
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=make_nodes)])
