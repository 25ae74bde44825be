"""Results of single jobs on disk, by which an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from semla_ros import __version__
from semla_ros.atomic_files import atomic_file
from semla_ros.lab.evaluation.datasets.benchmark import DiskBenchmark
from semla_ros.lab.evaluation.protocol import ImageTrace, Job, JobResult, Plan

# Of a file that is missing, cut off, damaged or not of this kind.
_NO_RESULT = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)


class KeptResults:
    """A folder with a file for each job that is done.

    Args:
        folder: Made when the first job is done.
        plan: What is evaluated.
        subject: What tells the model under test and its settings from others.
        files: Of model and library; a result of other files is not taken.
    """

    def __init__(self, folder: Path, plan: Plan, subject: str, files: Iterable[Path]) -> None:
        self._folder, self._benchmark = folder, plan.benchmark
        variants = {name: [variant.name for variant in plan.variants_for(name)] for name in plan.all_domains}
        self._request = [__version__, asdict(plan.benchmark), variants, subject, _marks(files)]

    def read(self, job: Job) -> JobResult | None:
        """The result of a job; None where it is not done, or was of other images, files or options."""
        try:
            with np.load(self._path(job), allow_pickle=False) as content:
                facts = json.loads(str(content["facts"]))
                counts = dict(zip(facts["variants"], content["counts"], strict=True))
                return JobResult(
                    job=job,
                    class_names=tuple(facts["class_names"]),
                    counts=counts,
                    traces=[ImageTrace(**trace) for trace in facts["traces"]],
                    embeddings=content["embeddings"],
                    forward_passes=facts["forward_passes"],
                    fusions=facts["fusions"],
                )
        except _NO_RESULT:
            return None

    def write(self, result: JobResult) -> None:
        """Keep a result."""
        facts = {
            "variants": list(result.counts),
            "class_names": result.class_names,
            "traces": [asdict(trace) for trace in result.traces],
            "forward_passes": result.forward_passes,
            "fusions": result.fusions,
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path(result.job)) as partial, partial.open("wb") as file:
            np.savez(
                file,
                facts=np.array(json.dumps(facts)),
                counts=np.stack(list(result.counts.values())),
                embeddings=result.embeddings,
            )

    def remove(self) -> None:
        """Remove the folder, once what is made of the results is written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, job: Job) -> Path:
        images: list[Path] = []
        if isinstance(self._benchmark, DiskBenchmark):
            samples = self._benchmark.open(job.domain).paths
            images = [path for index in job.indices for path in (samples[index].image, samples[index].labels)]
        text = json.dumps([*self._request, asdict(job), _marks(images)], sort_keys=True, default=str)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"


def _marks(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """What tells that files are the same ones as before."""
    found = [(path, path.stat()) for path in sorted(files)]
    return [(str(path), status.st_size, status.st_mtime_ns) for path, status in found]
