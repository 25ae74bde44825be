"""One driver for independent tasks: results as they end, errors beside them, files brought home."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import semla_ros
from semla_ros.errors import DatasetError
from semla_ros.lab.tasks import run_each, run_on_worker, unpack


@dataclass(frozen=True)
class Doubling:
    number: int
    out: Path


def double(task: Doubling) -> int:
    if task.number == 2:
        raise DatasetError("two is not there")
    if task.number == 3:
        os._exit(1)
    (task.out / "deep").mkdir(parents=True)
    (task.out / "deep" / "answer").write_text(str(2 * task.number))
    return 2 * task.number


def test_results_and_errors_come_with_their_tasks(tmp_path: Path) -> None:
    tasks = [Doubling(number, tmp_path / str(number)) for number in (0, 1, 2)]
    done = {item.task.number: item for item in run_each(double, tasks, jobs=2)}
    assert [done[number].result for number in range(3)] == [0, 2, None]
    assert isinstance(done[2].error, DatasetError)
    assert (tmp_path / "1" / "deep" / "answer").read_text() == "2"


def test_a_process_that_dies_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    (done,) = run_each(double, [Doubling(3, tmp_path / "3")], jobs=1)
    assert done.result is None
    assert "terminated abruptly" in str(done.error)


def test_no_process_outlives_the_one_that_is_killed() -> None:
    code = "import time; from semla_ros.lab.tasks import run_each; list(run_each(time.sleep, [600.0, 600.0], jobs=2))"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        started = psutil.Process(process.pid)
        while len(workers := [item for item in started.children() if "spawn_main" in " ".join(item.cmdline())]) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    _, alive = psutil.wait_procs(workers, 20)
    assert not alive


def test_every_pool_of_processes_is_one_that_ends_with_its_command() -> None:
    sources = Path(semla_ros.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "ProcessPoolExecutor" in path.read_text(encoding="utf-8")] == [
        "processes.py"
    ]


def test_nothing_to_do_starts_nothing() -> None:
    assert list(run_each(double, [], jobs=2, ray_address="nowhere:1")) == []


@pytest.mark.parametrize("is_shared", [True, False])
def test_files_end_up_in_the_folder_of_the_task_in_place_of_earlier_ones(tmp_path: Path, is_shared: bool) -> None:
    task, marker = Doubling(4, tmp_path / "task"), tmp_path / "marker"
    if is_shared:
        marker.touch()
        assert run_on_worker(double, task, marker) == (8, b"")
    else:
        result, archive = run_on_worker(double, task, marker)
        assert result == 8
        assert not task.out.exists()
        (task.out / "deep").mkdir(parents=True)
        (task.out / "deep" / "stale").touch()
        unpack(archive, task.out)
    assert [path.name for path in (task.out / "deep").iterdir()] == ["answer"]
