"""Reads what is left of a damaged or cut bag file, and says what is not.

The ordinary path is the `rosbags` library, which stops at the first broken byte. These readers walk the same files
record by record (MCAP) or row by row (SQLite), step over what is broken, and go on behind it. The readers of the `mcap`
package do neither that nor give what a cut chunk still holds (`test_rosbag.py` tells how much that is).
"""

from __future__ import annotations

import heapq
import re
import sqlite3
import struct
import sys
import zlib
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MCAP_MAGIC = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END, _LAST_OPCODE = 0x03, 0x04, 0x05, 0x06, 0x0F, 0x0F
_RECORD_HEAD = struct.Struct("<BQ")  # opcode, length of the content
_CHUNK_HEAD = struct.Struct("<QQQII")  # start, end, uncompressed size, crc, length of the compression's name
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_CHUNK_PATTERN = re.compile(rb"(?=\x06.{36}(?:\x00{4}|\x04\x00{3}zstd|\x03\x00{3}lz4).{8})", re.DOTALL)
_LOOSE_BYTES = 4 << 20  # records outside chunks are taken together up to this size
_SEARCH_BYTES = 16 << 20
_MISSING_ROWS = 4096  # as many unreadable rows in a row end the search
_DECOMPRESS_STEP = 64 << 10  # small steps keep what came out before a broken byte

decompress_message = zstd.decompress


@dataclass(frozen=True)
class StoredMessage:
    """One serialized message as it lies in a bag file."""

    topic: str
    type: str
    log_ns: int
    data: bytes


@dataclass
class BagTopic:
    """A topic of a bag, or of one of its files.

    Attributes:
        name: Topic name.
        type: Message type, such as "sensor_msgs/msg/Image".
        count: Readable messages.
    """

    name: str
    type: str
    count: int = 0


@dataclass
class Contents:
    """What a file holds: topics with counts, first and last log time, and what could not be read."""

    topics: dict[str, BagTopic] = field(default_factory=dict)
    start_ns: int | None = None
    end_ns: int | None = None
    problems: list[str] = field(default_factory=list)

    def topic(self, name: str, msgtype: str) -> BagTopic:
        """The topic of that name, made where it is not known yet."""
        return self.topics.setdefault(name, BagTopic(name, msgtype))

    def count(self, message: StoredMessage) -> None:
        """Add one message."""
        self.topic(message.topic, message.type).count += 1
        self.start_ns = message.log_ns if self.start_ns is None else min(self.start_ns, message.log_ns)
        self.end_ns = message.log_ns if self.end_ns is None else max(self.end_ns, message.log_ns)


@dataclass(frozen=True)
class _Piece:
    """A chunk, or a run of records outside chunks."""

    offset: int
    stored_bytes: int
    uncompressed_bytes: int
    compression: str = ""
    crc: int = 0
    start_ns: int = 0


