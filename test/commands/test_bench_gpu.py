"""The acceptance run on a GPU: its harness with phases that crash and hang, its phases at toy size on the CPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.gpu import BUDGETS_S, GOALS, LIMIT_S, Phase, markdown, run_phase
from bench.gpu_phases import PHASES, _card
from bench.graphs import counted_graphs, no_graphs
from bench.report import look_up
from bench.timing import clock_of, wall_clock
from semla_ros.cli import main

ROOT = Path(__file__).resolve().parents[2]
WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{\"rate\": 3}')\n"


def phase_of(tmp_path: Path, code: str, budget_s: float = 30.0) -> dict[str, Any]:
    return run_phase(Phase("trial", [sys.executable, "-c", WRITES + code], budget_s), tmp_path)


def dry_run(tmp_path: Path, *phases: str) -> dict[str, Any]:
    assert main(["bench", "gpu", "--dry", "--out", str(tmp_path), "--only", *phases]) == 0
    summary: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())
    return summary["phases"]


def test_the_budgets_of_all_phases_stay_below_the_limit() -> None:
    assert BUDGETS_S.keys() == PHASES.keys()
    assert sum(BUDGETS_S.values()) < LIMIT_S == 8 * 60


def test_phases_that_overrun_leave_the_later_ones_what_is_left_of_the_limit(tmp_path: Path, monkeypatch) -> None:
    clock, given = [0.0], []

    def hang(phase: Phase, out: Path) -> dict[str, Any]:
        given.append(phase.budget_s)
        clock[0] += phase.budget_s + 2  # to end it takes its time, too
        return {"status": "stopped", "seconds": phase.budget_s}

    monkeypatch.setattr("bench.gpu.run_phase", hang)
    monkeypatch.setattr("bench.gpu.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert main(["bench", "gpu", "--out", str(tmp_path)]) == 1
    assert len(given) == len(BUDGETS_S)
    assert clock[0] <= LIMIT_S + 2


def test_a_phase_that_ends_leaves_its_figures(tmp_path: Path) -> None:
    assert phase_of(tmp_path, "") == {"status": "done", "seconds": pytest.approx(1, abs=29), "rate": 3}


def test_a_phase_that_crashes_says_why_and_keeps_what_it_had_measured(tmp_path: Path) -> None:
    answer = phase_of(tmp_path, "raise RuntimeError('CUDA error: misaligned address')")
    assert answer["rate"] == 3
    assert answer["status"] == "failed with status 1: RuntimeError: CUDA error: misaligned address; see trial.log"
    assert "Traceback" in (tmp_path / "trial.log").read_text()
    assert phase_of(tmp_path, "import os; os.abort()")["status"].startswith("failed with status -6")


def test_a_phase_that_hangs_is_ended_with_what_it_started_and_keeps_what_it_had_measured(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, time, pathlib\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    answer = phase_of(tmp_path, code, budget_s=3.0)
    assert time.monotonic() - start < 20
    assert answer["status"] == "stopped: over its budget of 3 s"
    assert answer["rate"] == 3
    stat = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    deadline = time.monotonic() + 5.0  # a process that was killed still has to be scheduled once, on a busy machine
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_figures_of_an_earlier_run_are_not_taken_for_those_of_a_phase_that_left_none(tmp_path: Path) -> None:
    phase_of(tmp_path, "")
    answer = run_phase(Phase("trial", [sys.executable, "-c", "raise SystemExit(3)"], 30.0), tmp_path)
    assert answer["status"] == "failed with status 3: no output; see trial.log"
    assert "rate" not in answer


def test_figures_are_judged_yes_or_no_and_what_a_phase_left_out_is_no() -> None:
    phases: dict[str, Any] = {
        "machine": {"status": "done", "seconds": 3, "card": "NVIDIA H100", "copy_bytes_per_s": 3e12},
        "parity": {
            "status": "failed with status 1: a | b",
            "seconds": 9,
            "fp32": {"relative_error": 2e-3, "mask_agreement": 1.0},
            "bf16": {"relative_error": 0.034, "mask_agreement": 0.993},
        },
        "frame_small": {
            "status": "done",
            "seconds": 40,
            "size": "b",
            "whole_480p": frame_row(2.0, eager=7.0, loop=20.0),
        },
    }
    phases["machine"]["matmul_fp16_flops_per_s"] = 700e12
    table = markdown({"command": "semla bench gpu", "date": "2026-01-01", "dry": False, "phases": phases})
    assert "NVIDIA H100" in table
    assert "| parity | 9 | failed with status 1: a / b |" in table
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
    assert rows["parity.fp32.relative_error"].endswith("| 0.002 | ≤ 0.001 | no |")
    assert rows["frame_small.whole_480p.speedup_vs_eager"].endswith("| 3.5 x | ≥ 3 x | yes |")
    assert rows["parity.served.relative_error"].endswith("| not measured | ≤ 0.01 | no |")
    assert rows["bf16"] == "| bf16 | 0.034 | 99.30% |  |"  # told, and not judged
    assert rows["stall.p99_ratio"].endswith("| not measured | ≤ 1.05 x |  |")  # that phase was not run
    assert rows["b whole 480p fp16"].startswith("| b whole 480p fp16 | 2 | 500 | 7 | 20 | 0.233 (8.6 x) | ")


def frame_row(ms: float, eager: float, loop: float) -> dict[str, Any]:
    times = {"served": ms, "eager": eager, "published_loop": loop}
    return {name: {"median_ms": value} for name, value in times.items()} | {
        "precision": "fp16",
        "speedup_vs_eager": eager / ms,
    }


def test_the_phases_about_the_machine_precision_and_fusion_run_on_a_cpu(tmp_path: Path) -> None:
    phases = dry_run(tmp_path, "machine", "parity", "fusion", "stall")
    assert {phase["status"] for phase in phases.values()} == {"done"}
    assert phases["machine"]["copy_bytes_per_s"] > 1e8
    assert phases["parity"]["fp32"]["relative_error"] < 1e-4
    assert phases["parity"]["served"] == {"precision": "fp32", **phases["parity"]["fp32"]}
    assert phases["parity"]["fp16"]["mask_agreement"] > phases["parity"]["bf16"]["mask_agreement"] > 0.98
    assert phases["fusion"]["toy"]["fuse_over_copy"] > 0
    assert phases["stall"]["fusions"] >= 1


def test_frames_are_compared_in_turns_and_graphs_are_counted(tmp_path: Path) -> None:
    phases = dry_run(tmp_path, "frame_small")
    for key in ("whole_480p", "sliding_480p"):
        row = phases["frame_small"][key]
        assert row["speedup_vs_eager"] == pytest.approx(row["eager"]["median_ms"] / row["served"]["median_ms"])
        assert row["served"]["runs"] == row["eager"]["runs"] == 5 * row["published_loop"]["runs"]
        assert (row["replays_per_frame"], row["replays_in_eager"], row["captures"]) == (0, 0, 0)


def test_the_phases_about_many_fusions_memory_and_the_gpu_tests_run_on_a_cpu(tmp_path: Path) -> None:
    phases = dry_run(tmp_path, "endurance", "recapture", "memory", "tests")
    assert {phase["status"] for phase in phases.values()} == {"done"}
    assert phases["endurance"]["bits_differ"] == 0
    assert phases["recapture"]["problems"] == 0
    assert phases["recapture"]["mask_agreement"] > 0.995
    assert phases["memory"]["toy_single"]["adapted_weights_mib"] < phases["memory"]["toy_double"]["adapted_weights_mib"]
    assert phases["tests"]["failed"] == 0
    assert phases["tests"]["passed"] == 1


def test_figures_of_the_cpu_are_not_kept_beside_those_of_a_gpu(tmp_path: Path, monkeypatch, capsys) -> None:
    done = {"status": "done", "seconds": 1.0}
    monkeypatch.setattr("bench.gpu.run_phase", lambda phase, out: done)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for options, name, kept in (
        (["--dry"], "parity", {"parity"}),
        ([], "stall", {"stall"}),
        ([], "memory", {"stall", "memory"}),
    ):
        main(["bench", "gpu", *options, "--only", name, "--out", str(tmp_path)])
        assert json.loads((tmp_path / "gpu.json").read_text())["phases"].keys() == kept
    assert "memory: done" in capsys.readouterr().err


def test_without_a_gpu_the_run_says_how_to_try_it_out(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "gpu", "--out", str(tmp_path)]) == 2
    assert "--dry tries the phases out on the CPU" in capsys.readouterr().err
    assert main(["bench", "gpu", "--dry", "--only", "speed", "--out", str(tmp_path)]) == 2
    assert "unknown phase 'speed'; known: machine, parity" in capsys.readouterr().err
    assert main(["bench", "gpu", "stall", "--out", str(tmp_path)]) == 2
    assert "'gpu' has the GPU to itself" in capsys.readouterr().err


def test_every_goal_names_a_figure_of_a_phase() -> None:
    assert {goal.key.split(".")[0] for goal in GOALS} <= BUDGETS_S.keys()
    assert len({goal.key for goal in GOALS}) == len(GOALS)
    assert look_up({"stall": {"p99_ratio": 1.0}}, "stall.p99_ratio") == 1.0


class FakeGraph:
    """Stands for torch's CUDAGraph."""

    def capture_begin(self, pool: object = None) -> None:
        pass

    def replay(self) -> None:
        pass


