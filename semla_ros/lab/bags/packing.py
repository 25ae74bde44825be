"""Compressed files and messages, told by their first bytes: names and metadata are lost or changed by hand."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_STEP = 64 << 10  # small steps keep what came out before a broken byte

_BY_MAGIC: dict[bytes, Callable[[], Any]] = {
    b"\x28\xb5\x2f\xfd": zstd.ZstdDecompressor,
    b"\x04\x22\x4d\x18": LZ4FrameDecompressor,
    b"\x1f\x8b\x08": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),  # gzip
}
_BY_NAME: dict[str, Callable[[], Any]] = {"zstd": zstd.ZstdDecompressor, "lz4": LZ4FrameDecompressor}
SUFFIXES = (".zstd", ".zst", ".lz4", ".gz")


def decompressor_for(data: bytes) -> Callable[[], Any] | None:
    """What decompresses data that begin like this; None where they are not compressed."""
    return next((make for magic, make in _BY_MAGIC.items() if data.startswith(magic)), None)


def decompress_message(data: bytes) -> bytes:
    """A message as it was before the recorder compressed it; one that is not compressed is returned as it is.

    Raises:
        ValueError: It ends early. What else the compressor raises on damaged data is of its own family.
    """
    make = decompressor_for(data[:4])  # no ROS 2 message begins like a compressor's frame
    if make is None:
        return data
    decompressor = make()
    message: bytes = decompressor.decompress(data)
    if not decompressor.eof:
        raise ValueError("it ends early")
    return message


def decompress_chunk(data: bytes, compression: str, size: int, checksum: int) -> tuple[bytes, str | None]:
    """A chunk of an MCAP file as far as it can be decompressed.

    Args:
        data: As stored.
        compression: Its name in the file; empty = none.
        size: Bytes that must come out.
        checksum: CRC-32 of them; 0 = not known.

    Returns:
        What came out, and what is wrong with it.
    """
    if compression:
        if compression not in _BY_NAME:
            return b"", f"compressed with '{compression}', which is not known"
        out, problem = _as_far_as_possible(_BY_NAME[compression](), data)
        if problem:
            return out, problem
        data = out
    if len(data) != size:
        return data, f"only {len(data)} of {size} bytes are there"
    if checksum and zlib.crc32(data) != checksum:
        return b"", "its checksum is wrong, all its messages are left out"
    return data, None


def _as_far_as_possible(decompressor: Any, data: bytes) -> tuple[bytes, str | None]:
    out = bytearray()
    try:
        for start in range(0, len(data), _STEP):
            out += decompressor.decompress(data[start : start + _STEP])
    except Exception as error:  # the libraries raise different families
        return bytes(out), f"not decompressible ({error})"
    return bytes(out), None


def decompress_file(source: Path, target: Path) -> str | None:
    """Decompress a file as far as it goes; returns what is wrong with it, or None.

    Raises:
        OSError: It cannot be read, or there is no room for what comes out.
    """
    with source.open("rb") as packed, target.open("wb") as out:
        make = decompressor_for(packed.read(4)) or zstd.ZstdDecompressor
        packed.seek(0)
        decompressor = make()
        try:
            while data := packed.read(_STEP):
                while data:
                    if decompressor.eof:  # a file may hold several frames
                        decompressor = make()
                    out.write(decompressor.decompress(data))
                    data = decompressor.unused_data if decompressor.eof else b""
        except OSError:
            raise
        except Exception as error:  # the libraries raise different families
            return f"{source.name}: not readable behind byte {packed.tell()} ({error})"
    return None if decompressor.eof else f"{source.name}: cut after {source.stat().st_size} bytes"
