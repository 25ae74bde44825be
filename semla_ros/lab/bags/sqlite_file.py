"""Reads an SQLite bag row by row, so that a broken page costs only its own messages.

Table and time index must count the same messages. Where they do not, or one of them breaks off, the rows are gathered
from both, from both ends, and one by one in between.
"""

from __future__ import annotations

import sqlite3
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

from semla_ros.errors import counted
from semla_ros.lab.bags.stored import Contents, Note, Part, StoredMessage, type_as

SQLITE_MAGIC = b"SQLite format 3\x00"
JOURNALS = ("-wal", "-journal")
_YEAR_NS = 365 * 86_400 * 10**9
_PROBED_ROWS = 1 << 16  # longer gaps between two rows are not looked through
_WAL_HEAD, _WAL_FRAME = 32, 24  # bytes of the journal's head, and of the head of each page in it

_BROKEN = (sqlite3.Error, MemoryError)  # a damaged length may ask for any amount
_Row = tuple[int, int, int]  # log time, row id, topic id


class SqliteFile:
    """One SQLite bag file.

    Args:
        path: The file, with no journal beside it and no page in part (see `take_in_journal` and `bytes_missing`).
        note: Told what is not readable, also while messages are read.

    Attributes:
        contents: What it holds.

    Raises:
        ValueError: Not even the list of topics can be read.
    """

    def __init__(self, path: Path, note: Note) -> None:
        self._path = path
        self._note = note
        self._rows: list[_Row] | None = None  # in time order; None = as the database gives them
        self.contents = Contents()
        try:
            with _opened(path) as database:
                self._topics = self._read_topics(database)
                counts = self._counted(database)
                if counts is None:
                    self._rows = self._gathered(database)
                    counts = Counter(topic for _, _, topic in self._rows)
                self._fill_contents(database, counts)
        except _BROKEN as error:
            raise ValueError(f"its list of topics is not readable ({error})") from None

    def _read_topics(self, database: sqlite3.Connection) -> dict[int, tuple[str, str]]:
        topics = {}
        rows = database.execute("SELECT id, name, type, serialization_format FROM topics").fetchall()
        for number, name, msgtype, encoding in rows:
            topics[number] = str(name), type_as(str(msgtype), str(encoding))
            self.contents.name_type(*topics[number], self._note)
        return topics

    def _counted(self, database: sqlite3.Connection) -> Counter[int] | None:
        """Messages by topic id, where table and time index agree on them; None where something is damaged."""
        facts = "COUNT(*), SUM(typeof(timestamp) = 'integer'), SUM(timestamp % 1000003), MIN(timestamp), MAX(timestamp)"
        table, index = "messages NOT INDEXED", "messages INDEXED BY timestamp_idx"
        try:
            counts = Counter(dict(database.execute(f"SELECT topic_id, COUNT(*) FROM {table} GROUP BY topic_id")))
            has_index = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'timestamp_idx'").fetchone()
            by_table = database.execute(f"SELECT {facts} FROM {table}").fetchone()
            by_index = database.execute(f"SELECT {facts} FROM {index}").fetchone() if has_index else by_table
            rows, times, _, self._start_ns, self._end_ns = by_table
            is_sound = by_table == by_index and rows == (times or 0)
        except (*_BROKEN, TypeError) as error:
            self._note(f"{self._path.name}: its messages are not readable in one go ({error})")
            return None
        if not is_sound:
            self._note(f"{self._path.name}: its table and its time index do not name the same messages")
        return counts if is_sound and counts.keys() <= self._topics.keys() else None

    def _fill_contents(self, database: sqlite3.Connection, counts: Counter[int]) -> None:
        contents = self.contents
        by_topic: Counter[str] = Counter()
        for number, count in counts.items():
            by_topic[self._topics[number][0]] += count
        if by_topic:
            if self._rows:
                self._start_ns, self._end_ns = self._rows[0][0], self._rows[-1][0]
            contents.parts.append(Part(by_topic, self._start_ns, self._end_ns, self._read))
        try:
            row = database.execute("SELECT metadata FROM metadata ORDER BY id DESC LIMIT 1").fetchone()
            contents.metadata = str(row[0]) if row else ""
        except _BROKEN:
            contents.metadata = ""  # older bags have none

    def _gathered(self, database: sqlite3.Connection) -> list[_Row]:
        """The rows whose time and topic can be read, in time order; notes how many others are known of."""
        known: dict[int, _Row | None] = {}
        for source in ("id, timestamp, topic_id FROM messages NOT INDEXED ORDER BY id",
                       "id, NULL, NULL FROM messages INDEXED BY timestamp_idx ORDER BY timestamp"):  # fmt: skip
            for direction in ("ASC", "DESC"):
                try:
                    for row, log_ns, topic in database.execute(f"SELECT {source} {direction}"):
                        if isinstance(row, int):
                            known[row] = known.get(row) or self._checked(row, log_ns, topic)
                except _BROKEN:
                    continue
        for row in [row for row in _with_gaps(known) if known.get(row) is None]:
            try:
                found = database.execute("SELECT timestamp, topic_id FROM messages WHERE id = ?", (row,)).fetchone()
            except _BROKEN:
                known[row] = None
                continue
            if found:
                known[row] = self._checked(row, *found)
        rows = sorted(row for row in known.values() if row)
        rows = [row for row in rows if abs(row[0] - rows[len(rows) // 2][0]) < _YEAR_NS]  # others are damaged
        self.contents.nameless = len(known) - len(rows)
        if self.contents.nameless:
            self._note(f"{self._path.name}: {counted(self.contents.nameless, 'message')} on unreadable pages left out")
        return rows

    def _checked(self, row: int, log_ns: object, topic: object) -> _Row | None:
        return (log_ns, row, topic) if isinstance(log_ns, int) and topic in self._topics else None  # type: ignore[return-value]

    def _read(self, topics: Collection[str], start_ns: int) -> Iterator[StoredMessage]:
        numbers = [number for number, (name, _) in self._topics.items() if name in topics]
        with _opened(self._path) as database:
            for log_ns, row, number in self._heads(database, numbers, start_ns):
                topic, msgtype = self._topics[number]
                try:
                    (data,) = database.execute("SELECT data FROM messages WHERE id = ?", (row,)).fetchone()
                    yield StoredMessage(topic, msgtype, log_ns, bytes(data))
                except (*_BROKEN, TypeError) as error:
                    text = f"{self._path.name}: message {row} of {topic} lies on unreadable pages ({error})"
                    self._note(text, f"pages {topic}")

    def _heads(self, database: sqlite3.Connection, topics: Collection[int], start_ns: int) -> Iterator[_Row]:
        if self._rows is not None:
            yield from (row for row in self._rows if row[2] in topics and row[0] >= start_ns)
            return
        marks = ",".join("?" * len(topics))
        query = f"SELECT timestamp, id, topic_id FROM messages WHERE topic_id IN ({marks}) AND timestamp >= ?"
        yield from database.execute(f"{query} ORDER BY timestamp, id", (*topics, start_ns))


def _with_gaps(rows: Collection[int]) -> list[int]:
    """Row ids, with those between them that may be there, too."""
    ordered = sorted(rows)
    whole = ordered[:1]
    for before, after in pairwise(ordered):
        whole += range(before + 1, after + 1) if after - before <= _PROBED_ROWS else [after]
    return whole


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection that also opens a file shorter than its header says."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        # Its side effect: sqlite then believes the file's real size instead of refusing a cut file.
        database.execute("PRAGMA writable_schema=ON")
        database.text_factory = lambda data: data.decode("utf-8", "replace")
        yield database


def bytes_missing(path: Path) -> tuple[int, int]:
    """How many bytes a cut database lacks, as its head says, and how many of a last page are there in part.

    SQLite fills up such a page with zeros, which would then be taken for pixels.
    """
    with path.open("rb") as file:
        head = file.read(32)
    if len(head) < 32 or not head.startswith(SQLITE_MAGIC):
        return 0, 0
    page, pages = struct.unpack_from(">H", head, 16)[0], struct.unpack_from(">I", head, 28)[0]
    page = 65536 if page == 1 else max(512, page)
    size = path.stat().st_size
    return max(0, pages * page - size), size % page


def journals_of(path: Path) -> list[Path]:
    """What a recorder that was killed left beside a database: messages that are not in the file itself yet."""
    journals = [path.with_name(path.name + suffix) for suffix in JOURNALS]
    return [journal for journal in journals if journal.is_file() and journal.stat().st_size]


def take_in_journal(path: Path) -> str | None:
    """Bring a copy of a database and of its journal together; returns what of the journal is not readable, or None.

    Raises:
        sqlite3.Error: SQLite cannot use the journal, or it is of another database.
    """
    journal = path.with_name(path.name + "-wal")
    pages = _journal_pages(journal) if journal.exists() else 0
    was_sound = is_sound(path)
    with closing(sqlite3.connect(path)) as database:
        (_, taken, _) = database.execute("PRAGMA wal_checkpoint").fetchone()
        database.execute("PRAGMA journal_mode=DELETE").fetchone()
    if was_sound and not is_sound(path):
        raise sqlite3.DatabaseError("it is of another database")
    if pages > max(0, taken):
        lost = f"{pages - max(0, taken)} of {counted(pages, 'page')}"
        return f"{journal.name}: {lost} damaged or of an unfinished transaction"
    return None


def is_sound(path: Path) -> bool:
    """Whether the tables of a database and their indices fit together, its journal apart."""
    try:
        with _opened(path) as database:
            return bool(database.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",))
    except _BROKEN:
        return False


def _journal_pages(journal: Path) -> int:
    """Pages that were written to a journal since it was begun, the last one perhaps in part."""
    data = journal.read_bytes()
    page = _WAL_FRAME + int.from_bytes(data[8:12], "big")
    starts = range(_WAL_HEAD, len(data), page)
    return sum(data[start + 8 : start + 16] == data[16:24] for start in starts)
