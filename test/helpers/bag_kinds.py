"""Small recordings of every kind that the field makes: written byte by byte, so that each fault is the one meant.

Each frame shows its own number, so that a frame under another's stamp is found out.
"""

from __future__ import annotations

import gzip
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lz4.frame
import numpy as np
import yaml
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.typesys import Stores, get_typestore

from semla_ros.lab.bags.packing import zstd
from semla_ros.lab.bags.reader import TYPES
from semla_ros.lab.bags.stored import StoredMessage
from semla_ros.lab.bags.writer import BagWriter

IMAGE = "sensor_msgs/msg/Image"
STRING = "std_msgs/msg/String"
TOPIC = "/cam/image_raw"
START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
FRAMES = 10
MAGIC = b"\x89MCAP0\r\n"


def stamp(index: int) -> int:
    return START_NS + index * STEP_NS


def number_picture(index: int, shape: tuple[int, int] = (12, 16)) -> np.ndarray:
    """A grey picture whose every pixel tells its number; none is black or white, as what was blanked is."""
    return np.full((*shape, 3), 40 + 20 * index, np.uint8)


def image_data(index: int, encoding: str = "rgb8") -> bytes:
    pixels = number_picture(index)
    time = TYPES.types["builtin_interfaces/msg/Time"](sec=stamp(index) // 10**9, nanosec=stamp(index) % 10**9)
    message = TYPES.types[IMAGE](
        header=TYPES.types["std_msgs/msg/Header"](stamp=time, frame_id="cam"),
        height=12,
        width=16,
        encoding=encoding,
        is_bigendian=0,
        step=48,
        data=pixels.reshape(-1),
    )
    return bytes(TYPES.serialize_cdr(message, IMAGE))


def string_data(text: str) -> bytes:
    return bytes(TYPES.serialize_cdr(TYPES.types[STRING](data=text), STRING))


def drive(frames: int = FRAMES) -> list[StoredMessage]:
    """Pictures, with a line of text beside each third one."""
    messages = []
    for index in range(frames):
        messages.append(StoredMessage(TOPIC, IMAGE, stamp(index), image_data(index)))
        if index % 3 == 0:
            messages.append(StoredMessage("/note", STRING, stamp(index) + 1, string_data(f"note {index}")))
    return messages


# MCAP


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def _record(opcode: int, content: bytes) -> bytes:
    return struct.pack("<BQ", opcode, len(content)) + content


def _mapping(pairs: Mapping[str, str]) -> bytes:
    content = b"".join(_text(key) + _text(value) for key, value in pairs.items())
    return struct.pack("<I", len(content)) + content


@dataclass(frozen=True, kw_only=True)
class Mcap:
    """How an MCAP file is written.

    Attributes:
        per_chunk: Messages in each chunk; 0 = no chunks.
        indexed: Which chunks get a message index.
        statistics: Whether they are there; or what they count too much of each channel.
        summary: Whether there is anything behind the data.
        has_schemas: Whether channels say what type their messages are.
        channels: So many channels of each topic, in turn.
        extras: Attachments and metadata between the chunks.
        private: Records of an application between the chunks.
        wrong_crc: Chunks whose checksum is wrong.
    """

    per_chunk: int = 2
    compression: str = ""
    indexed: Callable[[int], bool] = lambda chunk: True
    statistics: bool | int = True
    summary: bool = True
    summary_channels: bool = True
    has_schemas: bool = True
    has_crc: bool = True
    wrong_crc: tuple[int, ...] = ()
    channels: int = 1
    profile: str = "ros2"
    encoding: str = "cdr"
    extras: bool = False
    private: bool = False

    def write(self, path: Path, messages: Sequence[StoredMessage]) -> Path:
        path.write_bytes(self.bytes(messages))
        return path

    def bytes(self, messages: Sequence[StoredMessage]) -> bytes:
        out = bytearray(MAGIC + _record(0x01, _text(self.profile) + _text("generator")))
        announced, counts = dict[tuple, tuple[int, bytes]](), dict[int, int]()
        size = self.per_chunk or len(messages)
        for chunk, start in enumerate(range(0, len(messages), size)):
            body, index = bytearray(), dict[int, list[tuple[int, int]]]()
            for number, message in enumerate(messages[start : start + size], start):
                key = (message.topic, message.type, number % self.channels)
                if key not in announced:
                    announced[key] = self._channel(len(announced) + 1, message)
                    body += announced[key][1]
                channel = announced[key][0]
                index.setdefault(channel, []).append((message.log_ns, len(body)))
                counts[channel] = counts.get(channel, 0) + 1
                head = struct.pack("<HIQQ", channel, number, message.log_ns, message.log_ns)
                body += _record(0x05, head + message.data)
            if not self.per_chunk:
                out += body
                continue
            out += self._chunk(chunk, bytes(body), messages[start : start + size])
            if self.indexed(chunk):
                for channel, entries in index.items():
                    packed = b"".join(struct.pack("<QQ", *entry) for entry in entries)
                    out += _record(0x07, struct.pack("<HI", channel, len(packed)) + packed)
            if self.extras:
                out += _record(0x09, struct.pack("<QQ", 1, 1) + _text("a.txt") + _text("text/plain") + bytes(12))
                out += _record(0x0C, _text("other") + _mapping({"driver": "x"}))
            if self.private:
                out += _record(0x90, b"private")
        out += _record(0x0F, bytes(4))
        summary_start = len(out) if self.summary else 0
        if self.summary:
            if self.summary_channels:
                out += b"".join(content for _, content in announced.values())
            if self.statistics is not False:
                wrong = 0 if self.statistics is True else self.statistics
                out += self._statistics({key: count + wrong for key, count in counts.items()}, len(announced))
        return bytes(out + _record(0x02, struct.pack("<QQI", summary_start, 0, 0)) + MAGIC)

    def _channel(self, number: int, message: StoredMessage) -> tuple[int, bytes]:
        schema = struct.pack("<H", number) + _text(message.type) + _text("ros2msg") + _text("")
        channel = struct.pack("<HH", number, number if self.has_schemas else 0)
        channel += _text(message.topic) + _text(self.encoding) + _mapping({"offered_qos_profiles": ""})
        return number, (_record(0x03, schema) if self.has_schemas else b"") + _record(0x04, channel)

    def _chunk(self, number: int, body: bytes, messages: Sequence[StoredMessage]) -> bytes:
        packed = {"": lambda data: data, "lz4": lz4.frame.compress, "zstd": zstd.compress}.get(
            self.compression, lambda data: data
        )(body)
        crc = (zlib.crc32(body) if self.has_crc else 0) ^ (0x5A5A if number in self.wrong_crc else 0)
        times = [message.log_ns for message in messages]
        head = struct.pack("<QQQI", min(times), max(times), len(body), crc) + _text(self.compression)
        return _record(0x06, head + struct.pack("<Q", len(packed)) + packed)

    @staticmethod
    def _statistics(counts: Mapping[int, int], channels: int) -> bytes:
        packed = b"".join(struct.pack("<HQ", *item) for item in counts.items())
        head = struct.pack("<QHIIIIQQ", sum(counts.values()), channels, channels, 0, 0, 1, 0, 0)
        return _record(0x0B, head + struct.pack("<I", len(packed)) + packed)


# SQLite


def write_db3(
    path: Path,
    messages: Sequence[StoredMessage],
    *,
    journal: str = "",
    left_in_journal: int = 0,
    has_index: bool = True,
    page_size: int = 512,
) -> Path:
    """Write a database as rosbag2 does.

    Args:
        path: The file.
        messages: What is recorded.
        journal: "wal" or "delete" leaves the journal of a recorder that was killed.
        left_in_journal: So many of the last messages are in the journal only; of "delete" they were being written.
        has_index: Whether there is an index of times.
        page_size: Of the database; small pages make small recordings that can be damaged in part.
    """
    live = path.with_name("live.db3") if journal else path
    database = sqlite3.connect(live, isolation_level=None)
    database.execute(f"PRAGMA page_size={page_size}")
    database.execute(f"PRAGMA journal_mode={journal or 'delete'}")
    database.execute("PRAGMA cache_size=1")
    database.execute("PRAGMA wal_autocheckpoint=0")
    database.executescript(
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, serialization_format TEXT "
        "NOT NULL, offered_qos_profiles TEXT NOT NULL); CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER "
        "NOT NULL, timestamp INTEGER NOT NULL, data BLOB NOT NULL);"
        + ("CREATE INDEX timestamp_idx ON messages (timestamp ASC);" if has_index else "")
    )
    topics: dict[tuple[str, str], int] = {}
    for message in messages:
        if (message.topic, message.type) not in topics:
            topics[message.topic, message.type] = number = len(topics) + 1
            database.execute("INSERT INTO topics VALUES(?,?,?,'cdr','')", (number, message.topic, message.type))
    written = len(messages) - left_in_journal
    for number, message in enumerate(messages):
        if number == written:
            if journal == "wal":
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            database.execute("BEGIN")
        values = (topics[message.topic, message.type], message.log_ns, message.data)
        database.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES(?,?,?)", values)
    if journal == "wal" and database.in_transaction:
        database.execute("COMMIT")
    if journal:  # copied while it is open: as it lies there after a kill
        for suffix in ("", "-wal", "-journal"):
            if (file := live.with_name(live.name + suffix)).exists():
                shutil.copy(file, path.with_name(path.name + suffix))
    database.close()
    if journal:
        for file in path.parent.glob("live.db3*"):
            file.unlink()
    return path


# Folders


def write_metadata(folder: Path, files: Sequence[str], messages: Sequence[StoredMessage], **changes: object) -> Path:
    counts: dict[tuple[str, str], int] = {}
    for message in messages:
        counts[message.topic, message.type] = counts.get((message.topic, message.type), 0) + 1
    information = {
        "version": 5,
        "storage_identifier": "mcap",
        "relative_file_paths": list(files),
        "duration": {"nanoseconds": 0},
        "starting_time": {"nanoseconds_since_epoch": START_NS},
        "message_count": len(messages),
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": topic, "type": msgtype, "serialization_format": "cdr", "offered_qos_profiles": "",
                },
                "message_count": count,
            }
            for (topic, msgtype), count in counts.items()
        ],
        "compression_format": "",
        "compression_mode": "",
        **changes,
    }  # fmt: skip
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}))
    return folder


