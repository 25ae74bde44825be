"""Weights files: the header's checks, and that reading adapters again and again leaves nothing behind."""

from __future__ import annotations

import gc
import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_parts import write_adapter

from semla_ros.library.adapter_files import AdapterReader, LoraLayers
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.safetensors_header import HeaderError, read_header

LAYER = {"layer": (torch.arange(24.0).reshape(4, 6), torch.arange(20.0).reshape(5, 4))}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "fog", LAYER, np.zeros(3))
    return tmp_path / "fog" / "adapter_model.safetensors"


def layers_of(weights: Path) -> LoraLayers:
    reader = AdapterReader()
    return reader.read_layers(reader.read(weights.parents[1], "fog"))[0]


def assert_layers_are_read(weights: Path) -> None:
    a, b = layers_of(weights)["layer"]
    assert torch.equal(a, LAYER["layer"][0])
    assert torch.equal(b, LAYER["layer"][1])


def test_a_header_of_any_length_is_read(weights: Path) -> None:
    tensors = load_file(weights)
    entries, values = {}, b""
    for name, tensor in tensors.items():
        data = tensor.numpy().tobytes()
        offsets = [len(values), len(values) + len(data)]
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        values += data
    for padding in range(4):  # most writers pad to 8 bytes; the format does not ask for it
        header = json.dumps(entries).encode() + b" " * padding
        weights.write_bytes(struct.pack("<Q", len(header)) + header + values)
        assert_layers_are_read(weights)


@pytest.mark.parametrize("kept", [0, 4, 100, -1], ids=lambda value: f"{value} bytes")
def test_a_truncated_file_is_refused(weights: Path, kept: int) -> None:
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(HeaderError):
        read_header(weights)


def test_a_tensor_that_does_not_lie_where_its_shape_says_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "some.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"0000")
    with pytest.raises(HeaderError, match="'a' does not lie where its shape says"):
        read_header(path)


def test_an_overwritten_file_does_not_change_what_was_read(weights: Path) -> None:
    layers = {"layer": (torch.ones(4, 25_000), torch.ones(5, 4))}
    write_adapter(weights.parent, layers, np.zeros(3))
    a, _ = layers_of(weights)["layer"]
    weights.write_bytes(b"short")  # a mapped file would end the process here
    assert bool((a == 1).all())


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
