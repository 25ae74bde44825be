"""Process start to first mask, and the memory that is resident then; also of another checkout, in turns."""

from __future__ import annotations

import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.timing import Timing
from semla_ros.errors import ConfigError
from semla_ros.resources import share_folder

PARTS = ("imports", "load", "warm_up", "first_mask")


def measure(model: str, library: str, *, repeats: int = 5, against: Path | None = None) -> dict[str, Any]:
    """Figures for `start`: this tree, and against another one, each start in a process of its own, in turns."""
    folders = [share_folder(), *([against] if against else [])]
    runs: list[list[dict[str, float]]] = [[] for _ in folders]
    with tempfile.TemporaryDirectory() as engines:  # no engine that happens to be in the user's cache
        environment = {**os.environ, "SEMLA_ENGINE_DIR": engines}
        for turn in range(repeats + 1):
            for folder, collected in zip(folders, runs, strict=True):
                start = _start_apart(folder, model, library, environment)
                if turn:  # the first start reads files from the disk and compiles modules
                    collected.append(start)
    here, *others = (_summary(collected) for collected in runs)
    figures: dict[str, Any] = {"model": model, **here}
    for other in others:
        figures |= {
            "against": {"folder": str(against), **other},
            "speedup": other["start"]["median_ms"] / here["start"]["median_ms"],
            "cpu_speedup": other["start"]["cpu_median_ms"] / here["start"]["cpu_median_ms"],
            "resident_saved_mib": other["resident_mib"] - here["resident_mib"],
        }
    return figures


def first_mask(model: str, library: str, started_s: float) -> None:
    """Load, adapt to one scene, give its mask, and print when each was done; runs alone, in either checkout."""
    import json
    import time

    import numpy as np
    import psutil

    from semla_ros.config import SemlaConfig
    from semla_ros.pipeline import PerceptionPipeline
    from semla_ros.pipeline_parts import load_parts
    from semla_ros.results import Frame

    stamps_s = [started_s, time.monotonic()]
    parts = load_parts(SemlaConfig(model=model, library=library))
    stamps_s.append(time.monotonic())
    pipeline = PerceptionPipeline(parts)
    stamps_s.append(time.monotonic())
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    mask, step = pipeline.process(Frame(image=image, stamp_ns=0))
    stamps_s.append(time.monotonic())
    assert step.error is None, step.error
    assert mask.mask.shape == (480, 640)
    resident_mib = psutil.Process().memory_info().rss / 2**20
    print(json.dumps({"stamps_s": stamps_s, "cpu_ms": time.process_time() * 1e3, "resident_mib": resident_mib}))


def _start_apart(folder: Path, model: str, library: str, environment: dict[str, str]) -> dict[str, float]:
    """One start of the checkout in `folder`: milliseconds of each part, and resident memory."""
    if not (folder / "semla_ros" / "__init__.py").is_file():
        raise ConfigError(f"--against {folder}: it is no checkout, it holds no semla_ros")
    call = f"{inspect.getsource(first_mask)}\nfirst_mask({model!r}, {library!r}, {time.monotonic()})"
    answer = subprocess.run(  # of -c, the working folder is where modules are looked for first
        [sys.executable, "-c", call], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        reason = re.sub(r"^[\w.]+Error: ", "", answer.stderr.strip().splitlines()[-1])
        raise ConfigError(f"{folder}: no mask: {reason}")
    told = json.loads(answer.stdout.splitlines()[-1])
    stamps_s = told.pop("stamps_s")
    parts_ms = [(end - begin) * 1e3 for begin, end in pairwise(stamps_s)]
    return {**dict(zip(PARTS, parts_ms, strict=True)), "total": sum(parts_ms), **told}


def _summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "start": Timing(tuple(run["total"] for run in runs), tuple(run["cpu_ms"] for run in runs)).as_dict(),
        "parts_ms": {part: statistics.median(run[part] for run in runs) for part in PARTS},
        "resident_mib": statistics.median(run["resident_mib"] for run in runs),
    }
