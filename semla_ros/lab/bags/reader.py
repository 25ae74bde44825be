"""Reads rosbag2 recordings (mcap and sqlite3, compressed or not) without ROS, as a stream.

A damaged or cut file is read as far as it goes, and behind the damage where that is possible; `BagReader.problems` says
what was not readable.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from semla_ros.errors import BagError
from semla_ros.lab.bags.salvage import (
    BagTopic,
    Contents,
    McapSalvage,
    SqliteSalvage,
    StoredMessage,
    decompress_file,
    decompress_message,
)

logger = logging.getLogger(__name__)

TYPES = get_typestore(Stores.ROS2_JAZZY)
STORAGE_SUFFIXES = (".mcap", ".db3")


class BagReader:
    """One bag: a rosbag2 folder, or a single .mcap or .db3 file. Use it as a context manager.

    Args:
        path: The bag.

    Attributes:
        path: The bag.
        topics: Its topics, by name.
        start_ns: Log time of the first message; 0 in an empty bag.
        end_ns: Log time of the last message.
        message_count: Readable messages.
        problems: What was not readable, one sentence each; grows while messages are read.

    Raises:
        BagError: It is not a bag, or nothing of it is readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        self._resources = ExitStack()
        try:
            metadata = self._read_metadata()
            self._is_message_compressed = str(metadata.get("compression_mode") or "").lower() == "message"
            self._files = self._open_files(self._file_paths(metadata))
        except BaseException:
            self.close()
            raise
        whole = Contents()
        for contents in (file.contents for file in self._files):
            for topic in contents.topics.values():
                whole.topic(topic.name, topic.type).count += topic.count
        self.topics = dict(sorted(whole.topics.items()))
        self.start_ns = min((f.contents.start_ns for f in self._files if f.contents.start_ns is not None), default=0)
        self.end_ns = max((f.contents.end_ns for f in self._files if f.contents.end_ns is not None), default=0)
        self.message_count = sum(topic.count for topic in self.topics.values())

    def messages(
        self, topics: Collection[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[StoredMessage]:
        """Yield messages of `topics` in the order of their log time, with `start_ns` <= log time < `stop_ns`.

        Only a few chunks are in memory at a time, however long the bag is.

        Raises:
            BagError: A topic is not in the bag.
        """
        for topic in topics:
            self.require(topic)
        for file in self._files:
            for message in file.messages(topics, start_ns, stop_ns):
                if self._is_message_compressed:
                    try:
                        yield replace(message, data=decompress_message(message.data))
                    except Exception as error:  # the compressor's own family
                        self.problems.append(
                            f"{self.path.name}: message of {message.topic} at {message.log_ns} ns cannot be "
                            f"decompressed ({error})"
                        )
                else:
                    yield message

    def require(self, topic: str) -> BagTopic:
        """The topic of that name.

        Raises:
            BagError: It is not in the bag; the message lists what is.
        """
        if topic not in self.topics:
            raise BagError(f"bag {self.path}: there is no topic '{topic}'; it has {self.describe_topics()}")
        return self.topics[topic]

    def topics_of_type(self, *types: str) -> tuple[str, ...]:
        """Names of the topics of one of these types that have messages."""
        return tuple(topic.name for topic in self.topics.values() if topic.type in types and topic.count)

    def describe_topics(self) -> str:
        """The topics as one line: name (type, count)."""
        return ", ".join(f"{t.name} ({t.type}, {t.count})" for t in self.topics.values()) or "no topics"

    def deserialize(self, message: StoredMessage) -> Any:
        """The message as an object with the fields of its type.

        Raises:
            BagError: The type is not known, or the bytes are not such a message.
        """
        try:
            return TYPES.deserialize_cdr(message.data, message.type)
        except Exception as error:  # rosbags raises several families
            raise BagError(
                f"bag {self.path}: message of {message.topic} at {message.log_ns} ns is not a readable "
                f"{message.type} ({type(error).__name__}: {error})"
            ) from None

    def close(self) -> None:
        """Close the files and remove what was decompressed."""
        self._resources.close()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_metadata(self) -> dict[str, Any]:
        """What `metadata.yaml` says; empty where it is missing or damaged, which the files themselves make up for."""
        path = self.path
        if not path.exists():
            raise BagError(f"bag {path}: there is no such file or folder")
        if path.suffix == ".bag":
            raise BagError(
                f"bag {path}: a ROS 1 bag; convert it with 'rosbags-convert --src {path.name} --dst {path.stem}'"
            )
        if path.is_file():
            return {}
        file = path / "metadata.yaml"
        try:
            metadata = yaml.safe_load(file.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
            if not isinstance(metadata, dict):
                raise TypeError("no mapping")
            return metadata
        except FileNotFoundError:
            self.problems.append("metadata.yaml is missing (recording cut short?); the files themselves are read")
        except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
            self.problems.append(
                f"metadata.yaml is not readable ({type(error).__name__}); the files themselves are read"
            )
        return {}

    def _file_paths(self, metadata: dict[str, Any]) -> list[Path]:
        """The storage files in recording order."""
        if self.path.is_file():
            paths = [self.path]
        elif names := metadata.get("relative_file_paths"):
            listed = [self.path / Path(str(name)).name for name in names]
            paths = [path for path in listed if path.exists()]
            self.problems += [f"{path.name} is missing" for path in listed if not path.exists()]
        else:
            found = [path for path in self.path.iterdir() if _storage_suffix(path) in STORAGE_SUFFIXES]
            paths = sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)] or [0])
        unknown = [path for path in paths if _storage_suffix(path) not in STORAGE_SUFFIXES]
        if not paths or unknown:
            what = f"'{unknown[0].name}' is no storage this reads" if unknown else "it holds no readable storage file"
            raise BagError(
                f"bag {self.path}: not a rosbag2 recording: {what}; expected a folder with metadata.yaml and "
                ".mcap or .db3 files, or one such file"
            )
        return paths

    def _open_files(self, paths: list[Path]) -> list[_StorageFile]:
        """Open what can be opened; one unreadable file of several is a problem, of one it is an error."""
        files: list[_StorageFile] = []
        for path in paths:
            try:
                files.append(self._open_file(path))
            except BagError as error:
                if len(paths) == 1:
                    raise
                self.problems.append(str(error))
        if not files:
            raise BagError(f"bag {self.path}: none of its {len(paths)} files is readable: {'; '.join(self.problems)}")
        return files

    def _open_file(self, path: Path) -> _StorageFile:
        if path.suffix == ".zstd":
            folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="semla-bag-")))
            target = folder / path.stem
            if problem := decompress_file(path, target):
                self.problems.append(problem)
            path = target
        file = _StorageFile(path, self.problems)
        self._resources.callback(file.close)
        return file


