"""Reads rosbag2 recordings (mcap and sqlite3, compressed or not) without ROS, as a stream.

One rule over all: of each topic, the messages handed over and those named as lost are together what the bag counts.
What was not readable, or is not where it should be, stands in `BagReader.problems`.
"""

from __future__ import annotations

import heapq
import os
import shutil
import sqlite3
import tempfile
from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rosbags.typesys import Stores, get_typestore

from semla_ros.errors import BagError, counted
from semla_ros.lab.bags import packing
from semla_ros.lab.bags.mcap_file import MCAP_MAGIC, McapFile
from semla_ros.lab.bags.metadata import Metadata
from semla_ros.lab.bags.sqlite_file import SQLITE_MAGIC, SqliteFile, bytes_missing, journals_of, take_in_journal
from semla_ros.lab.bags.stored import EARLIEST_NS, Contents, Part, Problems, StoredMessage

TYPES = get_typestore(Stores.ROS2_JAZZY)
STORAGE_SUFFIXES = (".mcap", ".db3")
ROS1_MAGIC = b"#ROSBAG V"
METADATA_FILE = "metadata.yaml"
UNKNOWN_TOPIC = "(unknown)"
_UNKNOWN_TYPE = "of unknown type"
_KINDS = {MCAP_MAGIC: ".mcap", SQLITE_MAGIC: ".db3"}


@dataclass(frozen=True)
class BagTopic:
    """A topic of a bag.

    Attributes:
        name: Topic name.
        type: Message type, such as "sensor_msgs/msg/Image".
        count: Messages that the bag counts.
    """

    name: str
    type: str
    count: int


@dataclass(frozen=True)
class Tally:
    """How many messages of a topic there are, as far as the bag was read by now.

    Attributes:
        counted: By the bag.
        readable: In its files.
    """

    counted: int
    readable: int

    @property
    def lost(self) -> int:
        """Messages that are counted and not readable."""
        return self.counted - self.readable


