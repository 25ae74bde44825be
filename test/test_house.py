"""The house: robot below, laboratory above; ROS in `nodes/` alone; no import that runs up, no circle."""

import ast
import re
from pathlib import Path

import house
import pytest

from semla_ros.segmentation.registry import OWN_KINDS

ROS_PACKAGES = {
    "ament_index_python", "bond", "builtin_interfaces", "cv_bridge", "diagnostic_msgs", "diagnostic_updater", "launch",
    "launch_ros", "lifecycle_msgs", "message_filters", "rcl_interfaces", "rclpy", "rosbag2_py", "rosgraph_msgs",
    "sensor_msgs", "std_msgs", "std_srvs", "vision_msgs",
}  # fmt: skip
# Where a command or the lab meets ROS on purpose: imported in a function, only when it is asked for.
MEETS_ROS_LATE = {"commands.replay", "commands.status", "commands.view", "lab.demo.run"}
# Nodes that stand in the lab; nothing imports them but those above, late.
NODES_OF_THE_LAB = {"lab.demo.scene_camera_node", "lab.replay.live_node", "lab.replay.through_node"}
FILES = house.modules(house.ROOT)
GRAPH = house.module_graph(house.ROOT)
MODULES = sorted(name for name in FILES if name)


def imports_ros(source: str) -> bool:
    return any(module.split(".")[0] in ROS_PACKAGES for module, _ in house.imports(source))


def imports_at_start(source: str) -> str:
    """The source without its functions and classes' methods: what an import of the module runs."""
    tree = ast.parse(source)

    class WithoutFunctions(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            return ast.Pass()

        visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    return ast.unparse(WithoutFunctions().visit(tree))


def stands_in_nodes(module: str) -> bool:
    return module == "nodes" or module.startswith("nodes.")


def tree(root: Path, **sources: str) -> Path:
    for name, source in sources.items():
        path = root / house.PACKAGE / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def test_every_room_has_its_place_in_the_order() -> None:
    placed = {name for names in house.ORDER for name in names}
    rooms = {house.room(name) for name in MODULES} - {"lab"}  # the package `lab` itself holds nothing
    assert rooms - placed == set()
    assert {name for name in placed - rooms if name not in house.GROUND.split()} == set()


def test_nothing_of_the_robot_imports_the_lab_or_the_commands() -> None:
    assert house.upward(GRAPH) == []


@pytest.mark.parametrize("room", sorted({house.room(name) for name in MODULES}))
def test_a_room_imports_only_from_those_below_it(room: str) -> None:
    found = house.against_the_order(GRAPH)
    assert [(name, target) for name, target in found if house.room(name) == room] == []


def test_no_modules_and_no_rooms_import_each_other_in_a_circle() -> None:
    assert house.circles(GRAPH) == []
    assert house.circles(house.room_graph(GRAPH)) == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("nodes.")])
def test_what_stands_in_nodes_imports_ros(module: str) -> None:
    assert imports_ros(FILES[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", [name for name in MODULES if not stands_in_nodes(name)])
def test_what_stands_elsewhere_imports_no_ros_and_no_nodes_but_where_it_is_listed(module: str) -> None:
    if module in NODES_OF_THE_LAB:
        return
    source = FILES[module].read_text(encoding="utf-8")
    assert not imports_ros(source)
    nodes = {target for target in GRAPH[module] if stands_in_nodes(target) or target in NODES_OF_THE_LAB}
    assert bool(nodes) == (module in MEETS_ROS_LATE), nodes
    at_start = {f"{name}.{item}" for name, item in house.imports(imports_at_start(source))}
    assert not any(name.startswith(f"{house.PACKAGE}.{node}") for name in at_start for node in ("nodes", *nodes))


def names_a_model_s_class(module: str, source: str) -> bool:
    """Whether a module outside `segmentation` names the class or the module of a kind that the registry knows."""
    named = [part.replace(".", r"\.") for kind in OWN_KINDS.values() for part in kind.split(":")]
    return house.room(module) != "segmentation" and bool(re.search(rf"\b({'|'.join(named)})\b", source))


@pytest.mark.parametrize("module", MODULES)
def test_nothing_outside_segmentation_names_a_model_s_class(module: str) -> None:
    assert not names_a_model_s_class(module, FILES[module].read_text(encoding="utf-8"))


def test_the_lines_of_the_rooms_are_all_that_there_are() -> None:
    counts = house.room_lines(house.ROOT)
    assert counts["nodes"] == sum(house.lines(FILES[name]) for name in FILES if stands_in_nodes(name))
    assert counts["beside the folders"] > house.lines(FILES["config"])
    assert counts.total() == sum(map(house.lines, FILES.values()))


def test_each_rule_finds_what_breaks_it(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        engines__torch_engine="def f():\n    from semla_ros.lab.world import render",
        lab__world__render="from semla_ros import labels",
        labels="from semla_ros.library.manifest import read",
        library__manifest="import semla_ros.segmentation.clip",
        segmentation__clip="from semla_ros.library import manifest",
        serving__model_bank="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from semla_ros import cli",
        cli="from semla_ros.serving.model_bank import Bank",
    )
    graph = house.module_graph(root)
    assert house.upward(graph) == [("engines.torch_engine", "lab.world.render")]
    assert ("labels", "library.manifest") in house.against_the_order(graph)
    assert ("segmentation.clip", "library.manifest") in house.against_the_order(graph)
    assert house.circles(graph) == [["library.manifest", "segmentation.clip"]]
    assert house.floors(house.room_graph(graph)) == 4  # engines, lab.world, labels, library with segmentation
    for source in ("from semla_ros.segmentation.sed import SedConfig", "model: CatSeg"):
        assert names_a_model_s_class("engines.torch_engine", source)
        assert not names_a_model_s_class("segmentation.model", source)
    assert not names_a_model_s_class("engines.torch_engine", "a SegmentationModel, be it CAT-Seg")
    assert imports_ros("def f():\n    from rclpy.node import Node")
    assert not imports_ros("import rclpython")
    late = "import numpy\nclass A:\n    def f(self):\n        from semla_ros.nodes import outputs"
    assert list(house.imports(imports_at_start(late))) == [("numpy", "")]
