"""The acceptance run on a GPU: phases in processes of their own, a JSON file after each, goals with yes or no last.

What crashes, hangs or outruns its budget costs only itself, and what it had measured until then is kept.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.children import Children
from bench.report import Goal, look_up, short
from bench.traffic import frame_traffic
from semla_ros.atomic_files import write_atomically
from semla_ros.errors import ConfigError, known_names
from semla_ros.lab.processes import Child
from semla_ros.resources import share_folder
from semla_ros.segmentation.inference import InferenceMode

LIMIT_S = 480.0  # of all phases
BUDGETS_S = {  # of each phase of `gpu_phases`, its start included
    "machine": 20.0,
    "parity": 25.0,
    "frame_small": 55.0,
    "frame_large": 75.0,
    "tests": 75.0,
    "fusion": 30.0,
    "stall": 40.0,
    "endurance": 25.0,
    "recapture": 20.0,
    "memory": 60.0,
    "compile": 45.0,
}
DRY_FACTOR = 8  # of budgets and limit, on a CPU
FITS_MIB = 5600  # what docs/memory.md leaves for a model on an 8 GB Jetson
GOALS = (
    Goal("tests.failed", "tests on the GPU that fail", 0, False, ""),
    Goal("tests.passed", "tests on the GPU that pass", 1, True, ""),
    Goal("parity.fp32.relative_error", "class scores of the shipped model in fp32 against fp64", 1e-3, False, ""),
    Goal("parity.fp32.mask_agreement", "masks of the shipped model in fp32 against fp64", 0.995, True, ""),
    # Of half precisions and TF32, what `precision: default` lets serve; the others are told.
    Goal("parity.served.relative_error", "class scores in the precision that serves by default", 1e-2, False, ""),
    Goal("parity.served.mask_agreement", "masks in the precision that serves by default", 0.995, True, ""),
    Goal("frame_small.whole_480p.replays_per_frame", "graphs replayed per frame at B size", 1, True, ""),
    Goal("frame_small.whole_480p.replays_in_eager", "graphs replayed in the frames it is compared with", 0, False, ""),
    Goal("frame_small.whole_480p.speedup_vs_eager", "eager frame / frame, B size, one view", 3, True),
    Goal("frame_small.sliding_480p.speedup_vs_published_loop", "published loop / frame, B size, its windows", 6, True),
    Goal("frame_large.whole_480p.served.median_ms", "frame at L size, one view; for an H100", 8, False, "ms"),
    *(
        goal
        for size in ("b", "l")
        for goal in (
            Goal(f"fusion.{size}.fuse_over_copy", f"fusing 5 adapters / copying the weights, {size.upper()}", 3, False),
            Goal(f"fusion.{size}.commit_over_copy", f"commit / copying the weights, {size.upper()} size", 1.1, False),
        )
    ),
    Goal("stall.p99_ratio", "p99 frame latency with fusions at 2 Hz / without", 1.05, False),
    Goal("stall.frames_late_for_a_camera", "frames beside fusions that took longer than 1/30 s", 0, False, ""),
    Goal("endurance.captures", "graphs captured again in 100 fusions", 0, False, ""),
    Goal("endurance.bits_differ", "the first mix gives other bits after them", 0, False, ""),
    Goal("endurance.growth_mib", "growth of the device's memory over them", 0, False, "MiB"),
    Goal("recapture.problems", "errors and notes of captures beside fusions", 0, False, ""),
    Goal("recapture.mask_agreement", "masks after them against plain torch", 0.995, True, ""),
    Goal("memory.b_double.device_mib", "device memory at B size", FITS_MIB, False, "MiB"),
    Goal("memory.l_single.device_mib", "device memory at L size, memory: single", FITS_MIB, False, "MiB"),
)


@dataclass(frozen=True)
class Phase:
    """A process and the seconds that it may take; it leaves its figures in the file that its last argument names."""

    name: str
    command: Sequence[str]
    budget_s: float


def run_acceptance(out: Path, *, is_dry: bool = False, only: Sequence[str] = (), is_json: bool = False) -> int:
    """Run the phases and print the table; 0 where all ended and, on a GPU, each of their goals is met, else 1.

    Args:
        out: Folder for gpu.json, gpu.md and the phases' output.
        is_dry: At toy size on the CPU, which tries the phases out and judges nothing.
        only: Phases to run; of the others gpu.json keeps what it has. None named: all.
        is_json: Print gpu.json instead of the table.

    Raises:
        ConfigError: A phase is unknown, or there is no GPU.
    """
    if unknown := set(only) - BUDGETS_S.keys():
        raise ConfigError(f"unknown phase '{min(unknown)}'; {known_names(min(unknown), BUDGETS_S)}")
    if not is_dry and not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device; --dry tries the phases out on the CPU")
    out.mkdir(parents=True, exist_ok=True)
    file = out / "gpu.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if only and file.is_file() else {"dry": None}
    summary: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["semla", *sys.argv[1:]]),
        "dry": is_dry,
        "phases": kept["phases"] if kept["dry"] == is_dry else {},
    }
    factor = DRY_FACTOR if is_dry else 1
    end = time.monotonic() + LIMIT_S * factor
    for name in only or BUDGETS_S:
        command = [sys.executable, "-m", "bench.gpu_phases", *(["--dry"] if is_dry else []), name]
        budget_s = max(0.0, min(BUDGETS_S[name] * factor, end - time.monotonic()))
        summary["phases"][name] = run_phase(Phase(name, command, budget_s), out)
        write_atomically(file, json.dumps(summary, indent=2) + "\n")
        print(f"{name}: {summary['phases'][name]['status']}", file=sys.stderr)
    table = markdown(summary)
    write_atomically(out / "gpu.md", table)
    print(file.read_text(encoding="utf-8") if is_json else table, end="")
    has_ended = all(phase["status"] == "done" for phase in summary["phases"].values())
    return int(not has_ended or "no" in [_verdict(summary, goal) for goal in GOALS])


def run_phase(phase: Phase, out: Path) -> dict[str, Any]:
    """Run one, end it where its budget is spent, and return its status, seconds and whatever figures it left."""
    file, log = out / f"{phase.name}.json", out / f"{phase.name}.log"
    file.unlink(missing_ok=True)
    paths = [str(share_folder()), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    with Children() as children:
        child = children.start(phase.name, [*phase.command, str(file)], environment, log)
        while child.status is None and time.monotonic() - start < phase.budget_s:
            time.sleep(0.05)
        status = _status(child, phase.budget_s)
        children.stop(grace_s=1.0)
    figures = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"status": status, "seconds": time.monotonic() - start, **figures}


def _status(child: Child, budget_s: float) -> str:
    if child.status is None:
        return f"stopped: over its budget of {budget_s:g} s"
    if child.status == 0:
        return "done"
    lines = child.last_lines(1).strip()
    return f"failed with status {child.status}: {lines or 'no output'}; see {child.log.name}"


def _verdict(summary: Mapping[str, Any], goal: Goal) -> str:
    """Whether a goal is met, "yes" or "no"; empty where its phase was not run, or on a CPU."""
    value = look_up(summary["phases"], goal.key)
    if summary["dry"] or goal.key.partition(".")[0] not in summary["phases"]:
        return ""
    return "yes" if value is not None and goal.is_met(value) else "no"


def markdown(summary: Mapping[str, Any]) -> str:
    """The table, short enough to be committed."""
    phases = summary["phases"]
    card = look_up(phases, "machine.card") or "no GPU: tried out on the CPU, nothing is judged"
    versions = {"CUDA": look_up(phases, "machine.cuda"), "driver": look_up(phases, "machine.driver")}
    versions |= look_up(phases, "machine.machine.versions") or {}
    ran = ((name, f"{phase['seconds']:.0f}", phase["status"]) for name, phase in phases.items())
    frames = (_frame_row(summary, *key) for key in _frames(phases))
    times = ("ms", "per second", "eager (ms)", "published loop (ms)", "roof line (ms)", "operators alone (ms)")
    parts = [
        [f"`{summary['command']}`, {card}, {summary['date']}"],
        [", ".join(f"{name} {version}" for name, version in versions.items())],
        table_rows(("phase", "seconds", "status"), ran),
        table_rows(("figure", "what", "measured", "goal", "met"), (_goal_row(summary, goal) for goal in GOALS)),
        table_rows(("precision", "class scores", "masks", "serves by default"), _precisions(phases)),
        table_rows(("frame", *times), frames),
        table_rows(("rate", "measured"), _rates(phases)),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def table_rows(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in cells]


def _goal_row(summary: Mapping[str, Any], goal: Goal) -> Sequence[str]:
    value, bound = look_up(summary["phases"], goal.key), f"{'≥' if goal.is_minimum else '≤'} {goal.bound:g} {goal.unit}"
    measured = "not measured" if value is None else f"{short(value)} {goal.unit}"
    return goal.key, goal.meaning, measured.strip(), bound.strip(), _verdict(summary, goal)


def _precisions(phases: Mapping[str, Any]) -> list[Sequence[str]]:
    """The shipped model in each precision against fp64."""
    parity = {name: row for name, row in phases.get("parity", {}).items() if isinstance(row, Mapping)}
    serves = parity.pop("served", {}).get("precision")
    return [
        (name, short(row["relative_error"]), f"{row['mask_agreement']:.2%}", "yes" if name == serves else "")
        for name, row in parity.items()
    ]


def _frames(phases: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Phase and key of each frame that was timed."""
    return [
        (phase, key)
        for phase in ("frame_small", "frame_large")
        for key, row in phases.get(phase, {}).items()
        if isinstance(row, Mapping)
    ]


