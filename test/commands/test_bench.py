"""Each benchmark runs at toy size and writes its figures; none of them is a timed test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from semla_ros.cli import main

ROOT = Path(__file__).resolve().parents[2]


def measured(name: str, tmp_path: Path, *options: str) -> dict[str, Any]:
    """Run one benchmark by the command and return its part of summary.json."""
    assert main(["bench", name, "--size", "toy", "--out", str(tmp_path), "--json", *options]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["machine"]["versions"]["torch"]
    assert summary[name]["size"] == "toy"
    figures: dict[str, Any] = summary[name]
    return figures


def test_fusion_is_exact_and_compared_with_peft_and_a_copy(tmp_path: Path) -> None:
    figures = measured("fusion", tmp_path, "--repeats", "2")
    assert figures["largest_relative_error"] <= 1e-6
    assert figures["speedup_vs_peft"] > 0
    assert figures["times_copy"] > 0
    assert figures["fuse"]["runs"] == 2
    assert figures["endurance"]["is_bit_identical"]
    assert figures["by_threads"][str(figures["threads"])]["times_copy"] == figures["times_copy"]


def test_a_frame_gives_the_same_maps_as_the_published_loop(tmp_path: Path) -> None:
    figures = measured("frame", tmp_path, "--repeats", "2")
    assert figures["largest_difference"] <= 5e-5
    assert figures["speedup_vs_published_loop"] > 0
    assert {"embed", "retrieve", "fuse", "text", "forward", "delete"} == set(figures["published_loop_split_ms"])
    assert figures["speedup_of_running_pipeline"] > 0
    fastest = min(row["published_loop"]["median_ms"] for row in figures["by_threads"].values())
    assert figures["published_loop"]["median_ms"] == fastest
    assert set(figures["by_classes_ms"]) == {"11", "19", "65", "150"}
    assert "1920x1080" in figures["by_resolution_ms"]
    # The published loop embeds in torch whatever serves us.
    assert figures["scene_encoder"] == "torch" or figures["scene_encoder"].endswith("(scene_encoder)")
    assert figures["speedup_in_torch_alone"] > 0


def test_every_runtime_of_the_scene_encoder_is_compared_with_torch(tmp_path: Path) -> None:
    figures = measured("engines", tmp_path, "--repeats", "2")
    assert figures["onnx"]["cosine"] > 0.9999
    assert figures["onnx"]["speedup"] == pytest.approx(figures["torch"]["median_ms"] / figures["onnx"]["median_ms"])
    assert figures["onnx"]["passes_parity"]
    assert figures["fastest"] in figures


def test_stalls_are_measured_with_fusions_under_way(tmp_path: Path) -> None:
    figures = measured("stall", tmp_path, "--seconds", "1.2")
    assert figures["fusions"] >= 1
    assert figures["commit_over_median_frame"] > 0
    assert figures["p99_ratio"] > 0
    assert sum(figures["histogram_ms"]["alone"]["counts"]) == figures["alone"]["runs"]
    assert (tmp_path / "stall.png").stat().st_size > 1000


def test_retrieval_and_memory_are_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    figures = measured("retrieval", tmp_path, "--adapters", "30")
    assert figures["rss_ratio_at_30"] == pytest.approx(1.0, abs=0.1)
    assert "extra_ms_at_30" in figures
    assert set(figures["by_adapters"]) == {"10", "30"}


def test_the_start_is_measured_in_its_parts_and_against_another_checkout(tmp_path: Path) -> None:
    figures = measured("start", tmp_path, "--repeats", "1", "--against", str(ROOT))
    for row in (figures, figures["against"]):
        assert set(row["parts_ms"]) == {"imports", "load", "warm_up", "first_mask"}
        assert sum(row["parts_ms"].values()) == pytest.approx(row["start"]["median_ms"])
        assert row["resident_mib"] > 100
    assert figures["speedup"] == pytest.approx(figures["against"]["start"]["median_ms"] / figures["start"]["median_ms"])


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "start", "--against", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no semla_ros" in capsys.readouterr().err


def test_the_node_is_compared_with_the_pipeline_alone(
    tmp_path: Path, tiny_model_folder: Path, tiny_library_folder: Path
) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy")
    # A process of its own: the benchmark sets the ROS environment of its process.
    command = [sys.executable, "-m", "semla_ros.cli", "bench", "node", "--size", "toy", "--seconds", "1"]
    command += ["--model", str(tiny_model_folder), "--library", str(tiny_library_folder), "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "node.throughput_ratio" in answer.stdout
    figures = json.loads((tmp_path / "summary.json").read_text())["node"]
    assert figures["throughput_ratio"] == pytest.approx(figures["node_hz"] / figures["pipeline_hz"])
    assert figures["node_hz"] > 0


def test_every_way_of_transport_is_measured_against_what_is_shipped(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy")
    figures = measured("transport", tmp_path, "--seconds", "0.5")
    assert set(figures["fill_ms"]) == {"array", "bytes", "numpy"}
    for row in ("as_shipped", "without_malloc_thresholds", "without_fastdds_profile"):
        assert figures[row]["sent"] == 15
        assert figures[row]["received"] == figures[row]["answered"] + figures[row]["overtaken"]
        assert figures[row]["answered"] > 0
        assert figures[row]["node_cpu_ms_per_image"] > 0
    assert figures["lost"] == figures["as_shipped"]["sent"] - figures["as_shipped"]["answered"]


def test_figures_of_an_earlier_run_are_kept(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"fusion": {"times_copy": 3.0}}))
    measured("stall", tmp_path, "--seconds", "0.1")
    assert json.loads((tmp_path / "summary.json").read_text())["fusion"] == {"times_copy": 3.0}


def test_an_unknown_benchmark_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed", "--out", str(tmp_path / "out")]) == 2
    assert "unknown benchmark 'speed'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
