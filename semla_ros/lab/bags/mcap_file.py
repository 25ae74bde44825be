"""Reads an MCAP file without trusting its index, around what is damaged.

The index is used where it adds up with the file's own statistics, so that a healthy file is opened without reading its
chunks. In any other file every chunk is looked into once. The readers of `rosbags` and of the `mcap` package go by the
index alone: what it does not name they leave out in silence, and at the first broken byte they stop.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from semla_ros.errors import counted
from semla_ros.lab.bags.packing import decompress_chunk
from semla_ros.lab.bags.stored import Contents, Note, Part, StoredMessage, type_as

MCAP_MAGIC = b"\x89MCAP0\r\n"
_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _INDEX = range(1, 8)
_STATISTICS, _METADATA, _SUMMARY_OFFSET, _DATA_END = 0x0B, 0x0C, 0x0E, 0x0F
_NOTED = (_HEADER, _SCHEMA, _CHANNEL, _STATISTICS, _METADATA)
_LENGTHS = {_FOOTER: 20, _SUMMARY_OFFSET: 17, _DATA_END: 4}
_PRIVATE = 0x80  # from here on, opcodes are for applications
_RECORD_HEAD = struct.Struct("<BQ")  # opcode, length of the content
_CHUNK_HEAD = struct.Struct("<QQQII")  # start, end, uncompressed size, crc, length of the compression's name
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_STATISTICS_HEAD = struct.Struct("<Q34xI")  # messages; bytes of the map of counts
_INDEX_HEAD = struct.Struct("<HI")  # channel, bytes of the entries
_INDEX_ENTRY = struct.Struct("<QQ")  # log time, offset in the chunk
_CHANNEL_COUNT = struct.Struct("<HQ")
_RECORD_PATTERN = re.compile(rb"(?=[\x05\x06].{5}\x00{3})", re.DOTALL)  # a message or a chunk, shorter than 2^40 bytes
_NOTED_BYTES = 16 << 20  # longer records of other kinds are not read
_LOOSE_BYTES = 4 << 20  # messages outside chunks are taken together up to this size
_SEARCH_BYTES = 16 << 20
_DAY_NS = 86_400 * 10**9


@dataclass(eq=False)
class _Piece:
    """A chunk, or a run of records outside chunks.

    Attributes:
        offset: Where its records begin.
        stored_bytes: How many bytes of them are in the file.
        chunk: Compression, uncompressed size and checksum; None where it is no chunk.
        counts: Messages by channel. Of a chunk as its index says, until it is looked into.
        start_ns: Log time of the first one.
        end_ns: Log time of the last one.
    """

    offset: int
    stored_bytes: int
    chunk: tuple[str, int, int] | None = None
    counts: Counter[int] = field(default_factory=Counter)
    start_ns: int = 1 << 64
    end_ns: int = 0

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.offset + self.stored_bytes

    def add(self, channel: int, log_ns: int) -> None:
        """Count a message."""
        self.counts[channel] += 1
        self.start_ns, self.end_ns = min(self.start_ns, log_ns), max(self.end_ns, log_ns)


class McapFile:
    """One MCAP file.

    Args:
        path: The file.
        note: Told what is not readable, also while messages are read.

    Attributes:
        contents: What it holds.

    Raises:
        ValueError: It is no MCAP file.
    """

    def __init__(self, path: Path, note: Note) -> None:
        self._path = path
        self._note = note
        self._profile = ""
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, tuple[str, str]] = {}  # topic and type
        self._statistics: Counter[int] | None = None
        self._pieces: list[_Piece] = []
        self.contents = Contents()
        with path.open("rb") as file:
            is_mcap = file.read(len(MCAP_MAGIC)) == MCAP_MAGIC
            self._walk(file, path.stat().st_size)
            if not self._has_sound_index():
                for piece in self._pieces:
                    if piece.chunk:
                        self._look_into(file, piece)
        if not is_mcap:
            if not self._channels:
                raise ValueError("it does not begin as an MCAP file")
            note(f"{path.name}: does not begin as an MCAP file")
        self._fill_contents()

    @property
    def is_ros1(self) -> bool:
        """Whether its messages are serialized as ROS 1 did."""
        kinds = [msgtype.endswith(" as ros1") for _, msgtype in self._channels.values()]
        return self._profile == "ros1" or (bool(kinds) and all(kinds))

    def _fill_contents(self) -> None:
        contents = self.contents
        for topic, msgtype in self._channels.values():
            contents.name_type(topic, msgtype, self._note)
        contents.claims = self._by_topic(self._statistics or Counter())
        for piece in self._pieces:
            contents.nameless += sum(count for channel, count in piece.counts.items() if channel not in self._channels)
            if counts := self._by_topic(piece.counts):
                contents.parts.append(Part(counts, piece.start_ns, piece.end_ns, partial(self._read, piece)))
        held = sum((part.counts for part in contents.parts), Counter[str]())
        for topic in sorted(held.keys() | contents.claims.keys()):
            if self._statistics is not None and held[topic] != contents.claims[topic]:
                self._note(
                    f"{self._path.name}: its statistics count {counted(contents.claims[topic], 'message')} of {topic}, "
                    f"{held[topic]} found"
                )
        if contents.nameless:
            self._note(f"{self._path.name}: the topic of {counted(contents.nameless, 'message')} is not in the file")

    def _by_topic(self, by_channel: Counter[int]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for channel, count in by_channel.items():
            if channel in self._channels and count:
                counts[self._channels[channel][0]] += count
        return counts

    def _has_sound_index(self) -> bool:
        """Whether the chunks' indices name as many messages as the statistics count, all of known channels."""
        indexed = sum((piece.counts for piece in self._pieces), Counter[int]())
        return (
            self._statistics is not None
            and indexed == +self._statistics
            and indexed.keys() <= self._channels.keys()
            and all(piece.counts for piece in self._pieces if piece.chunk)
        )

    def _look_into(self, file: BinaryIO, piece: _Piece) -> None:
        """Count what a chunk holds, whatever its index says."""
        piece.counts, piece.start_ns, piece.end_ns = Counter(), 1 << 64, 0
        for channel, log_ns, _ in self._messages_in(file, piece):
            piece.add(channel, log_ns)

    def _read(self, piece: _Piece, topics: Collection[str], _: int) -> Iterator[StoredMessage]:
        with self._path.open("rb") as file:
            messages = [
                StoredMessage(*self._channels[channel], log_ns, bytes(data))
                for channel, log_ns, data in self._messages_in(file, piece)
                if channel in self._channels and self._channels[channel][0] in topics
            ]
        messages.sort(key=lambda message: message.log_ns)
        yield from messages

    def _messages_in(self, file: BinaryIO, piece: _Piece) -> Iterator[tuple[int, int, memoryview]]:
        """Channel, log time and data of each readable message; notes the channels that lie among them."""
        for opcode, content in self._records_of(file, piece):
            if opcode == _MESSAGE and len(content) >= _MESSAGE_HEAD.size:
                channel, _, log_ns, _ = _MESSAGE_HEAD.unpack_from(content)
                yield channel, log_ns, content[_MESSAGE_HEAD.size :]
            elif opcode in (_SCHEMA, _CHANNEL) and not self._take_note(opcode, content):
                self._note(f"{self._path.name}: chunk at byte {piece.offset}: a channel of it is not readable")

    def _records_of(self, file: BinaryIO, piece: _Piece) -> list[tuple[int, memoryview]]:
        """Opcode and content of a piece's records as far as they are readable."""
        file.seek(piece.offset)
        data, problem = file.read(piece.stored_bytes), None
        if piece.chunk:
            data, problem = decompress_chunk(data, *piece.chunk)
        records, offset, view = [], 0, memoryview(data)
        while offset + _RECORD_HEAD.size <= len(data):
            opcode, length = _RECORD_HEAD.unpack_from(data, offset)
            start, end = offset + _RECORD_HEAD.size, offset + _RECORD_HEAD.size + length
            if opcode not in (_SCHEMA, _CHANNEL, _MESSAGE) or end > len(data):
                break
            records.append((opcode, view[start:end]))
            offset = end
        if problem or offset != len(data):
            problem = problem or "its records break off"
            self._note(f"{self._path.name}: chunk at byte {piece.offset}: {problem}", f"chunk {problem}")
        return records

    # Walking over the file

    def _walk(self, file: BinaryIO, size: int) -> None:
        """Note the pieces in file order; what makes no sense is stepped over to the next message or chunk."""
        offset, previous = len(MCAP_MAGIC), 0
        while offset + _RECORD_HEAD.size <= size:
            file.seek(offset)
            opcode, length = _RECORD_HEAD.unpack(file.read(_RECORD_HEAD.size))
            if self._take(file, opcode, offset, length, size):
                if opcode == _FOOTER:
                    return
                previous, offset = offset if opcode == _MESSAGE else 0, offset + _RECORD_HEAD.size + length
                continue
            # A message before it whose length is damaged may have swallowed others.
            found = self._find_record(file, previous + 32 if previous else offset + 1, size)
            if found < offset:
                self._note(f"{self._path.name}: the length of the record at byte {previous} is not right", "length")
            else:
                end = " (the file is cut there)" if found == size else ""
                self._note(f"{self._path.name}: bytes {offset} to {found} are not readable{end}", "bytes")
            offset = found
            previous = 0
        self._note(f"{self._path.name}: cut after {size} bytes, its index is missing")

    def _take(self, file: BinaryIO, opcode: int, offset: int, length: int, size: int) -> bool:
        """Note what a record says; False where it makes no sense. The file stands behind the record's head."""
        start = offset + _RECORD_HEAD.size
        if opcode == _CHUNK:
            chunk = _chunk_at(file, offset, size)
            self._pieces += [chunk] if chunk else []
            return chunk is not None
        if (
            start + length > size
            or _LENGTHS.get(opcode, length) != length
            or not (1 <= opcode <= _DATA_END or opcode >= _PRIVATE)
        ):
            return False
        if opcode == _MESSAGE:
            return self._take_message(file, offset, length)
        if opcode == _INDEX:
            return self._take_index(file.read(length) if length < _NOTED_BYTES else b"")
        if opcode in (_SCHEMA, _CHANNEL):
            self._loose(offset, length)
        if opcode >= _PRIVATE:
            text = f"{self._path.name}: a record of the unknown kind {opcode} at byte {offset} is stepped over"
            self._note(text, "unknown record")
        return opcode not in _NOTED or length > _NOTED_BYTES or self._take_note(opcode, memoryview(file.read(length)))

    def _take_message(self, file: BinaryIO, offset: int, length: int) -> bool:
        """Count a message outside chunks."""
        if length < _MESSAGE_HEAD.size:
            return False
        channel, _, log_ns, _ = _MESSAGE_HEAD.unpack(file.read(_MESSAGE_HEAD.size))
        self._loose(offset, length).add(channel, log_ns)
        return True

    def _loose(self, offset: int, length: int) -> _Piece:
        """The piece that a record outside chunks belongs to."""
        last = self._pieces[-1] if self._pieces else None
        if last is None or last.chunk or last.end != offset or last.stored_bytes > _LOOSE_BYTES:
            last = _Piece(offset, 0)
            self._pieces.append(last)
        last.stored_bytes += _RECORD_HEAD.size + length
        return last

    def _take_index(self, content: bytes) -> bool:
        """Count what a chunk's index names of one channel."""
        if len(content) < _INDEX_HEAD.size:
            return False
        channel, length = _INDEX_HEAD.unpack_from(content)
        if length != len(content) - _INDEX_HEAD.size or length % _INDEX_ENTRY.size:
            return False
        if self._pieces and self._pieces[-1].chunk:
            for log_ns, _ in _INDEX_ENTRY.iter_unpack(memoryview(content)[_INDEX_HEAD.size :]):
                self._pieces[-1].add(channel, log_ns)
        return True

    def _take_note(self, opcode: int, content: memoryview) -> bool:
        """Read a record that is neither message nor index; False where it makes no sense."""
        try:
            if opcode == _HEADER:
                self._profile = _text(content, 0)[0]
            elif opcode == _SCHEMA:
                name, end = _text(content, 2)
                _, end = _text(content, end)
                if end + 4 + _uint(content, end, 4) != len(content):
                    return False
                self._schemas.setdefault(_uint(content, 0, 2), name)
            elif opcode == _CHANNEL:
                topic, end = _text(content, 4)
                encoding, end = _text(content, end)
                if end + 4 + _uint(content, end, 4) != len(content):
                    return False
                msgtype = type_as(self._schemas.get(_uint(content, 2, 2), ""), encoding)
                self._channels.setdefault(_uint(content, 0, 2), (topic, msgtype))
            elif opcode == _STATISTICS:
                total, _ = _STATISTICS_HEAD.unpack_from(content)
                counts = Counter(dict(_CHANNEL_COUNT.iter_unpack(content[_STATISTICS_HEAD.size :])))
                if counts.total() != total:
                    self._note(f"{self._path.name}: its statistics contradict themselves and are not used")
                    return True
                self._statistics = counts
            elif opcode == _METADATA and _text(content, 0)[0] == "rosbag2":
                end = _text(content, 0)[1] + 4
                _, end = _text(content, end)
                self.contents.metadata = _text(content, end)[0]
        except (struct.error, ValueError):
            return False
        return True

    def _find_record(self, file: BinaryIO, offset: int, size: int) -> int:
        """Offset of the next plausible chunk or message at or behind `offset`; the file's size where there is none."""
        while offset < size:
            file.seek(offset)
            window = file.read(_SEARCH_BYTES)
            for match in _RECORD_PATTERN.finditer(window):
                if self._is_plausible(file, offset + match.start(), size):
                    return offset + match.start()
            offset += max(1, len(window) - 16) if len(window) == _SEARCH_BYTES else len(window)
        return size

    def _is_plausible(self, file: BinaryIO, offset: int, size: int) -> bool:
        """Whether a chunk lies there, or a message of a known channel, of about the time of others, before a record."""
        file.seek(offset)
        head = file.read(_RECORD_HEAD.size + _MESSAGE_HEAD.size)
        opcode, length = _RECORD_HEAD.unpack_from(head)
        if opcode == _CHUNK:
            return _chunk_at(file, offset, size) is not None
        end = offset + _RECORD_HEAD.size + length
        if length < _MESSAGE_HEAD.size or end > size or len(head) < _RECORD_HEAD.size + _MESSAGE_HEAD.size:
            return False
        channel, _, log_ns, _ = _MESSAGE_HEAD.unpack_from(head, _RECORD_HEAD.size)
        known_ns = next((piece.end_ns for piece in reversed(self._pieces) if piece.counts), log_ns)
        file.seek(end)
        following = file.read(1)
        return (
            channel in self._channels
            and abs(log_ns - known_ns) < _DAY_NS
            and (not following or 1 <= following[0] <= 15)
        )