def _frame_row(summary: Mapping[str, Any], phase: str, key: str) -> Sequence[str]:
    row, size = summary["phases"][phase][key], summary["phases"][phase]["size"]
    mode: InferenceMode = "sliding" if key.startswith("sliding") else "whole"
    ms = row["served"]["median_ms"]
    roof = ("", "")
    bandwidth = look_up(summary["phases"], "machine.copy_bytes_per_s")
    rate = look_up(summary["phases"], f"machine.matmul_{row['precision']}_flops_per_s")
    if bandwidth and rate:
        traffic = frame_traffic(size, mode, row["precision"])
        floor, alone = traffic.floor_ms(bandwidth, rate), traffic.operators_ms(bandwidth, rate)
        roof = (f"{short(floor)} ({ms / floor:.1f} x)", f"{short(alone)} ({ms / alone:.1f} x)")
    others = (short(row[name]["median_ms"]) for name in ("eager", "published_loop"))
    return f"{size} {key.replace('_', ' ')} {row['precision']}", short(ms), short(1e3 / ms), *others, *roof


def _rates(phases: Mapping[str, Any]) -> list[tuple[str, str]]:
    rates = []
    for key, value in phases.get("machine", {}).items():
        if key == "copy_bytes_per_s":
            rates.append(("copy, read and written", f"{value / 1e9:.0f} GB/s"))
        elif key.startswith("matmul_"):
            rates.append((f"matrix product in {key.split('_')[1]}", f"{value / 1e12:.3g} TFLOP/s"))
    return rates
