"""What each measure for fast transport is worth: how a message is filled, malloc's thresholds, the Fast DDS profile.

Full HD images at 30 Hz go from one process to the real node in another one, on the tests' costless model; then the same
without the malloc thresholds in the node, and without the profile on both sides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.children import Children
from bench.random_world import Size
from bench.timing import time_runs
from semla_ros.errors import SemlaError
from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.resources import share_folder

FULL_HD, TOY = (1080, 1920), (120, 160)
RATE_HZ = 30.0
WITHOUT_PROFILE = {"FASTRTPS_DEFAULT_PROFILES_FILE": "", "FASTDDS_DEFAULT_PROFILES_FILE": ""}
# Row -> environment variables of the node, and of both sides.
ROWS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "as_shipped": ({}, {}),
    "without_malloc_thresholds": ({"TEST_WITHOUT_MALLOC_TUNING": "1"}, {}),
    "without_fastdds_profile": ({}, WITHOUT_PROFILE),
}


def measure(model_size: Size, seconds: float = 10.0) -> dict[str, object]:
    """Figures for `transport`; at toy size, for tests, with small images."""
    size = TOY if model_size == "toy" else FULL_HD
    rows = {name: _run(node, both, round(seconds * RATE_HZ), size) for name, (node, both) in ROWS.items()}
    shipped = rows["as_shipped"]
    return {
        "image": list(size),
        "rate_hz": RATE_HZ,
        "fill_ms": _fill(size),
        **rows,
        "lost": shipped["sent"] - shipped["answered"],
    }


def _fill(size: tuple[int, int]) -> dict[str, float]:
    """Milliseconds to put an image into a message: through array.array as the node does, and in the obvious ways."""
    from sensor_msgs.msg import Image

    from semla_ros.nodes.messages import byte_array

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    message = Image()

    def fill(data: Any) -> None:
        message.data = data

    ways = {
        "array": lambda: fill(byte_array(pixels)),
        "bytes": lambda: fill(pixels.tobytes()),
        "numpy": lambda: fill(pixels.reshape(-1)),
    }
    return {name: time_runs(way, 3).median for name, way in ways.items()}


def _run(node: dict[str, str], both: dict[str, str], images: int, size: tuple[int, int]) -> dict[str, Any]:
    """Send images at the rate to a costless node; what became of them, and the node's processor time for each."""
    environment = isolated_environment(free_domain()) | {"OMP_NUM_THREADS": "1"} | both
    environment = {key: value for key, value in environment.items() if value or key not in both}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(share_folder()), environment.get("PYTHONPATH", "")]))
    costless = str(share_folder() / "test" / "helpers" / "costless_node.py")
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        child = children.start(
            "perception node", [sys.executable, costless], environment | node, Path(folder) / "perception.log"
        )
        camera = [sys.executable, "-m", "bench.transport_camera", str(child.pid), str(images), str(RATE_HZ)]
        answer = subprocess.run(
            [*camera, *map(str, size)], env=environment, capture_output=True, text=True, check=False
        )
        children.check()
        if answer.returncode:
            raise SemlaError(f"the camera of the transport benchmark ended with an error:\n{answer.stderr}")
    figures: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return figures