class McapSalvage:
    """Walks an MCAP file without trusting its index.

    Raises:
        ValueError: The file does not begin as an MCAP file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contents = Contents()
        self._pieces: list[_Piece] = []
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, tuple[str, str]] = {}  # topic and type
        with path.open("rb") as file:
            if file.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
                raise ValueError(f"{path.name} does not begin as an MCAP file")
            for piece in self._walk(file, path.stat().st_size):
                records, problem = _records_of(file, piece)
                messages = list(self._messages_in(records))
                for message in messages:
                    self.contents.count(message)
                if problem:
                    span = f", {len(messages)} messages before it were read" if messages else ""
                    self.contents.problems.append(f"{path.name}: chunk at byte {piece.offset}: {problem}{span}")
                if messages:
                    self._pieces.append(replace(piece, start_ns=min(message.log_ns for message in messages)))
        self._pieces.sort(key=lambda piece: piece.start_ns)

    def messages(
        self, topics: Collection[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[StoredMessage]:
        """Yield the readable messages of `topics` by log time, with `start_ns` <= log time < `stop_ns`."""
        waiting: list[tuple[int, int, StoredMessage]] = []  # pieces may overlap in time
        number = 0
        with self.path.open("rb") as file:
            for piece in self._pieces:
                while waiting and waiting[0][0] < piece.start_ns:
                    yield heapq.heappop(waiting)[2]
                for message in self._messages_in(_records_of(file, piece)[0]):
                    if message.topic in topics and _is_within(message.log_ns, start_ns, stop_ns):
                        heapq.heappush(waiting, (message.log_ns, number, replace(message, data=bytes(message.data))))
                        number += 1
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _messages_in(self, records: list[tuple[int, memoryview]]) -> Iterator[StoredMessage]:
        """Note the channels among the records, and yield the messages of known ones; their data are views."""
        for opcode, content in records:
            if opcode == _SCHEMA:
                self._schemas[_uint16(content, 0)] = _string(content, 2)
            elif opcode == _CHANNEL:
                channel = _string(content, 4), self._schemas.get(_uint16(content, 2), "")
                self._channels[_uint16(content, 0)] = channel
                self.contents.topic(*channel)
            elif opcode == _MESSAGE and len(content) >= _MESSAGE_HEAD.size:
                number, _, log_ns, _ = _MESSAGE_HEAD.unpack_from(content)
                if number in self._channels:
                    yield StoredMessage(*self._channels[number], log_ns, content[_MESSAGE_HEAD.size :])  # type: ignore[arg-type]

    def _walk(self, file: BinaryIO, size: int) -> Iterator[_Piece]:
        """Yield the pieces in file order; a record that makes no sense is stepped over to the next chunk."""
        offset = loose_start = len(MCAP_MAGIC)
        while offset + _RECORD_HEAD.size <= size:
            file.seek(offset)
            opcode, length = _RECORD_HEAD.unpack(file.read(_RECORD_HEAD.size))
            end = offset + _RECORD_HEAD.size + length
            if opcode in (_SCHEMA, _CHANNEL, _MESSAGE) and end <= size:
                if end - loose_start > _LOOSE_BYTES:
                    yield from _loose(loose_start, offset)
                    loose_start = offset
                offset = end
                continue
            yield from _loose(loose_start, offset)
            if opcode == _DATA_END:  # behind it lies only the index
                return
            if opcode == _CHUNK and (chunk := _chunk_at(file, offset, size)) is not None:
                yield chunk
                offset = loose_start = end
            elif opcode != _CHUNK and 1 <= opcode <= _LAST_OPCODE and end <= size:
                offset = loose_start = end
            else:
                found = _find_chunk(file, offset + 1, size)
                self.contents.problems.append(
                    f"{self.path.name}: bytes {offset} to {size if found is None else found} are not readable"
                    + (" (the file is cut there)" if found is None else "")
                )
                if found is None:
                    return
                offset = loose_start = found
        yield from _loose(loose_start, min(offset, size))
        self.contents.problems.append(f"{self.path.name}: cut after {size} bytes, its index is missing")


def _loose(start: int, end: int) -> Iterator[_Piece]:
    """The records outside chunks between two places, where there are any."""
    if end > start:
        yield _Piece(start, end - start, end - start)


def _chunk_at(file: BinaryIO, offset: int, file_size: int) -> _Piece | None:
    """The chunk at `offset`, or None where the lengths in its head contradict each other."""
    file.seek(offset)
    head = file.read(_RECORD_HEAD.size + _CHUNK_HEAD.size + 12)
    if len(head) < _RECORD_HEAD.size + _CHUNK_HEAD.size + 8:
        return None
    _, length = _RECORD_HEAD.unpack_from(head)
    _, _, uncompressed, crc, name_length = _CHUNK_HEAD.unpack_from(head, _RECORD_HEAD.size)
    name_start = _RECORD_HEAD.size + _CHUNK_HEAD.size
    name_end = name_start + name_length
    stored = int.from_bytes(head[name_end : name_end + 8], "little")
    if head[name_start:name_end] not in (b"", b"lz4", b"zstd") or length != name_end - _RECORD_HEAD.size + 8 + stored:
        return None
    start = offset + name_end + 8
    compression = head[name_start:name_end].decode()
    return _Piece(start, min(stored, max(0, file_size - start)), uncompressed, compression, crc)


def _find_chunk(file: BinaryIO, offset: int, file_size: int) -> int | None:
    """Offset of the next plausible chunk record at or behind `offset`."""
    while offset < file_size:
        file.seek(offset)
        window = file.read(_SEARCH_BYTES)
        for match in _CHUNK_PATTERN.finditer(window):
            if _chunk_at(file, offset + match.start(), file_size) is not None:
                return offset + match.start()
        offset += max(1, len(window) - 64)  # a head may lie across two windows
        if len(window) < _SEARCH_BYTES:
            return None
    return None


def _records_of(file: BinaryIO, piece: _Piece) -> tuple[list[tuple[int, memoryview]], str | None]:
    """Opcode and content of a piece's records as far as they can be decompressed, and what is wrong with them."""
    file.seek(piece.offset)
    data, problem = file.read(piece.stored_bytes), None
    if piece.compression:
        decompressor: Any = zstd.ZstdDecompressor() if piece.compression == "zstd" else LZ4FrameDecompressor()
        out = bytearray()
        try:
            for start in range(0, len(data), _DECOMPRESS_STEP):
                out += decompressor.decompress(data[start : start + _DECOMPRESS_STEP])
        except Exception as error:  # the two libraries raise different families
            problem = f"not decompressible ({error})"
        data = bytes(out)
    if problem is None and len(data) != piece.uncompressed_bytes:
        problem = f"only {len(data)} of {piece.uncompressed_bytes} bytes are there"
    if problem is None and piece.crc and zlib.crc32(data) != piece.crc:
        return [], "its checksum is wrong, all its messages are left out"
    records, offset, view = [], 0, memoryview(data)
    while offset + _RECORD_HEAD.size <= len(data):
        opcode, length = _RECORD_HEAD.unpack_from(data, offset)
        start, end = offset + _RECORD_HEAD.size, offset + _RECORD_HEAD.size + length
        if not 1 <= opcode <= _LAST_OPCODE or end > len(data):
            break
        records.append((opcode, view[start:end]))
        offset = end
    return records, problem or (None if offset == len(data) else "its records break off")