class _StorageFile:
    """A file through the rosbags library; where that stops, through salvage from there on."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self._path = path
        self._problems = problems
        self._reader: Reader | None = None
        self._salvage: McapSalvage | SqliteSalvage | None = None
        self.contents = Contents()
        try:
            self._reader = Reader(path)
            self._reader.open()
            for connection in self._reader.connections:
                self.contents.topic(connection.topic, connection.msgtype).count += connection.msgcount
            if self._reader.message_count:
                self.contents.start_ns, self.contents.end_ns = self._reader.start_time, self._reader.end_time - 1
        except Exception as error:  # whatever a damaged file makes the library raise
            logger.info("%s: the ordinary reader stopped (%s), salvaging", path, error)
            self._reader = None
            self.contents = self._salvaged().contents

    def messages(
        self, topics: Collection[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[StoredMessage]:
        wanted = set(topics)
        last_ns: int | None = None
        at_last: list[StoredMessage] = []  # what was already handed over at the last log time
        if self._reader is not None:
            connections = [item for item in self._reader.connections if item.topic in wanted]
            if not connections:
                return
            try:
                for connection, log_ns, data in self._reader.messages(connections, start_ns, stop_ns):
                    message = StoredMessage(connection.topic, connection.msgtype, log_ns, data)
                    at_last = [*at_last, message] if log_ns == last_ns else [message]
                    last_ns = log_ns
                    yield message
                return
            except Exception as error:
                logger.info("%s: the ordinary reader stopped (%s), salvaging", self._path, error)
        for message in self._salvaged().messages(wanted, start_ns if last_ns is None else last_ns, stop_ns):
            if message not in at_last:
                yield message

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _salvaged(self) -> McapSalvage | SqliteSalvage:
        if self._salvage is None:
            try:
                self._salvage = McapSalvage(self._path) if self._path.suffix == ".mcap" else SqliteSalvage(self._path)
            except Exception as error:
                raise BagError(f"bag file {self._path}: not a readable {self._path.suffix} file: {error}") from None
            self._problems += self._salvage.contents.problems
        return self._salvage


def _storage_suffix(path: Path) -> str:
    """The suffix without compression: .mcap for a.mcap and a.mcap.zstd."""
    return Path(path.stem).suffix if path.suffix == ".zstd" else path.suffix
