"""Values of a safetensors file, for files that are read again and again while the node runs.

`safe_open` of the safetensors package (0.8.0) leaves numbers of 28 bytes behind for each tensor that it gives to torch.
That is nothing for a model that is loaded once, but a megabyte per minute where each new scene reads adapters.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semla_ros.library.safetensors_header import HeaderError, parse_header

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file by name, views of one buffer in memory.

    The file is read, not mapped: one that is overwritten meanwhile is then a wrong file, not the end of the process.

    Raises:
        HeaderError: The file is truncated, not what the format says, or holds a type that torch does not know.
        OSError: It cannot be read.
    """
    content = np.fromfile(path, np.uint8)
    header, start = parse_header(content.data)
    data = torch.from_numpy(content)
    tensors = {}
    for name, entry in header.tensors.items():
        if entry.dtype not in _TYPES:
            raise HeaderError(f"tensor '{name}' is of type {entry.dtype}; expected one of {', '.join(_TYPES)}")
        dtype = _TYPES[entry.dtype]
        first = start + entry.first_byte
        values = data[first : first + math.prod(entry.shape) * dtype.itemsize]
        if first % dtype.itemsize:  # most writers pad the header
            values = values.clone()
        tensors[name] = values.view(dtype).reshape(entry.shape)
    return tensors
