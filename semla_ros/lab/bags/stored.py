"""What a storage file holds: messages, and the parts of the file in which they lie together."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

EARLIEST_NS = -(1 << 63)  # before any log time, those below zero of a damaged or simulated clock, too


@dataclass(frozen=True)
class StoredMessage:
    """One serialized message as it lies in a bag file."""

    topic: str
    type: str
    log_ns: int
    data: bytes


@dataclass(frozen=True, eq=False)
class Part:
    """Messages that lie together: a chunk, a run of records, or the rows of a table.

    Attributes:
        counts: Messages by topic, as the file says.
        start_ns: Log time of the first one.
        end_ns: Log time of the last one.
        read: Yields the readable messages of some topics by log time. Those before the time given may be left out.
    """

    counts: Counter[str]
    start_ns: int
    end_ns: int
    read: Callable[[Collection[str], int], Iterator[StoredMessage]]


@dataclass
class Contents:
    """What is found in one storage file.

    Attributes:
        types: Topic -> message type; as "type as encoding" where that is not CDR, empty where the file lacks it.
        parts: Where the messages lie.
        claims: Messages by topic that the file counts, found or not; empty where it does not count.
        nameless: Messages that are known of and neither readable nor of a known topic.
        metadata: YAML that rosbag2 writes into the file, too; empty where it did not.
    """

    types: dict[str, str] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    claims: Counter[str] = field(default_factory=Counter)
    nameless: int = 0
    metadata: str = ""

    def name_type(self, topic: str, msgtype: str, note: Note) -> None:
        """Note the type of a topic."""
        known = self.types.get(topic)
        if known and msgtype and known != msgtype:
            note(f"{topic} has messages of several types: {known} is taken for its type, {msgtype} is there, too")
        self.types[topic] = known or msgtype


class Note(Protocol):
    """Told of each thing that is not readable; of those of one kind, the first is shown and the others are counted."""

    def __call__(self, text: str, kind: str = "") -> None:
        """Take a sentence; without a kind it is one of its own."""


class Problems:
    """What went wrong on the way, in bounded memory: the first of each kind, and how many there were."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, text: str) -> None:
        """Note one problem."""
        with self._lock:
            self._counts[kind] += 1
            self._first.setdefault(kind, text)

    def lines(self) -> list[str]:
        """One line per kind: the first one, and how many more there were."""
        with self._lock:
            return [
                text + (f" (and {self._counts[kind] - 1} more like it)" if self._counts[kind] > 1 else "")
                for kind, text in self._first.items()
            ]


def type_as(msgtype: str, encoding: str) -> str:
    """A message type with its encoding where that is not ROS 2's, so that it is not taken for what it is not."""
    return msgtype if encoding in ("", "cdr") else f"{msgtype} as {encoding}"
