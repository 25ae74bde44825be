"""ROS stays at the rim: nothing outside `semla_ros/nodes/` may import it."""

import ast
from pathlib import Path

import pytest

import semla_ros

PACKAGE = Path(semla_ros.__file__).parent
ROS_PACKAGES = {
    "ament_index_python", "builtin_interfaces", "cv_bridge", "diagnostic_msgs", "diagnostic_updater", "launch",
    "launch_ros", "lifecycle_msgs", "message_filters", "rcl_interfaces", "rclpy", "rosbag2_py", "rosgraph_msgs",
    "sensor_msgs", "std_msgs", "std_srvs", "vision_msgs",
}  # fmt: skip
CORE_MODULES = sorted(path for path in PACKAGE.rglob("*.py") if PACKAGE / "nodes" not in path.parents)


def imported_packages(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_check_finds_an_import_of_ros() -> None:
    assert imported_packages("def f():\n    from rclpy.node import Node") & ROS_PACKAGES == {"rclpy"}


@pytest.mark.parametrize("module", CORE_MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_core_module_imports_no_ros(module: Path) -> None:
    assert not imported_packages(module.read_text(encoding="utf-8")) & ROS_PACKAGES
