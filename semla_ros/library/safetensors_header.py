"""Names, types and shapes in a safetensors file, read from its header alone.

Opening a library of thousands of adapters must not map thousands of files; their headers say all that a first check
needs. The values stay on disk until an adapter is used.
"""

from __future__ import annotations

import functools
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from semla_ros.file_integrity import foreign, open_regular

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class HeaderError(ValueError):
    """The file is no intact safetensors file; callers add which file it is."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: its type as the format names it ("F32", "F16" ...), and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Header:
    """Tensors by name, the free text metadata, and the size of a file that is whole."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    file_bytes: int


def read_header(path: str | Path) -> Header:
    """Read and check a file's header.

    Raises:
        HeaderError: The file is truncated, or not what the format says.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        return parse_header(file, os.fstat(file.fileno()).st_size)


def parse_header(file: BinaryIO, size: int) -> Header:
    """As `read_header`, of an open file of so many bytes.

    Raises:
        HeaderError: Whatever it holds, it is not what the format says.
    """
    start = file.read(8)
    if len(start) < 8:
        raise HeaderError(f"file of {size} bytes is truncated")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER_BYTES or 8 + length > size:
        is_pickle = start.startswith((b"PK\3\4", b"\x80\2"))  # torch's archive, or the stream itself
        raise HeaderError(
            foreign(start)
            or ("a pickle, which is never read: convert it to safetensors" if is_pickle else "")
            or f"header of {length} bytes in a file of {size} bytes: truncated, or not safetensors"
        )
    text = file.read(length)
    try:
        header = _parse(text)
    except HeaderError:
        raise
    except Exception as error:  # JSON can say anything: infinite shapes, lists for types, thousands of levels
        raise HeaderError(f"header cannot be parsed ({type(error).__name__}); not a safetensors file") from None
    if header.file_bytes != size:
        raise HeaderError(f"{header.file_bytes} bytes expected, {size} found: the file is truncated or damaged")
    return header


@functools.lru_cache(maxsize=16)  # adapters of one library mostly have the same layers
def _parse(text: bytes) -> Header:
    entries = json.loads(text)
    metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
    tensors = {name: TensorEntry(entry["dtype"], tuple(map(int, entry["shape"]))) for name, entry in entries.items()}
    spans = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
    end = 0
    for first, last, name in spans:
        entry = tensors[name]
        expected = ITEM_BYTES.get(entry.dtype, 0) * math.prod(entry.shape)
        if first != end or (entry.dtype in ITEM_BYTES and last - first != expected):
            raise HeaderError(f"tensor '{name}' does not lie where its shape says; the file is damaged")
        end = last
    return Header(tensors, metadata, file_bytes=8 + len(text) + end)
