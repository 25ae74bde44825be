"""What a robot does not need is not imported: each check runs in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from semla_ros.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    *("timm", "torchvision", "transformers", "peft", "open_clip", "matplotlib", "scipy", "huggingface_hub"),
    *("torch._dynamo", "sympy", "onnx", "onnxruntime", "openvino", "ray", "av", "semla_ros.lab"),
)

MASKS = """
import numpy as np
from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import Frame

pipeline = PerceptionPipeline.load(SemlaConfig(inference=InferenceConfig(device="cpu", engine="torch")))
image = np.random.default_rng(0).integers(0, 256, (192, 256, 3), dtype=np.uint8)
result, step = pipeline.process(Frame(image=image, stamp_ns=0))
assert step.error is None, step.error
assert step.latency_ms["embed"] > 0
assert result.mask.shape == (192, 256)
pipeline.close()
"""


def imported_by(source: str, *names: str) -> list[str]:
    """Those of `names` that a fresh interpreter has imported once it has run `source`, also without their own name."""
    check = f"\nimport sys\nprint('imported:', *(name for name in {names!r} if name in sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", source + check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.rsplit("imported:", 1)[1].split()


def test_the_check_finds_an_import() -> None:
    assert imported_by("import json", "json", "torch") == ["json"]


def test_the_shipped_model_adapts_and_gives_masks_without_what_training_and_reports_need() -> None:
    assert imported_by(MASKS, *HEAVY) == []


@pytest.mark.ros
def test_importing_the_node_brings_nothing_of_it_either() -> None:
    pytest.importorskip("rclpy", reason="needs rclpy")
    assert imported_by("import semla_ros.nodes.perception_node, semla_ros.pipeline", *HEAVY) == []


def test_help_of_every_command_and_what_lists_files_load_no_torch() -> None:
    lists = [["library", "list"], ["fetch", "--list"], ["engine", "list"]]
    lines = [["--help"], ["--version"], *lists, *([name, "--help"] for name in COMMANDS)]
    source = f"""
import contextlib, io, sys
from semla_ros.cli import main

for arguments in {lines!r}:
    with contextlib.redirect_stdout(io.StringIO()) as answer, contextlib.suppress(SystemExit):
        assert main(arguments) == 0
    assert answer.getvalue(), arguments
    assert "torch" not in sys.modules, arguments
"""
    assert imported_by(source, "torch") == []


@pytest.mark.ros
@pytest.mark.parametrize(("module", "needed"), [("diagnostics_listener", "rclpy"), ("view_bridge", "foxglove")])
def test_status_and_view_listen_without_torch(module: str, needed: str) -> None:
    for package in ("rclpy", needed):
        pytest.importorskip(package, reason=f"needs {package}")
    assert imported_by(f"import semla_ros.nodes.{module}", "torch", *HEAVY) == []
