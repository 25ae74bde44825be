"""Our reader against the safetensors package, and that reading again and again leaves nothing behind."""

from __future__ import annotations

import gc
import json
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.safetensors_header import HeaderError, read_header
from semla_ros.library.safetensors_reader import read_tensors

TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {str(dtype): torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype in TYPES}
    return made | {"scalar": torch.tensor(7.5), "empty": torch.zeros(0, 4), "odd": torch.ones(3, dtype=torch.uint8)}


def test_every_type_and_shape_comes_back_as_the_package_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file(some_tensors(), path, metadata={"note": "x"})
    expected, found = load_file(path), read_tensors(path)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    for padding in range(4):  # most writers pad to 8 bytes; the format does not ask for it
        header = json.dumps({"a": entry}).encode() + b" " * padding
        path = tmp_path / f"{padding}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + values.numpy().tobytes())
        assert torch.equal(read_tensors(path)["a"], values)


@pytest.mark.parametrize("kept", [0, 4, 100, -1], ids=lambda value: f"{value} bytes")
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "some.safetensors"
    save_file(some_tensors(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(HeaderError):
        read_tensors(path)
    with pytest.raises(HeaderError):
        read_header(path)


def test_a_type_that_torch_does_not_know_is_named(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "some.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(HeaderError, match="'a' is of type F4"):
        read_tensors(path)


def test_an_overwritten_file_does_not_change_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.ones(100_000)}, path)
    found = read_tensors(path)["a"]
    path.write_bytes(b"short")  # a mapped file would end the process here
    assert bool((found == 1).all())


def test_reading_adapters_again_and_again_leaves_nothing_behind(tiny_library_folder: Path) -> None:
    library = AdapterLibrary.load(tiny_library_folder)

    def read_all() -> None:
        for name in library.names:
            assert library.adapter(name).layers

    for _ in range(3):
        read_all()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(50):
            read_all()
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert left < 20_000  # with safe_open some 100 bytes for each of thousands of tensors