def test_captures_and_replays_are_counted_and_captures_can_be_forbidden(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.CUDAGraph", FakeGraph)
    graph = FakeGraph()
    with counted_graphs() as counts:
        graph.capture_begin(pool=None)
        graph.replay()
        graph.replay()
        with no_graphs(), pytest.raises(RuntimeError, match="lets no graph be captured"):
            graph.capture_begin()
        graph.replay()
    graph.capture_begin()
    assert (counts.captures, counts.replays) == (1, 3)


def test_a_gpu_machine_needs_nothing_beside_its_own_packages_and_those_of_the_kit() -> None:
    lacks = ("rosbags", "av", "rclpy", "foxglove", "openvino", "ray", "mypy")
    code = (
        f"import sys; sys.modules |= dict.fromkeys({lacks})\n"
        "import pytest, bench.gpu_phases as phases\n"
        "options = ['-q', '--collect-only', '-m', 'gpu', '-p', 'no:cacheprovider']\n"
        "sys.exit(pytest.main([*options, *map(str, phases.gpu_test_files())]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    assert "test_a_captured_graph_follows_weights_and_vocabulary" in answer.stdout


def test_the_kit_and_its_run_name_what_is_pinned() -> None:
    pinned = (ROOT / "requirements" / "locks" / "python3.11.txt").read_text()
    kit = (ROOT / "tools" / "gpu-kit").read_text()
    (names,) = re.findall(r"for name in (.*) \"\$@\"", kit)
    assert names.split() == ["open-clip-torch", "ftfy", "wcwidth"]
    assert all(f"\n{name}==" in pinned for name in names.split())
    for script in ("gpu-kit", "gpu-run"):
        assert subprocess.run(["bash", "-n", str(ROOT / "tools" / script)], check=False).returncode == 0


class FakeDevice:
    """A device that notes what is asked of it, and whose clock is the number of notes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        monkeypatch.setattr("torch.cuda.synchronize", lambda *_: self.asked.append("wait for all streams"))
        monkeypatch.setattr("torch.cuda.Event", lambda enable_timing: FakeEvent(self, enable_timing))


class FakeEvent:
    def __init__(self, device: FakeDevice, is_timed: bool) -> None:
        assert is_timed
        self.device, self.at = device, 0

    def record(self) -> None:
        self.device.asked.append("mark")
        self.at = len(self.device.asked)

    def synchronize(self) -> None:
        self.device.asked.append("wait for the mark")

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.device.asked[-1] == "wait for the mark"
        return float(end.at - self.at)


def test_events_measure_from_an_idle_device_until_all_streams_are_done(monkeypatch) -> None:
    device = FakeDevice(monkeypatch)
    elapsed_ms, _ = clock_of("cuda")(lambda: device.asked.append("work"))
    waits = "wait for all streams"
    assert device.asked == [waits, "mark", "work", waits, "mark", "wait for the mark"]
    assert elapsed_ms == 3
    assert clock_of("cpu") is wall_clock


def test_the_card_is_described_also_where_there_is_no_nvidia_smi(monkeypatch, tmp_path: Path) -> None:
    properties = SimpleNamespace(
        name="Orin", major=8, minor=7, multi_processor_count=16, total_memory=64 * 2**30, is_integrated=1
    )
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: properties)
    monkeypatch.setenv("PATH", str(tmp_path))
    card = _card()
    assert (card["card"], card["capability"], card["memory_gib"]) == ("Orin", "8.7", 64)
    assert card["driver"].startswith("nvidia-smi: ")
