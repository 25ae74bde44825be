"""Many bags: one task each, over the cores of this machine or a Ray cluster, resumed and merged.

What is merged is read from each bag's own `summary.json`, in the order of the bags, so that the result does not depend
on where and in which order the tasks ran.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from semla_ros.errors import BagError, SemlaError
from semla_ros.lab.bags.metadata import Metadata
from semla_ros.lab.bags.reader import METADATA_FILE, BagReader, is_bag_folder
from semla_ros.lab.replay.comparison import choose_primary
from semla_ros.lab.replay.run import MASKS, SUMMARY, TRACE, ReplayOptions, replay_bag
from semla_ros.lab.replay.scores import add_gains, is_shifted, overlap_miou
from semla_ros.lab.replay.stretches import most_to_gain
from semla_ros.lab.tasks import run_each

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One bag of a batch.

    Attributes:
        bag: The bag.
        out: Folder of its results.
        options: How it is replayed.
    """

    bag: Path
    out: Path
    options: ReplayOptions


@dataclass(frozen=True)
class TaskResult:
    """How a task ended.

    Attributes:
        bag: The bag.
        error: Why it failed; empty where it did not.
    """

    bag: Path
    error: str = ""


Progress = Callable[[int, int, TaskResult | None], None]  # tasks done, tasks in all, the latest


def find_bags(paths: Sequence[Path]) -> list[Path]:
    """The bags themselves, and all bags below folders that are none, but for those that replays wrote.

    Of several paths one that is no bag stays in the list, where it fails by its name and the others go on.

    Raises:
        BagError: There is one path, and it does not exist or holds no bag.
    """
    bags: dict[Path, None] = {}
    for path in paths:
        try:
            bags |= dict.fromkeys(_bags_at(path))
        except BagError:
            if len(paths) == 1:
                raise
            bags[path] = None
    return list(bags)


def _bags_at(path: Path) -> list[Path]:
    if not path.exists():
        raise BagError(f"bag {path}: there is no such file or folder")
    if not path.is_dir() or is_bag_folder(path):
        return [path]
    below = sorted(folder for folder in path.rglob("*") if is_bag_folder(folder))
    found = [bag for bag in below if not _is_result(bag)]
    if len(found) < len(below):
        logger.warning("%s: %d bags below it were written by replays and are left out", path, len(below) - len(found))
    if not found:
        try:
            BagReader(path).close()  # its files may be a bag by their content
        except BagError as error:
            raise BagError(f"{error}; there is none below it, either") from None
    return found or [path]


def _is_result(path: Path) -> bool:
    if path.name == MASKS and (path.parent / TRACE).is_file():  # one that was not finished, too
        return True
    try:
        return Metadata.parse((path / METADATA_FILE).read_text(encoding="utf-8")).is_own_output
    except (OSError, ValueError):
        return False


def make_tasks(bags: Sequence[Path], out: Path, options: ReplayOptions) -> list[Task]:
    """One task per bag, each with a folder of its own below `out`."""
    taken: dict[str, int] = {}
    tasks = []
    for bag in bags:
        name = bag.stem if bag.is_file() else bag.name
        taken[name] = taken.get(name, 0) + 1
        folder = name if taken[name] == 1 else f"{name}-{taken[name]}"
        # One thread per task: the cores are busy with other bags, and sums keep their order on every machine.
        inference = replace(options.config.inference, threads=1)
        own = replace(options, config=replace(options.config, inference=inference), side_by_side=1)
        tasks.append(Task(bag, out / folder, replace(own, request=_request_id(bag, own))))
    return tasks


def run_tasks(
    tasks: Sequence[Task],
    *,
    jobs: int = 0,
    ray_address: str = "",
    resumes: bool = True,
    progress: Progress | None = None,
) -> list[TaskResult]:
    """Run what is not done yet.

    An interrupt ends the tasks in progress, which keep what they have, and is raised again.

    Args:
        tasks: The tasks.
        jobs: Processes, or tasks at a time on Ray; 0 = one per core, or what the cluster has.
        ray_address: Run on this Ray cluster ("auto", "local", or host:port); empty = on this machine without Ray.
        resumes: Leave out tasks whose results are there and complete, from the same bag and options.
        progress: Told what is done.

    Returns:
        A result per task, in their order.

    Raises:
        ConfigError: Ray is asked for and not installed or not reachable.
    """
    results: dict[Path, TaskResult] = {}
    todo = []
    for task in tasks:
        if resumes and is_done(task):
            results[task.out] = TaskResult(task.bag)
        else:
            todo.append(task)
    told = progress or (lambda *_: None)
    told(len(results), len(tasks), None)
    with closing(run_each(run_task, todo, jobs=jobs, ray_address=ray_address)) as runs:
        for done in runs:
            result = done.result or TaskResult(done.task.bag, f"its process failed: {_last_line(done.error)}")
            results[done.task.out] = result
            told(len(results), len(tasks), result)
    return [results[task.out] for task in tasks]


