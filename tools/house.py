#!/usr/bin/env python3
"""Measure the structure of the package from its imports: rooms, storeys, circles, and what the robot loads.

    tools/house.py                        # this tree
    tools/house.py --against OTHER_TREE   # beside another checkout
    tools/house.py --rooms                # the lines of each room instead

A room is a folder of `semla_ros`, or of its `lab`, or a module that stands beside the folders. Imports count wherever
they stand, in functions too, but not those for type checkers alone. `test/test_house.py` holds the rules.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PACKAGE = "semla_ros"
ROOT = Path(__file__).resolve().parents[1]
GROUND = (
    "errors results timing config resources labels image_codec image_samples image_bytes image_files codec_warnings "
    "file_integrity atomic_files hub extras interrupts torchvision_compat"
)
# From the ground up; a room imports only from its own and those before it. What stands in one line is one storey.
ORDER = tuple(
    tuple(line.split())
    for line in (
        GROUND,
        "segmentation",
        "library",
        "adaptation",
        "engines",
        "pipeline pipeline_parts pipeline_status",
        "serving",
        "nodes",
        "lab.isolation lab.processes lab.tasks",
        "lab.world",
        "lab.bags",
        "lab.report",
        "lab.evaluation",
        "lab.replay",
        "lab.training",
        "lab.demo",
        "api",
        "commands cli",
        "executables",
    )
)
ABOVE = ("lab", "api", "commands", "cli", "executables")  # all else is the robot
ABOVE_BEFORE = (
    *ABOVE,
    "scenes",
    "training",
    "evaluation",
    "demo",
    "late_fusion",
    "library_index",
)  # 526bec7 and earlier

Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Dotted name below the package -> file; a package's own name is that of its folder."""
    package = root / PACKAGE
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a source, `name` empty for `import module`; not those for type checkers."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        pending += ast.iter_child_nodes(node)


def module_graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports."""
    files = modules(root)
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for module, item in imports(path.read_text(encoding="utf-8")):
            if module != PACKAGE and not module.startswith(f"{PACKAGE}."):
                continue
            base = module[len(PACKAGE) + 1 :]
            full = f"{base}.{item}".strip(".")
            target = full if full in files else base
            if target in files and target != name:
                graph[name].add(target)
    return graph


def room(module: str) -> str:
    """The room that a module stands in."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "lab" else parts[0]


def room_graph(graph: Graph) -> dict[str, set[str]]:
    """Room -> other rooms that it imports from; the package's own `__init__` is none."""
    rooms: dict[str, set[str]] = {room(name): set() for name in graph if name}
    for name, targets in graph.items():
        if name:
            rooms[room(name)] |= {room(target) for target in targets if target} - {room(name)}
    return rooms


def circles(graph: Graph) -> list[list[str]]:
    """Groups of nodes that import each other, each sorted (strongly connected components of two or more)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], index[target])
        if lowest[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found)


def floors(graph: Graph) -> int:
    """Nodes on the longest way down; those of a circle count as one."""
    head = {node: group[0] for group in circles(graph) for node in group}
    merged: dict[str, set[str]] = {}
    for node, targets in graph.items():
        own = head.get(node, node)
        merged.setdefault(own, set()).update(head.get(target, target) for target in targets)
    depth: dict[str, int] = {}

    def deep(node: str) -> int:
        if node not in depth:
            depth[node] = 1 + max((deep(target) for target in merged.get(node, ()) if target != node), default=0)
        return depth[node]

    return max(map(deep, merged), default=0)


def upward(graph: Graph, above: Iterable[str] = ABOVE) -> list[tuple[str, str]]:
    """Imports of the robot from what stands above it."""
    tops = set(above)
    return sorted(
        (name, target)
        for name, targets in graph.items()
        for target in targets
        if name and target and name.split(".")[0] not in tops and target.split(".")[0] in tops
    )


def against_the_order(graph: Graph) -> list[tuple[str, str]]:
    """Imports from a room that stands higher than the importer's in `ORDER`; rooms that it lacks come first."""
    storey = {name: number for number, names in enumerate(ORDER) for name in names}
    return sorted(
        (name, target)
        for name, targets in graph.items()
        for target in targets
        if name and target and storey.get(room(target), len(ORDER)) > storey.get(room(name), -1)
    )


def lines(path: Path) -> int:
    """Lines of a file, all of them."""
    return len(path.read_text(encoding="utf-8").splitlines())


def loaded(root: Path) -> list[str] | None:
    """Modules of the package in memory once node and pipeline are imported; None where there is no ROS."""
    program = (
        f"import sys, json, {PACKAGE}.pipeline, {PACKAGE}.nodes.perception_node\n"
        f"print(json.dumps([name for name in sys.modules if name.split('.')[0] == '{PACKAGE}']))"
    )
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, env=environment, check=False
    )
    return json.loads(run.stdout) if run.returncode == 0 else None


def measure(root: Path) -> dict[str, str]:
    """What the table shows of one tree."""
    graph, files = module_graph(root), modules(root)
    rooms = room_graph(graph)
    is_before = not (root / PACKAGE / "lab").is_dir()
    names = loaded(root)
    in_memory = [files[name.removeprefix(PACKAGE).lstrip(".")] for name in names or ()]
    return {
        "lines of Python in the package": f"{sum(map(lines, files.values())):,}",
        "modules beside the folders": str(sum("." not in name for name in files if name and files[name].stem == name)),
        "floors (longest chain of rooms)": str(floors(rooms)),
        "circles of rooms": str(len(circles(rooms))),
        "circles of modules": str(len(circles(graph))),
        "imports that run up": str(len(upward(graph, ABOVE_BEFORE if is_before else ABOVE))),
        "modules loaded by node and pipeline": str(len(in_memory)) if names else "not measured: no ROS",
        "their lines": f"{sum(map(lines, in_memory)):,}" if names else "not measured: no ROS",
        "lines of nodes/perception_node.py": f"{lines(root / PACKAGE / 'nodes' / 'perception_node.py'):,}",
    }


def room_lines(root: Path) -> Counter[str]:
    """Room -> lines of Python; what stands beside the folders counts as one."""
    counts: Counter[str] = Counter()
    for name, path in modules(root).items():
        counts[room(name) if path.parent != root / PACKAGE else "beside the folders"] += lines(path)
    return counts


def by_room(trees: Iterable[Path]) -> list[dict[str, str]]:
    """What the table of rooms shows of each tree, the largest rooms first."""
    counts = [room_lines(root) for root in trees]
    rooms = sorted(set().union(*counts), key=lambda name: (-counts[-1][name], name))
    return [{name: f"{count[name]:,}" for name in rooms} for count in counts]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, shown first")
    parser.add_argument("--rooms", action="store_true", help="the lines of each room instead")
    arguments = parser.parse_args()
    trees = {"before": arguments.against.resolve()} if arguments.against else {}
    trees["now"] = ROOT
    figures = by_room(trees.values()) if arguments.rooms else map(measure, trees.values())
    measured = dict(zip(trees, figures, strict=True))
    print("| |" + "".join(f" {label} |" for label in measured))
    print("| --- |" + " ---: |" * len(measured))
    for key in next(iter(measured.values())):
        print(f"| {key} |" + "".join(f" {shown[key]} |" for shown in measured.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
