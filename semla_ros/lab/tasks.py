"""Independent tasks over the cores of this machine or a Ray cluster: for replays, evaluations and trainings."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from semla_ros.errors import ConfigError
from semla_ros.lab.processes import worker_pool

T = TypeVar("T")
R = TypeVar("R")
_GRACE_S = 20.0  # for tasks on Ray that an interrupt ends


@dataclass(frozen=True)
class Done(Generic[T, R]):
    """How a task ended.

    Attributes:
        task: The task.
        result: What the work returned; None where it failed.
        error: Why it failed; None where it did not.
    """

    task: T
    result: R | None = None
    error: BaseException | None = None


def run_each(
    work: Callable[[T], R], tasks: Sequence[T], *, jobs: int = 0, ray_address: str = ""
) -> Generator[Done[T, R]]:
    """Run a piece of work on each task, several at a time, each in a process.

    Closing the iterator ends the tasks in progress. What a task prints and writes is its own affair: one that writes
    files is a dataclass with a field `out`, their folder, which is brought back from a machine that does not share it.

    Args:
        work: Called with a task; it and the tasks can be pickled.
        tasks: The tasks.
        jobs: Processes, or tasks at a time on Ray; 0 = one per core, or what the cluster has.
        ray_address: Run on this Ray cluster ("auto", "local", or host:port); empty = on this machine without Ray.

    Yields:
        Each task with its result, as it ends.

    Raises:
        ConfigError: Ray is asked for and not reachable.
        ImportError: It is not installed.
    """
    if not tasks:
        return
    if ray_address:
        yield from _on_ray(work, tasks, ray_address, jobs)
    else:
        yield from _on_cores(work, tasks, jobs or os.cpu_count() or 1)


def _on_cores(work: Callable[[T], R], tasks: Sequence[T], jobs: int) -> Generator[Done[T, R]]:
    with worker_pool(min(jobs, len(tasks))) as pool:
        try:
            yield from _results(tasks, lambda task: pool.submit(work, task), len(tasks))
        finally:
            pool.shutdown(cancel_futures=True)


def _on_ray(work: Callable[[T], R], tasks: Sequence[T], address: str, jobs: int) -> Generator[Done[T, R]]:
    import ray

    with ExitStack() as cleanup:
        if not ray.is_initialized():
            local = {"num_cpus": jobs or os.cpu_count(), "object_store_memory": 256 << 20} if address == "local" else {}
            try:
                ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **local)
            except Exception as error:  # Ray raises bare ones, too, where a node does not start in time
                reason = str(error).splitlines()[0]
                raise ConfigError(f"--ray {address}: no Ray cluster answers there ({reason})") from None
            cleanup.callback(ray.shutdown)
        marker = _marker(tasks[0], cleanup)
        remote = ray.remote(num_cpus=1, max_retries=1)(run_on_worker)
        running: dict[Future[Any], Any] = {}

        def end() -> None:
            references = list(running.values())
            for reference in references:
                ray.cancel(reference)
            if references:  # they write what they have
                ray.wait(references, num_returns=len(references), timeout=_GRACE_S)

        cleanup.callback(end)

        def start(task: T) -> Future[Any]:
            reference = remote.remote(work, task, marker)
            future: Future[Any] = reference.future()
            running[future] = reference
            future.add_done_callback(running.pop)
            return future

        most = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
        for done in _results(tasks, start, most):
            if done.result is None:
                yield Done(done.task, error=getattr(done.error, "cause", None) or done.error)
                continue
            result, archive = done.result
            if archive:
                unpack(archive, done.task.out)  # type: ignore[attr-defined]
            yield Done(done.task, result)


def _marker(task: Any, cleanup: ExitStack) -> Path | None:
    """A file beside the folders of the tasks, by which a worker sees whether it shares them; None where there are none.

    It is gone when `cleanup` ends.
    """
    if not hasattr(task, "out"):
        return None
    folder: Path = task.out.parent
    folder.mkdir(parents=True, exist_ok=True)
    return Path(cleanup.enter_context(tempfile.NamedTemporaryFile(prefix=".semla-tasks-", dir=folder)).name)


def _results(tasks: Sequence[T], start: Callable[[T], Future[R]], most: int) -> Generator[Done[T, R]]:
    """Start tasks, `most` at a time, and yield each as it ends."""
    waiting = deque(tasks)
    running: dict[Future[R], T] = {}
    while waiting or running:
        while waiting and len(running) < most:
            task = waiting.popleft()
            running[start(task)] = task
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task, error = running.pop(future), future.exception()
            yield Done(task, future.result()) if error is None else Done(task, error=error)


def run_on_worker(work: Callable[[T], R], task: T, marker: Path | None) -> tuple[R, bytes]:
    """Do a task's work on a Ray worker.

    Args:
        work: The work.
        task: The task.
        marker: There where the worker shares the folders of the tasks; None where tasks write no files.

    Returns:
        What the work returned, and the files as a tar archive for `unpack`; empty where they are in their place.
    """
    if marker is None or marker.exists():
        return work(task), b""
    with tempfile.TemporaryDirectory(prefix="semla-tasks-") as folder:
        out = Path(folder) / "out"
        result = work(replace(task, out=out))  # type: ignore[type-var]
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            if out.is_dir():
                archive.add(out, ".")
        return result, buffer.getvalue()


def unpack(archive: bytes, out: Path) -> None:
    """Put the files of a task, as `run_on_worker` packs them, in the place of what lies in their folder."""
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as results:
        for name in {part for member in results.getmembers() for part in Path(member.name).parts[:1]}:
            shutil.rmtree(out / name, ignore_errors=True)  # a file is written over
        results.extractall(out, filter="data")