def _last_line(error: BaseException | None) -> str:
    """What went wrong; an error that comes from another process has its traceback before it."""
    return next(iter(str(error).strip().splitlines()[-1:]), type(error).__name__)


def is_done(task: Task) -> bool:
    """Whether a task's results are there, complete, and from the same bag and options."""
    summary = _own_summary(task)
    return summary is not None and bool(summary["complete"])


def _own_summary(task: Task) -> dict[str, Any] | None:
    """What a task has written; None where nothing is there, or was left by another replay."""
    try:
        summary: dict[str, Any] = json.loads((task.out / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return summary if summary.get("request") == task.options.request else None


def run_task(task: Task) -> TaskResult:
    """Replay one bag; errors become part of the result, so that the other bags go on."""
    try:
        summary = replay_bag(task.bag, task.out, task.options)
    except SemlaError as error:
        return TaskResult(task.bag, str(error))
    except Exception as error:
        logger.exception("replay of %s failed unexpectedly", task.bag)
        return TaskResult(task.bag, f"{type(error).__name__}: {error}")
    return TaskResult(task.bag, "interrupted" if summary["interrupted"] else "")


def merge(tasks: Sequence[Task], results: Sequence[TaskResult]) -> dict[str, Any]:
    """Pool the summaries of all bags, at least one; the same for the same results, wherever they were made."""
    own = [_own_summary(task) for task in tasks]
    bags = [_bag_entry(*item) for item in zip(tasks, results, own, strict=True)]
    summaries = [summary for summary in own if summary is not None]
    compare = tasks[0].options.compare
    names, primary = [variant.name for variant in compare], choose_primary(compare).name
    variants = {name: _merge_variant([summary["variants"][name] for summary in summaries]) for name in names}
    add_gains(variants)
    return {
        "complete": all(entry["complete"] for entry in bags),
        "primary": primary,
        "reference": "base" if "base" in names and primary != "base" else None,
        "bags": bags,
        "frames": sum(summary["frames"] for summary in summaries),
        "duration_s": round(sum(summary["duration_s"] for summary in summaries), 3),
        "variants": variants,
        "worklist": sorted(
            (
                {"bag": str(summary["bag"]), **stretch}
                for summary in summaries
                for stretch in summary.get("worklist", [])
            ),
            key=most_to_gain,
        ),
    }


def _bag_entry(task: Task, result: TaskResult, summary: Mapping[str, Any] | None) -> dict[str, Any]:
    known = summary or {
        "complete": False, "frames": 0, "duration_s": 0.0, "cameras": [], "topics": [], "problems": [], "variants": {},
    }  # fmt: skip
    variants = known["variants"]
    return {
        "bag": str(task.bag),
        "out": task.out.name,
        "complete": bool(known["complete"] and not result.error),
        "error": result.error or (None if summary else "no results"),
        "frames": known["frames"],
        "duration_s": known["duration_s"],
        "cameras": known["cameras"],
        "topics": [topic for topic in known["topics"] if topic["used_as"] or topic["lost"]],
        "problems": known["problems"],
        "miou": {name: entry["miou"] for name, entry in variants.items()},
        "shifted_miou": {name: entry["shifted_miou"] for name, entry in variants.items()},
        "out_of_library_s": variants[known["primary"]]["out_of_library_s"] if summary else None,
    }


def _merge_variant(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    segments: dict[str, list[Any]] = defaultdict(list)
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(bytes.fromhex(entry["mask_sha256"]))
        for name, counts in entry["segment_pixels"].items():
            segments[name].append(counts)

    def total(key: str) -> Any:
        return sum(entry[key] for entry in entries)

    return {
        "miou": _pooled_miou([entry["pixels"] for entry in entries]),
        "frames": total("frames"),
        "mask_sha256": digest.hexdigest(),  # of the bags' digests in order
        "frames_with_truth": total("frames_with_truth"),
        "shifted_miou": _pooled_miou(
            [counts for name, items in segments.items() if is_shifted(name) for counts in items]
        ),
        "per_segment": {name: {"miou": _pooled_miou(items)} for name, items in sorted(segments.items())},
        "confidence": _weighted(entries, "confidence"),
        "flicker": _weighted(entries, "flicker"),
        "out_of_library_s": round(total("out_of_library_s"), 3),
        "fusions": total("fusions"),
        "recalls": total("recalls"),
        "dropped": total("dropped"),
    }


def _pooled_miou(items: Sequence[Any]) -> float | None:
    return overlap_miou(np.sum([np.asarray(item, np.int64) for item in items], axis=0)) if items else None


def _weighted(entries: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [(entry[key], entry["frames"]) for entry in entries if entry[key] is not None]
    total = sum(frames for _, frames in known)
    return round(sum(value * frames for value, frames in known) / total, 6) if total else None


def _request_id(bag: Path, options: ReplayOptions) -> str:
    """Digest of the options and of what tells that the bag's files are the same ones."""
    files = sorted(path for path in bag.iterdir() if path.is_file()) if bag.is_dir() else [bag]
    identity = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([str(bag.resolve()), identity, asdict(options)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