class SqliteSalvage:
    """Reads a damaged SQLite bag row by row, so that a broken page costs only its own messages.

    Raises:
        ValueError: Not even the list of topics can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contents = Contents()
        with _open_sqlite(path) as database:
            try:
                self._topics = {
                    int(number): (str(name), str(msgtype))
                    for number, name, msgtype in database.execute("SELECT id, name, type FROM topics")
                }
            except sqlite3.Error as error:
                raise ValueError(f"{path.name}: the list of topics is not readable ({error})") from None
            for name, msgtype in self._topics.values():
                self.contents.topic(name, msgtype)
        lost = 0
        for message in self._rows(self.contents.problems):
            if message is None:
                lost += 1
            else:
                self.contents.count(message)
        if lost:
            self.contents.problems.append(f"{path.name}: {lost} messages lie on unreadable pages and are left out")

    def messages(
        self, topics: Collection[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[StoredMessage]:
        """Yield the readable messages of `topics` by log time, with `start_ns` <= log time < `stop_ns`."""
        for message in self._rows([]):
            if message is not None and message.topic in topics and _is_within(message.log_ns, start_ns, stop_ns):
                yield message

    def _rows(self, problems: list[str]) -> Iterator[StoredMessage | None]:
        """Every message that is known of, None for each that is not readable."""
        with _open_sqlite(self.path) as database:
            for row in self._row_numbers(database, problems):
                try:
                    topic, log_ns, data = database.execute(
                        "SELECT topic_id, timestamp, data FROM messages WHERE id = ?", (row,)
                    ).fetchone()
                    name, msgtype = self._topics[topic]
                    yield StoredMessage(name, msgtype, log_ns, bytes(data))
                except (sqlite3.Error, TypeError, KeyError):
                    yield None

    def _row_numbers(self, database: sqlite3.Connection, problems: list[str]) -> Iterator[int]:
        """Row ids in time order, from the time index, which needs no page of the messages themselves."""
        last = 0
        try:
            for (row,) in database.execute("SELECT id FROM messages ORDER BY timestamp"):
                last = max(last, row)
                yield row
            return
        except sqlite3.Error as error:
            problems.append(f"{self.path.name}: the time index ends early ({error})")
        misses = 0
        while misses < _MISSING_ROWS:  # rows are numbered as they were recorded
            last += 1
            try:
                found = database.execute("SELECT 1 FROM messages WHERE id = ?", (last,)).fetchone()
            except sqlite3.Error:
                found = None
            misses = 0 if found else misses + 1
            if found:
                yield last


@contextmanager
def _open_sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection that also opens a file shorter than its header says."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        # Its side effect: sqlite then believes the file's real size instead of refusing a cut file.
        database.execute("PRAGMA writable_schema=ON")
        yield database


def decompress_file(source: Path, target: Path) -> str | None:
    """Decompress a zstd file as far as it goes; returns what is wrong with it, or None."""
    decompressor = zstd.ZstdDecompressor()
    with source.open("rb") as packed, target.open("wb") as out:
        try:
            while data := packed.read(_DECOMPRESS_STEP):
                while data:
                    out.write(decompressor.decompress(data))
                    data = b""
                    if decompressor.eof:  # a file may hold several frames
                        data = decompressor.unused_data
                        decompressor = zstd.ZstdDecompressor()
        except zstd.ZstdError as error:
            return f"{source.name}: not readable behind byte {packed.tell()} ({error})"
    return None


def _is_within(log_ns: int, start_ns: int | None, stop_ns: int | None) -> bool:
    return (start_ns is None or log_ns >= start_ns) and (stop_ns is None or log_ns < stop_ns)


def _uint16(data: memoryview, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _string(data: memoryview, offset: int) -> str:
    length = int.from_bytes(data[offset : offset + 4], "little")
    return bytes(data[offset + 4 : offset + 4 + length]).decode("utf-8", "replace")
