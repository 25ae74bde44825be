"""What differs between ROS 2 distributions stands in one module, and Humble has a stand-in that the node runs on."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from graph import HERE, Graph, PerceptionClient, wait_for
from humble_node import MODULES
from sensor_msgs.msg import Image

ROOT = Path(__file__).resolve().parents[2]
ON_JAZZY = pytest.mark.skipif(
    not version("rclpy").startswith("7."), reason="the stand-in takes away from Jazzy's rclpy what Humble's lacks"
)
COMPATIBILITY = ROOT / "semla_ros" / "nodes" / "rclpy_compat.py"


def imported(path: Path) -> set[str]:
    """Modules that a file imports, the ones in functions among them."""
    names: set[str] = set()
    for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(item, ast.Import):
            names |= {name.name for name in item.names}
        elif isinstance(item, ast.ImportFrom) and item.module:
            names |= {item.module, *(f"{item.module}.{name.name}" for name in item.names)}
    return names


def test_modules_that_a_distribution_lacks_are_imported_in_one_place_alone() -> None:
    lacking = {f"rclpy.{name}" for name in (*MODULES, "qos_event")}
    assert lacking & imported(COMPATIBILITY)
    files = [*(ROOT / "semla_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    assert [path.name for path in files if path != COMPATIBILITY and lacking & imported(path)] == []


@ON_JAZZY
def test_the_node_serves_on_an_rclpy_that_has_what_humble_s_has(graph: Graph) -> None:
    settings = {"diagnostics.period_s": 0.1, "diagnostics.hardware_id": "humble"}
    process = graph.start(str(HERE / "humble_node.py"), namespace="humble", **settings)
    client = PerceptionClient(graph, "humble")
    client.wait_for_state("active")
    masks = graph.collect(Image, f"{client.prefix}/mask")
    image = client.send(client.image(1))
    wait_for(lambda: masks, "a mask")
    assert masks[0].header == image.header
    assert client.set_parameters(top_k=2).successful
    assert client.transition("deactivate")
    assert client.transition("activate")
    client.wait_for_message("camera", "no image")
    assert process.stop() == 0, process.output


@ON_JAZZY
def test_the_stand_in_has_not_what_humble_lacks() -> None:
    tries = "".join(
        f"try:\n    import rclpy.{name}\nexcept ModuleNotFoundError:\n    print('{name}')\n" for name in MODULES
    )
    program = f"import humble_node\nhumble_node.become_humble()\n{tries}import rclpy.qos_event\n"
    answer = subprocess.run([sys.executable, "-c", program], cwd=HERE, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == list(MODULES)
