"""What the process holds, ever held, and gives back."""

import mmap
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from semla_ros.serving import peak_memory
from semla_ros.serving.memory import give_back_memory, gpu_mb, keep_large_blocks
from semla_ros.serving.peak_memory import peak_resident_bytes

MIB = 2**20


def test_the_peak_stays_when_memory_is_given_back() -> None:
    with mmap.mmap(-1, 200 * MIB) as block:  # given back at once, whatever the allocator keeps
        for start in range(0, len(block), MIB):
            block[start : start + MIB] = b"x" * MIB
        held = psutil.Process().memory_info().rss
    assert peak_resident_bytes() > held - 10 * MIB
    assert psutil.Process().memory_info().rss < held - 100 * MIB


def test_a_new_process_does_not_count_what_its_parent_held() -> None:
    block = bytearray(300 * MIB)
    program = "from semla_ros.serving.peak_memory import peak_resident_bytes; print(peak_resident_bytes())"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert len(block) < psutil.Process().memory_info().rss
    assert 1 * MIB < int(answer.stdout) < 200 * MIB


def test_where_the_kernel_tells_nothing_the_older_count_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "_STATUS", Path("/nowhere"))
    assert peak_resident_bytes() >= psutil.Process().memory_info().rss // 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_malloc_takes_the_thresholds() -> None:
    assert keep_large_blocks()


THREADS = """
import threading
from semla_ros.serving.memory import give_back_free_pages, keep_large_blocks, resident_mb

def hold_much():
    blocks = [bytearray(b"x") * 2**20 for _ in range(30)]
    rest = [bytearray(2**10) for _ in blocks]

is_over, sizes = threading.Event(), []
keep_large_blocks()
for turn in range(12):  # each finds other threads in its place
    others = [threading.Thread(target=lambda: (bytearray(2000), is_over.wait())) for _ in range(turn % 4)]
    for thread in (*others, worker := threading.Thread(target=hold_much)):
        thread.start()
    worker.join()
    sizes.append(resident_mb())
is_over.set()
give_back_free_pages()
print(sizes[0], sizes[-1], resident_mb())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_what_threads_held_serves_the_threads_after_them_and_is_given_back() -> None:
    answer = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    first, last, given_back = map(float, answer.stdout.split())
    assert last < first + 10
    assert given_back < first - 20


def test_a_gpu_is_told_to_give_back_what_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: told.append("empty"))
    give_back_memory()
    assert told == []  # nothing has used a GPU, and asking would start CUDA
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    give_back_memory()
    assert told == ["empty"]


def test_gpu_memory_is_that_of_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may be on any of them."""
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: (0, 5_000_000)[device])
    assert gpu_mb() == 5.0