def _chunk_at(file: BinaryIO, offset: int, file_size: int) -> _Piece | None:
    """The chunk at `offset`, or None where the lengths in its head contradict each other."""
    file.seek(offset)
    head = file.read(_RECORD_HEAD.size + _CHUNK_HEAD.size + 40)
    name_start = _RECORD_HEAD.size + _CHUNK_HEAD.size
    if len(head) < name_start + 8:
        return None
    _, length = _RECORD_HEAD.unpack_from(head)
    _, _, uncompressed, checksum, name_length = _CHUNK_HEAD.unpack_from(head, _RECORD_HEAD.size)
    name_end = name_start + name_length
    name, stored = head[name_start:name_end], int.from_bytes(head[name_end : name_end + 8], "little")
    if name_length > 32 or length != name_end - _RECORD_HEAD.size + 8 + stored or not (name + b"a").isalnum():
        return None
    start = offset + name_end + 8
    return _Piece(
        start, min(stored, max(0, file_size - start)), (name.decode("ascii", "replace"), uncompressed, checksum)
    )


def _uint(data: memoryview, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def _text(data: memoryview, offset: int) -> tuple[str, int]:
    """A string, and where it ends.

    Raises:
        ValueError: It does not fit in, or is no UTF-8.
    """
    start = offset + 4
    end = start + _uint(data, offset, 4)
    if start > len(data) or end > len(data):
        raise ValueError("it ends early")
    return bytes(data[start:end]).decode("utf-8"), end
