import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.children import Children
from semla_ros.lab.processes import ChildError, worker_pool

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_for(condition, timeout_s: float = 20.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_output_is_kept_and_a_running_child_is_no_error(tmp_path) -> None:
    code = "import time; print('hello', flush=True); time.sleep(60)"
    with Children() as children:
        child = children.start("talker", python(code), os.environ, tmp_path / "talker.log")
        assert wait_for(lambda: child.last_lines() == "hello")
        children.check()


def test_a_child_that_ends_early_is_reported_even_if_all_was_well(tmp_path) -> None:
    with Children() as children:
        child = children.start("node", python("print('bye')"), os.environ, tmp_path / "node.log")
        assert wait_for(lambda: child.status is not None)
        with pytest.raises(ChildError, match=r"(?s)node \(pid \d+\) ended with status 0.*bye"):
            children.check()


def test_a_child_that_fails_is_reported_with_its_last_words(tmp_path) -> None:
    with Children() as children:
        child = children.start(
            "node", python("import sys; print('no weights'); sys.exit(3)"), os.environ, tmp_path / "node.log"
        )
        assert wait_for(lambda: child.status is not None)
        with pytest.raises(ChildError, match=r"(?s)node \(pid \d+\) ended with status 3.*no weights"):
            children.check()


def test_leaving_the_group_interrupts_what_still_runs(tmp_path) -> None:
    code = "import time\ntry:\n print('up', flush=True)\n time.sleep(60)\nexcept KeyboardInterrupt: print('tidy')"
    with Children() as children:
        child = children.start("sleeper", python(code), os.environ, tmp_path / "sleeper.log")
        assert wait_for(lambda: "up" in child.last_lines())
    assert child.status == 0
    assert child.last_lines().endswith("tidy")


def test_a_child_that_ignores_interrupts_is_killed_with_its_own_children(tmp_path) -> None:
    code = (
        "import signal, subprocess, sys, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(grandchild.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with Children() as children:
        child = children.start("stubborn", python(code), os.environ, tmp_path / "stubborn.log")
        assert wait_for(lambda: child.last_lines().strip().isdigit())
        grandchild = int(child.last_lines())
        assert child.stop(grace_s=0.3) == -signal.SIGKILL
    assert wait_for(lambda: not is_alive(grandchild))


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel to end children with their parent")
def test_children_end_even_when_the_demo_is_killed(tmp_path) -> None:
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from bench.children import Children\n"
        "with Children() as children:\n"
        "    child = children.start('orphan', [sys.executable, '-c', 'import time; time.sleep(60)'], os.environ,"
        " Path(sys.argv[1]))\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(60)"
    )
    parent = subprocess.Popen([*python(code), str(tmp_path / "orphan.log")], stdout=subprocess.PIPE, text=True)
    child_pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_for(lambda: not is_alive(child_pid))


def test_a_program_that_is_not_there_is_named(tmp_path) -> None:
    with Children() as children, pytest.raises(ChildError, match="camera cannot be started with /no/such/program"):
        children.start("camera", ["/no/such/program"], os.environ, tmp_path / "camera.log")


@pytest.mark.parametrize("wait_s", [0.05, 0.3, 0.6, 1.2, 2.0])
def test_an_interrupt_ends_workers_without_a_word_whatever_they_are_about(tmp_path, wait_s: float) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nfor _ in range(100):\n    time.sleep(0.005)\ndef work(n): time.sleep(n)\n"
    )
    (tmp_path / "main.py").write_text(
        "import slow\n"
        "from semla_ros.lab.processes import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    print('ready', flush=True)\n"
        "    try:\n"
        "        with worker_pool(2) as pool:\n"
        "            list(pool.map(slow.work, [1.5] * 100))\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(wait_s)
    os.killpg(process.pid, signal.SIGINT)
    out, told = process.communicate(timeout=30)
    assert (out, told) == ("interrupted\n", "")


def test_what_is_left_of_a_pool_does_not_begin_after_an_error(tmp_path) -> None:
    waiting: list = []

    def fail_after_the_first() -> None:
        with worker_pool(1) as pool:
            waiting.extend(pool.submit(time.sleep, 0.5) for _ in range(40))
            waiting[0].result()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_the_first()
    assert sum(future.cancelled() for future in waiting) > 30
