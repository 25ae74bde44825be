"""Recordings as the field makes them: each kind is read whole, read with a warning, or refused with the sentence that
docs/replay.md promises, and what is handed over and what is named as lost are together what the bag counts.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
from bag_kinds import (
    FRAMES,
    IMAGE,
    START_NS,
    STEP_NS,
    STRING,
    TOPIC,
    Mcap,
    compressed_one_by_one,
    drive,
    folder_of,
    number_picture,
    own_answers,
    pack,
    ros1_bag,
    stamp,
    string_data,
    swapped,
    write_db3,
    write_metadata,
)

from semla_ros.errors import BagError
from semla_ros.lab.bags.frames import FrameOptions, FrameSource
from semla_ros.lab.bags.packing import zstd
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.stored import StoredMessage
from semla_ros.lab.bags.writer import BagWriter

DOCS = Path(__file__).parents[3] / "docs" / "replay.md"
ALL = list(range(FRAMES))


@dataclass(frozen=True)
class Kind:
    """A kind of recording.

    Attributes:
        name: As the table in docs/replay.md calls it.
        build: Writes one into a folder, and returns what is given to the reader.
        frames: The pictures that must come; None = refused.
        says: What the warning or the refusal says; empty = nothing is said.
    """

    name: str
    build: Callable[[Path], Path]
    frames: list[int] | None
    says: str = ""

    @property
    def outcome(self) -> str:
        return "refused" if self.frames is None else "with a warning" if self.says else "read"


def mcap(**how: object) -> Callable[[Path], Path]:
    return lambda folder: Mcap(**how).write(folder / "a.mcap", drive())


def given(write: Callable[[Path], object], name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return build


def db3(messages: list[StoredMessage], **how: object) -> Callable[[Path], Path]:
    return lambda folder: write_db3(folder / "a.db3", messages, **how)


def in_folder(
    *names: str, then: Callable[[Path], object] = lambda folder: None, **how: object
) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        bag = folder_of(folder / "bag", *names, **how)
        then(bag)
        return bag

    return build


def cut(build: Callable[[Path], Path], part: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = build(folder)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
        return path

    return write


def packed(build: Callable[[Path], Path], suffix: str) -> Callable[[Path], Path]:
    return lambda folder: pack(build(folder), suffix)


def damaged_journal(folder: Path) -> Path:
    path = write_db3(folder / "a.db3", drive(), journal="wal", left_in_journal=9)
    journal = path.with_name("a.db3-wal")
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 0xFF
    journal.write_bytes(data)
    return path


def foreign_journal(folder: Path) -> Path:
    path = write_db3(folder / "a.db3", drive(), journal="wal", left_in_journal=9)
    write_db3(folder / "other.db3", drive()[7:]).replace(path)
    return path


def absolute(folder: Path) -> Path:
    bag = folder_of(folder / "bag", "a.mcap")
    return write_metadata(bag, ["/home/someone/recordings/bag/a.mcap"], drive())


def several_types(folder: Path) -> Path:
    text = StoredMessage(TOPIC, STRING, stamp(3) + 5, string_data("not a picture"))
    return Mcap().write(folder / "a.mcap", [*drive(), text])


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "stdin")
    return folder / "stdin"


def depth_only(folder: Path) -> Path:
    with BagWriter(folder / "bag") as bag:
        bag.image("/cam/aligned_depth/image_raw", np.zeros((12, 16), np.uint16), START_NS)
    return folder / "bag"


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda bag: (bag / old).rename(bag / new)


def copy(old: str, new: str) -> Callable[[Path], object]:
    return lambda bag: shutil.copy(bag / old, bag / new)


SPLIT = ("b.mcap", "a.mcap", "c.mcap")  # their names are not in the order of their times
NO_METADATA = "metadata.yaml is missing"
KINDS = [
    Kind("mcap, chunks with their index", mcap(), ALL),
    *(Kind("mcap, chunks compressed", mcap(compression=name), ALL) for name in ("lz4", "zstd")),
    Kind("mcap, some chunks without message index", mcap(indexed=lambda chunk: chunk % 3), ALL),
    Kind("mcap, no chunk with a message index", mcap(indexed=lambda chunk: False), ALL),
    Kind("mcap, no chunk with a message index", mcap(indexed=lambda chunk: False, statistics=False), ALL),
    Kind("mcap without chunks", mcap(per_chunk=0), ALL),
    Kind("log times out of order", given(lambda path: Mcap(per_chunk=0).write(path, swapped(drive())), "a.mcap"), ALL),
    Kind("log times out of order", given(lambda path: Mcap(per_chunk=1).write(path, swapped(drive())), "a.mcap"), ALL),
    Kind("log times out of order", given(lambda path: Mcap().write(path, drive()[::-1]), "a.mcap"), ALL),
    Kind("log times out of order", db3(drive()[::-1]), ALL),
    Kind("log times below zero", db3([replace(message, log_ns=message.log_ns - stamp(5)) for message in drive()]), ALL),
    Kind("mcap without summary, statistics or channels in it", mcap(summary=False), ALL),
    Kind("mcap without summary, statistics or channels in it", mcap(statistics=False), ALL),
    Kind("mcap without summary, statistics or channels in it", mcap(summary_channels=False), ALL),
    Kind("mcap without checksums", mcap(has_crc=False), ALL),
    Kind("mcap with attachments and metadata", mcap(extras=True), ALL),
    Kind("mcap with records of an application", mcap(private=True), ALL, "record of the unknown kind 144"),
    Kind("several channels of one topic", mcap(channels=3), ALL),
    Kind("statistics that are wrong", mcap(statistics=2), ALL, f"statistics count 12 messages of {TOPIC}, 10 found"),
    Kind("statistics that are wrong", mcap(statistics=-2), ALL, f"statistics count 8 messages of {TOPIC}, 10 found"),
    Kind(
        "a chunk whose checksum is wrong",
        mcap(wrong_crc=(0,), per_chunk=3),
        ALL[2:],
        "its checksum is wrong, all its messages are left out",
    ),
    Kind("a chunk compressed in an unknown way", mcap(compression="brotli"), [], "compressed with 'brotli'"),
    Kind("a cut mcap", cut(mcap(), 0.5), ALL[:5], "cut after"),
    Kind("a cut mcap", cut(mcap(per_chunk=0), 0.5), ALL[:5], "cut after"),
    Kind(
        "a type that the file lacks, in metadata.yaml",
        in_folder(
            "a.mcap", metadata=["a.mcap"], then=lambda bag: Mcap(has_schemas=False).write(bag / "a.mcap", drive())
        ),
        ALL,
    ),
    Kind("a type that nothing tells", mcap(has_schemas=False), None, f"the type of {TOPIC} is not in the bag"),
    Kind("several types on one topic", several_types, ALL, "has messages of several types"),
    Kind("messages that are not CDR", mcap(encoding="json"), None, "sensor_msgs/msg/Image as json"),
    Kind("a ROS 1 bag", given(ros1_bag, "a.bag"), None, "rosbags-convert --src a.bag --dst a"),
    Kind("a ROS 1 bag", lambda folder: ros1_bag(folder / "a.bag").parent, None, "rosbags-convert"),
    Kind("a ROS 1 mcap", mcap(profile="ros1", encoding="ros1"), None, "a ROS 1 recording in an mcap file"),
    Kind("a ROS 1 mcap", mcap(profile="", encoding="ros1"), None, "a ROS 1 recording in an mcap file"),
    Kind("db3", db3(drive()), ALL),
    Kind("db3 without a time index", db3(drive(), has_index=False), ALL),
    *(
        Kind("a -wal beside a db3", db3(drive(), journal="wal", left_in_journal=left), ALL, "was read, too")
        for left in (1, 9, 14, 15)  # the last: not even the tables are in the file itself
    ),
    Kind("a damaged -wal", damaged_journal, [0, 1, 2, 3], "pages damaged or of an unfinished transaction"),
    Kind("a -wal of another db3", foreign_journal, ALL[5:], "is not usable (it is of another database)"),
    Kind("a -journal beside a db3", db3(drive(), journal="delete", left_in_journal=4), ALL[:7], "was read, too"),
    Kind("a cut db3", cut(db3(drive()), 0.6), [0, 1, 2, 3], "cut after"),
    *(
        Kind("messages compressed one by one, without metadata", build, ALL)
        for way in (zstd.compress, lz4.frame.compress)
        for build in (
            db3(compressed_one_by_one(drive(), way)),
            lambda folder, way=way: Mcap().write(folder / "a.mcap", compressed_one_by_one(drive(), way)),
        )
    ),
    *(Kind("a file packed by hand", packed(mcap(), suffix), ALL) for suffix in (".zstd", ".zst", ".lz4", ".gz")),
    Kind("a file packed by hand", packed(db3(drive()), ".zst"), ALL),
    Kind("a packed file that is cut", cut(packed(mcap(compression=""), ".gz"), 0.5), [0], "cut after"),
    Kind(
        "a file packed or unpacked after recording",
        in_folder("a.db3", metadata=["a.db3"], then=lambda bag: pack(bag / "a.db3", ".zstd")),
        ALL,
        "a.db3.zstd is read in its place",
    ),
    Kind(
        "a file packed or unpacked after recording",
        in_folder("a.mcap", metadata=["a.mcap.zstd"]),
        ALL,
        "a.mcap is read in its place",
    ),
    Kind(
        "a file beside its packed copy",
        in_folder("a.db3", metadata=["a.db3"], then=lambda bag: pack(bag / "a.db3", ".zstd", keep=True)),
        ALL,
        "a.db3.zstd is left out",
    ),
    Kind(
        "a file beside its packed copy",
        in_folder("a.mcap", then=lambda bag: pack(bag / "a.mcap", ".gz", keep=True)),
        ALL,
        "a.mcap.gz is left out",
    ),
    Kind(
        "a renamed file",
        in_folder("a.mcap", metadata=["a.mcap"], then=rename("a.mcap", "renamed.mcap")),
        ALL,
        "renamed.mcap is read",
    ),
    Kind(
        "a renamed file", in_folder("a.mcap", metadata=["a.mcap"], then=rename("a.mcap", "a.old")), ALL, "a.old is read"
    ),
    Kind("another suffix than its storage has", given(lambda path: Mcap().write(path, drive()), "a.db3"), ALL),
    Kind(
        "a copy of a file under another name",
        in_folder("a.mcap", then=copy("a.mcap", "b.mcap")),
        ALL,
        "are there twice",
    ),
    Kind(
        "a file that metadata.yaml does not name",
        in_folder("a.mcap", metadata=["a.mcap"], then=copy("a.mcap", "b.mcap")),
        ALL,
        "b.mcap is left out",
    ),
    Kind("split files without metadata and numbers", in_folder(*SPLIT), ALL, NO_METADATA),
    Kind("split files without metadata and numbers", in_folder("b.db3", "a.db3", "c.db3"), ALL, NO_METADATA),
    Kind("split files in the wrong order", in_folder(*SPLIT, metadata=sorted(SPLIT)), ALL),
    Kind(
        "a missing part of a split bag",
        in_folder(*SPLIT, metadata=SPLIT, then=lambda bag: (bag / "c.mcap").unlink()),
        ALL[:7],
        "c.mcap is missing",
    ),
    Kind(
        "an unreadable part of a split bag",
        in_folder(*SPLIT, then=lambda bag: (bag / "a.mcap").write_text("hello")),
        [0, 1, 2, 3, 7, 8, 9],
        "not a readable .mcap",
    ),
    *(
        Kind("metadata.yaml of versions 4 to 9", in_folder("a.mcap", metadata=["a.mcap"], version=version), ALL)
        for version in range(4, 10)
    ),
    Kind("metadata.yaml with paths of another machine", absolute, ALL),
    Kind(
        "metadata.yaml with another message count",
        in_folder(
            "a.mcap",
            metadata=["a.mcap"],
            topics_with_message_count=[{"topic_metadata": {"name": TOPIC, "type": IMAGE}, "message_count": 8}],
        ),
        ALL,
        f"counts 8 messages of {TOPIC}",
    ),
    Kind(
        "metadata.yaml with another message count",
        in_folder(
            "a.mcap",
            metadata=["a.mcap"],
            topics_with_message_count=[{"topic_metadata": {"name": TOPIC, "type": IMAGE}, "message_count": 13}],
        ),
        ALL,
        "3 of 13 messages",
    ),
    Kind(
        "a damaged metadata.yaml",
        in_folder("a.mcap", then=lambda bag: (bag / "metadata.yaml").write_text("{:")),
        ALL,
        "metadata.yaml is not readable",
    ),
    Kind(
        "one file out of a bag folder", lambda folder: in_folder("a.mcap", metadata=["a.mcap"])(folder) / "a.mcap", ALL
    ),
    Kind(
        "hidden files of another system",
        in_folder("a.mcap", metadata=["a.mcap"], then=lambda bag: (bag / "._a.mcap").write_bytes(b"\0\5\x16\7")),
        ALL,
    ),
    Kind("standard input, a pipe or a device", pipe, None, "save it as a file first"),
    Kind("a bag that a replay wrote", lambda folder: own_answers(folder / "bag"), None, "a node's own output"),
    Kind("depth alone", depth_only, None, "depth by its name"),
]


def read_all(path: Path) -> tuple[list[int], list[str], list[dict]]:
    """Numbers of the pictures by their stamps, problems, account; each picture must be under its own stamp."""
    with BagReader(path) as bag:
        source = FrameSource(bag, FrameOptions(), ("road",))
        numbers = []
        for frame in source.frames():
            number = (frame.frame.stamp_ns - START_NS) // STEP_NS
            assert np.array_equal(frame.frame.image, number_picture(number)), "another picture's stamp"
            numbers.append(number)
        return numbers, source.problems.lines(), source.account()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "_"))
def test_each_kind_is_read_or_refused_as_promised_and_nothing_is_lost_unsaid(kind: Kind, tmp_path: Path) -> None:
    path = kind.build(tmp_path)
    before = {file: file.stat() for file in tmp_path.rglob("*")}
    if kind.frames is None:
        with pytest.raises(BagError, match=re.escape(kind.says)) as refusal:
            read_all(path)
        assert "\n" not in str(refusal.value)
    else:
        frames, problems, account = read_all(path)
        assert frames == kind.frames
        assert any(kind.says in problem for problem in problems) if kind.says else problems == []
        images = next(topic for topic in account if topic["topic"] == TOPIC)
        assert images["delivered"] == len(frames)
        for topic in account:
            assert topic["delivered"] + topic["lost"] + topic["left_out"] == topic["counted"]
            assert topic["left_out"] == (0 if topic["used_as"] else topic["counted"] - topic["lost"])
            lost = f"{topic['lost']} of {topic['counted']} messages of {topic['topic']} lost"
            assert (lost in problems) == bool(topic["lost"])
    after = {file: file.stat() for file in tmp_path.rglob("*")}
    assert [(file, stat.st_size, stat.st_mtime_ns) for file, stat in before.items()] == [
        (file, stat.st_size, stat.st_mtime_ns) for file, stat in after.items()
    ], "the user's folder is left as it is"


def test_the_table_in_the_docs_names_each_kind_with_its_outcome() -> None:
    rows = dict(re.findall(r"^\| ([^|]+) \| (read|with a warning|refused)\b", DOCS.read_text(), re.MULTILINE))
    assert rows.items() >= {kind.name: kind.outcome for kind in KINDS}.items()
    sentences = " ".join(DOCS.read_text().split())
    for kind in KINDS:
        words = re.sub(rf"(?<!ROS )\d+|{TOPIC}|\ba\.\w+(\.\w+)?|renamed\.mcap|[bc]\.mcap", "…", kind.says)
        assert words in sentences, f"{kind.name}: {words}"
