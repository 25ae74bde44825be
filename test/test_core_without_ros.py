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
# Where a command or the lab meets ROS on purpose: imported in a function, only when it is asked for.
MEETS_ROS_LATE = {"commands/replay.py", "commands/status.py", "commands/view.py", "lab/demo/run.py"}
# Nodes that stand in the lab; nothing imports them but the commands above, late, and each other.
NODES_OF_THE_LAB = {"lab/demo/demo_monitor.py", "lab/demo/scene_camera_node.py", "lab/replay/through_node.py"}
CORE_MODULES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if PACKAGE / "nodes" not in path.parents and str(path.relative_to(PACKAGE)) not in NODES_OF_THE_LAB
)


def imported_packages(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def node_modules(source: str, *, at_module_level: bool) -> set[str]:
    """Modules of `semla_ros.nodes` that a source imports; at module level, or anywhere."""
    tree = ast.parse(source)
    names = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            is_package = node.module in ("semla_ros", "semla_ros.nodes")
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if is_package else {node.module}
        if at_module_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if at_module_level and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
    nodes_of_the_lab = {f"semla_ros.{path[:-3].replace('/', '.')}" for path in NODES_OF_THE_LAB}
    return {name for name in names if f"{name}.".startswith("semla_ros.nodes.") or name in nodes_of_the_lab}


def test_the_check_finds_an_import_of_the_nodes() -> None:
    early = "if True:\n    from semla_ros.nodes import outputs"
    late = "def f():\n    from semla_ros.nodes.outputs import x"
    assert node_modules(early, at_module_level=True) == {"semla_ros.nodes.outputs"}
    assert node_modules(late, at_module_level=True) == set()
    assert node_modules(late, at_module_level=False) == {"semla_ros.nodes.outputs"}


@pytest.mark.parametrize("module", CORE_MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_core_module_imports_the_nodes_only_where_it_is_listed(module: Path) -> None:
    name, source = str(module.relative_to(PACKAGE)), module.read_text(encoding="utf-8")
    assert node_modules(source, at_module_level=True) == set()
    assert bool(node_modules(source, at_module_level=False)) == (name in MEETS_ROS_LATE)


def test_the_check_finds_an_import_of_ros() -> None:
    assert imported_packages("def f():\n    from rclpy.node import Node") & ROS_PACKAGES == {"rclpy"}


@pytest.mark.parametrize("module", CORE_MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_core_module_imports_no_ros(module: Path) -> None:
    assert not imported_packages(module.read_text(encoding="utf-8")) & ROS_PACKAGES