def folder_of(path: Path, *names: str, metadata: Sequence[str] | None = None, **changes: object) -> Path:
    """A bag folder of one or more files; the drive is split over them in their order."""
    path.mkdir(parents=True)
    messages = drive()
    share = -(-len(messages) // len(names))
    for number, name in enumerate(names):
        own = messages[number * share : (number + 1) * share]
        (write_db3 if name.endswith(".db3") else Mcap().write)(path / name, own)
    if metadata is not None:
        write_metadata(path, metadata, messages, **changes)
    return path


def pack(file: Path, suffix: str, *, keep: bool = False) -> Path:
    """Compress a file as the command-line tools do, with a checksum of the content; rosbag2 packs .zstd without."""
    compress = {
        ".zstd": zstd.compress,
        ".zst": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}),
        ".lz4": lambda data: lz4.frame.compress(data, content_checksum=True),
        ".gz": gzip.compress,
    }[suffix]
    target = file.with_name(file.name + suffix)
    target.write_bytes(compress(file.read_bytes()))
    if not keep:
        file.unlink()
    return target


def compressed_one_by_one(messages: Sequence[StoredMessage], compress: Callable[[bytes], bytes]) -> list[StoredMessage]:
    return [replace(message, data=compress(message.data)) for message in messages]


def swapped(messages: Sequence[StoredMessage]) -> list[StoredMessage]:
    """Each two neighbours the other way round: log times a little out of order."""
    messages = list(messages)
    for index in range(0, len(messages) - 1, 2):
        messages[index], messages[index + 1] = messages[index + 1], messages[index]
    return messages


def ros1_bag(path: Path) -> Path:
    store = get_typestore(Stores.ROS1_NOETIC)
    with Ros1Writer(path) as bag:
        connection = bag.add_connection("/note", STRING, typestore=store)
        message = store.types[STRING](data="old")
        bag.write(connection, START_NS, store.serialize_ros1(message, STRING))
    return path


def own_answers(path: Path) -> Path:
    """What a replay writes: a bag that says so."""
    with BagWriter(path, is_own_output=True) as bag:
        for index in range(3):
            bag.image("/some/name", number_picture(index), stamp(index))
    return path
