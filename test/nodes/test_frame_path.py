"""What an image meets between its callback and its mask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from semla_ros.lab.isolation import free_domain, isolated_environment

pytest.importorskip("rclpy")
ROOT = Path(__file__).resolve().parents[2]
GROUND = {"image_codec", "image_samples", "results", "timing"}
PATH = {
    "serving/frame_loop", "serving/camera_statistics", "serving/model_bank", "pipeline", "adaptation/background",
    "adaptation/swap_gate", "nodes/messages", "nodes/outputs",
}  # fmt: skip


def test_an_image_meets_few_modules_and_lines_and_another_one_is_a_decision() -> None:
    command = [sys.executable, str(ROOT / "tools" / "frame_path.py"), "--json"]
    environment = isolated_environment(free_domain()) | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    lines = json.loads(run.stdout.splitlines()[-1])
    assert set(lines) - GROUND == PATH
    assert sum(lines.values()) <= 170  # 152, and what guards sizes and notices a hang