class BagReader:
    """One bag: a rosbag2 folder, or a single .mcap or .db3 file. Use it as a context manager.

    Args:
        path: The bag. Nothing in its folder is changed.

    Attributes:
        path: The bag.
        topics: Its topics, by name, as counted when it was opened.
        start_ns: Log time of the first message; 0 in an empty bag.
        end_ns: Log time of the last message.
        is_own_output: Whether this project wrote it as a bag of answers.

    Raises:
        BagError: It is not a bag, or nothing of it is readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._problems = Problems()
        self._noted: set[int] = set()  # a bag may be read several times
        self._found: dict[Part, dict[str, int]] = {}  # messages by topic that a part really had
        self._repeats: dict[tuple[str, int], list[Counter[int]]] = {}  # topic, log time -> each message's files
        self._resources = ExitStack()
        try:
            self._metadata = self._read_metadata()
            self._files = self._open_files(self._file_paths())
        except OSError as error:
            self.close()
            raise BagError(f"bag {path}: cannot be read ({error.strerror or error})") from None
        except BaseException:
            self.close()
            raise
        self.is_own_output = self._metadata.is_own_output or any(_is_own_output(file) for file in self._files)
        self._types = self._name_types()
        tallies = self.tallies()
        self.topics = {name: BagTopic(name, self._types[name], tallies[name].counted) for name in sorted(self._types)}
        parts = [part for file in self._files for part in file.parts]
        self.start_ns = min((part.start_ns for part in parts), default=0)
        self.end_ns = max((part.end_ns for part in parts), default=0)

    def messages(
        self, topics: Collection[str], start_ns: int = EARLIEST_NS, stop_ns: int | None = None
    ) -> Iterator[StoredMessage]:
        """Yield messages of `topics` in the order of their log time, with `start_ns` <= log time < `stop_ns`.

        Only a few chunks are in memory at a time, however long the bag is. A message that is there twice, at the same
        time with the same content, is yielded once.

        Raises:
            BagError: A topic is not in the bag.
        """
        wanted = frozenset(self.require(topic).name for topic in topics)
        now_ns, at_now = EARLIEST_NS, list[tuple[StoredMessage, Counter[int]]]()
        for file, message in self._merged(wanted, start_ns, stop_ns):
            if message.log_ns != now_ns:
                now_ns, at_now = message.log_ns, []
            for known, files in at_now:
                if known == message:
                    files[file] += 1
                    self._note_repeat(message, [files for _, files in at_now])
                    break
            else:
                at_now.append((message, Counter({file: 1})))
                yield message

    def tallies(self) -> dict[str, Tally]:
        """How many messages of each topic there are; exact where all of them were asked for.

        Messages known of without their topic, beyond those that a topic lacks, are under `UNKNOWN_TOPIC`.
        """
        in_place, readable, counted = Counter[str](), Counter[str](), Counter[str]()
        for number, file in enumerate(self._files):
            own: Counter[str] = Counter()
            for part in file.parts:
                found = self._found.get(part, {})
                for topic in part.counts.keys() | found.keys():
                    expected = part.counts.get(topic, 0)
                    own[topic] += max(expected, found.get(topic, expected))
                    readable[topic] += found.get(topic, expected)
            for (topic, _), messages in self._repeats.items():
                twice = sum(max(0, files[number] - 1) for files in messages)
                own[topic] -= twice
                readable[topic] -= twice
            in_place.update(own)
            counted.update(own | file.claims)
        for (topic, _), messages in self._repeats.items():
            copies = sum(len(files) - 1 for files in messages)
            for counts in (in_place, readable, counted):
                counts[topic] -= copies
        counted |= self._metadata.counts
        nameless = sum(file.nameless for file in self._files) - (counted - in_place).total()
        unknown = {UNKNOWN_TOPIC: Tally(nameless, 0)} if nameless > 0 else {}
        return {topic: Tally(counted[topic], readable[topic]) for topic in self._types} | unknown

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
        """The topics as one line, name (type, count), and what is wrong with the bag."""
        topics = ", ".join(f"{t.name} ({t.type}, {t.count})" for t in self.topics.values()) or "no topics"
        return topics + "".join(f"; {problem}" for problem in self.problems)

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

    def text(self, message: StoredMessage) -> str | None:
        """What a `std_msgs/String` says; None, and noted as a problem, where it is not readable."""
        try:
            return str(self.deserialize(message).data)
        except BagError as error:
            self.note(str(error))
            return None

    @property
    def problems(self) -> list[str]:
        """What was not readable, one sentence for each kind; grows while messages are read."""
        return self._problems.lines()

    def note(self, text: str, kind: str = "") -> None:
        """Add to `problems` what is not noted yet."""
        if hash(text) not in self._noted:
            self._noted.add(hash(text))
            self._problems.add(kind or text, text)

    def close(self) -> None:
        """Remove what was decompressed."""
        self._resources.close()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def _merged(
        self, wanted: frozenset[str], start_ns: int, stop_ns: int | None
    ) -> Iterator[tuple[int, StoredMessage]]:
        """Number of the file and message, by log time; a part is opened when its time has come."""
        parts = [(part.start_ns, number, part) for number, file in enumerate(self._files) for part in file.parts]
        waiting = deque(
            sorted((p for p in parts if p[2].end_ns >= start_ns and wanted & p[2].counts.keys()), key=_order)
        )
        opened = 0
        heads: list[tuple[int, int, int, StoredMessage, Iterator[StoredMessage]]] = []
        while heads or waiting:
            while waiting and (not heads or waiting[0][0] <= heads[0][0]):
                _, number, part = waiting.popleft()
                stream = self._stream(part, wanted, start_ns)
                if (first := next(stream, None)) is not None:
                    heapq.heappush(heads, (first.log_ns, opened, number, first, stream))
                opened += 1
            if not heads:
                return
            log_ns, order, number, message, stream = heads[0]
            if stop_ns is not None and log_ns >= stop_ns:
                return
            if (following := next(stream, None)) is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (following.log_ns, order, number, following, stream))
            if log_ns >= start_ns:
                yield number, message

    def _stream(self, part: Part, wanted: frozenset[str], start_ns: int) -> Iterator[StoredMessage]:
        """The readable messages of one part; notes how many there were when all of them were read."""
        found: Counter[str] = Counter()
        try:
            for message in part.read(wanted, start_ns):
                try:
                    data = packing.decompress_message(message.data)
                except Exception as error:  # the compressor's own family
                    self.note(
                        f"{self.path.name}: message of {message.topic} at {message.log_ns} ns cannot be "
                        f"decompressed ({error})",
                        f"decompress {message.topic}",
                    )
                    continue
                found[message.topic] += 1
                is_whole = data is message.data and message.type
                msgtype = message.type or self.topics[message.topic].type
                yield message if is_whole else replace(message, data=data, type=msgtype)
        except (OSError, sqlite3.Error, MemoryError) as error:
            self.note(f"{self.path.name}: reading stopped ({error})")
        if start_ns <= part.start_ns:
            self._found.setdefault(part, {}).update({topic: found[topic] for topic in wanted})

    def _note_repeat(self, message: StoredMessage, groups: list[Counter[int]]) -> None:
        self._repeats[message.topic, message.log_ns] = groups
        self.note(f"messages of {message.topic} are there twice (is a file a copy of another?) and taken once")

    # Opening

    def _name_types(self) -> dict[str, str]:
        """Topic -> type; notes where metadata and files disagree."""
        types, held = dict(self._metadata.types), Counter[str]()
        for file in self._files:
            types |= {topic: msgtype or types.get(topic, "") for topic, msgtype in file.types.items()}
            for part in file.parts:
                held.update(part.counts)
        for topic, claimed in self._metadata.counts.items():
            if held[topic] != claimed:
                self.note(
                    f"{METADATA_FILE} counts {counted(claimed, 'message')} of {topic}, the files hold {held[topic]}"
                )
        for topic in (topic for topic, msgtype in types.items() if not msgtype):
            self.note(f"the type of {topic} is not in the bag")
        return {topic: msgtype or _UNKNOWN_TYPE for topic, msgtype in types.items()}

    def _read_metadata(self) -> Metadata:
        """What `metadata.yaml` says; empty where it is missing or damaged, which the files themselves make up for."""
        path = self.path
        if not path.exists():
            raise BagError(f"bag {path}: there is no such file or folder")
        if path.is_file():
            return Metadata()
        if not path.is_dir():
            raise BagError(f"bag {path}: a pipe or a device; a bag is read more than once: save it as a file first")
        try:
            return Metadata.parse((path / METADATA_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            self.note(f"{METADATA_FILE} is missing (recording cut short?); the files themselves are read")
        except (OSError, ValueError) as error:
            self.note(f"{METADATA_FILE} is not readable ({type(error).__name__}); the files themselves are read")
        return Metadata()

    def _file_paths(self) -> list[Path]:
        """The storage files: those that the metadata name, or what is there in their place."""
        if self.path.is_file():
            return [self.path]
        there = sorted(path for path in self.path.iterdir() if path.is_file() and _is_storage(path))
        named = {str(name): _beside(self.path, name) for name in self._metadata.files}
        taken = list(dict.fromkeys(path for path in named.values() if path is not None))
        for name in [name for name, path in named.items() if path is None]:
            twin = next((path for path in there if path not in taken and _stem(path) == _stem(Path(name))), None)
            if twin is None:
                self.note(f"{Path(name).name} is missing")
                continue
            self.note(f"{METADATA_FILE} names {Path(name).name}: {twin.name} is read in its place")
            named[name] = twin
            taken.append(twin)
        # Without a compressor's suffix first: of a file and its packed copy the file is read.
        for path in sorted(
            (path for path in there if path not in taken), key=lambda path: (path.name != _stem(path), path)
        ):
            if copied := next((other for other in taken if _stem(other) == _stem(path)), None):
                self.note(f"{path.name} is left out: {copied.name} is the same file, packed or unpacked")
            elif named and None not in named.values():
                self.note(f"{path.name} is left out: {METADATA_FILE} does not name it")
            else:
                taken.append(path)
                if named:
                    self.note(
                        f"{path.name} is read: {METADATA_FILE} does not name it, but names files that are missing"
                    )
        if not taken:
            raise _not_a_bag(self.path, "; ".join(["it holds no readable storage file", *self.problems]))
        return taken

    def _open_files(self, paths: list[Path]) -> list[Contents]:
        """Open what can be opened; one unreadable file of several is a problem, of one it is an error."""
        files: list[Contents] = []
        for path in paths:
            try:
                files.append(self._open_file(path))
            except BagError as error:
                if len(paths) == 1:
                    raise
                self.note(str(error))
        if not files:
            raise BagError(f"bag {self.path}: no readable file of {len(paths)}: {'; '.join(self.problems)}")
        return files

    def _open_file(self, path: Path) -> Contents:
        given = path
        if not _head(path).startswith(tuple(_KINDS)) and (
            packing.decompressor_for(_head(path)) or path.suffix in packing.SUFFIXES
        ):
            path = self._temporary_folder() / _stem(path)
            if problem := packing.decompress_file(given, path):
                self.note(problem)
        head = _head(path)
        if head.startswith(ROS1_MAGIC) or path.suffix == ".bag":
            raise BagError(f"bag {given}: a ROS 1 bag; {_how_to_convert(path.name)}")
        kind = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), path.suffix)
        if kind not in STORAGE_SUFFIXES:
            raise _not_a_bag(self.path, f"'{given.name}' is no storage this reads")
        try:
            if kind == ".mcap":
                file = McapFile(path, self.note)
                if file.is_ros1:
                    raise BagError(
                        f"bag {given}: a ROS 1 recording in an mcap file; take the ROS 1 bag that it was made from: "
                        f"{_how_to_convert('X.bag')}"
                    )
                return file.contents
            return SqliteFile(self._with_whole_pages(self._with_journal(path)), self.note).contents
        except ValueError as error:
            raise BagError(f"bag file {given}: not a readable {kind} file: {error}") from None

    def _with_journal(self, path: Path) -> Path:
        """The file with what its recorder left in a journal beside it; together in a copy, where there is one."""
        journals = journals_of(path)
        if not journals:
            return path
        folder = self._temporary_folder()
        for each in (path, *journals):
            shutil.copyfile(each, folder / each.name)
        names = " and ".join(journal.name for journal in journals)
        try:
            problem = take_in_journal(folder / path.name)
        except (sqlite3.Error, MemoryError) as error:
            self.note(f"{names} is not usable ({error}); {path.name} is read without")
            return path
        self.note(problem or f"{names} was read, too: the recorder was ended before it had closed {path.name}")
        return folder / path.name

    def _with_whole_pages(self, path: Path) -> Path:
        """The file without a last page that is there in part; in a copy, where there is one."""
        missing, partial = bytes_missing(path)
        size = path.stat().st_size
        if missing:
            self.note(f"{path.name}: cut after {size} of {size + missing} bytes")
        if not partial:
            return path
        target = self._temporary_folder() / path.name
        shutil.copyfile(path, target)
        os.truncate(target, size - partial)
        return target

    def _temporary_folder(self) -> Path:
        return Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="semla-bag-")))


def _order(part: tuple[int, int, Part]) -> tuple[int, int]:
    return part[:2]


def _is_own_output(file: Contents) -> bool:
    try:
        return bool(file.metadata) and Metadata.parse(file.metadata).is_own_output
    except ValueError:
        return False


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _stem(path: Path) -> str:
    """The name without a compressor's suffix: a.mcap for a.mcap and a.mcap.zstd."""
    return path.stem if path.suffix in packing.SUFFIXES else path.name


def is_bag_folder(path: Path) -> bool:
    """Whether the files of a folder are a bag by their names."""
    return path.is_dir() and any(file.name == METADATA_FILE or _has_storage_name(file) for file in path.iterdir())


def _has_storage_name(path: Path) -> bool:
    return not path.name.startswith(".") and Path(_stem(path)).suffix in STORAGE_SUFFIXES


def _is_storage(path: Path) -> bool:
    """Whether a file is one by its name or by how it begins."""
    magics = (MCAP_MAGIC, SQLITE_MAGIC, ROS1_MAGIC)
    return _has_storage_name(path) or (path.name != METADATA_FILE and _head(path).startswith(magics))


def _beside(folder: Path, name: str) -> Path | None:
    """The file of that name in the bag; it may be written with folders that it was recorded in."""
    return next((path for path in (folder / Path(name).name, folder / name) if os.path.isfile(path)), None)


def _not_a_bag(path: Path, why: str) -> BagError:
    return BagError(
        f"bag {path}: not a rosbag2 recording: {why}; expected a folder with metadata.yaml and .mcap or .db3 files, "
        "or one such file"
    )


def _how_to_convert(name: str) -> str:
    return f"convert it with 'rosbags-convert --src {name} --dst {Path(name).stem}'"
