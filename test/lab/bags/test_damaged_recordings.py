"""Thousands of damaged recordings: never a traceback, never more than was written, never a picture under the stamp of
another, and never a loss that is not named.

SEMLA_FUZZ_SEED and SEMLA_FUZZ_COUNT choose other damages, and more of them.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bag_kinds import (
    FRAMES,
    IMAGE,
    Mcap,
    drive,
    folder_of,
    number_picture,
    pack,
    stamp,
    swapped,
    write_db3,
    write_metadata,
)

from semla_ros.errors import SemlaError
from semla_ros.lab.bags.frames import FrameOptions, FrameSource
from semla_ros.lab.bags.reader import BagReader

SEED = int(os.environ.get("SEMLA_FUZZ_SEED", "17"))
COUNT = int(os.environ.get("SEMLA_FUZZ_COUNT", "2000"))
CHECKED = (0, 1, 2, 4, 5, 9)  # the sound bags whose messages have checksums
GROUPS = 8  # tests that run side by side


def sound_bags(folder: Path) -> list[dict[str, bytes]]:
    """Small recordings of both storages, as the content of their files by name."""

    def folder_with(name: str, write: Callable[[Path], object]) -> Path:
        bag = folder / str(len(list(folder.iterdir())))
        bag.mkdir()
        write(bag / name)
        return bag

    messages = drive()
    bags = [
        folder_with("a.mcap", lambda path: Mcap().write(path, messages)),
        folder_with("a.mcap", lambda path: Mcap(per_chunk=3, compression="zstd").write(path, messages)),
        folder_with("a.mcap", lambda path: Mcap(per_chunk=3, compression="lz4", extras=True).write(path, messages)),
        folder_with("a.mcap", lambda path: Mcap(per_chunk=0).write(path, swapped(messages))),
        folder_with("a.mcap", lambda path: Mcap(indexed=lambda chunk: chunk % 2, channels=2).write(path, messages)),
        folder_with("a.mcap", lambda path: pack(Mcap(per_chunk=0).write(path, messages), ".zst")),
        folder_with("a.db3", lambda path: write_db3(path, messages)),
        folder_with("a.db3", lambda path: write_db3(path, messages, page_size=4096)),
        folder_with("a.db3", lambda path: write_db3(path, messages, journal="wal", left_in_journal=9)),
        folder_of(folder / "split-mcap", "a.mcap", "b.mcap", metadata=["a.mcap", "b.mcap"]),
        folder_of(folder / "split-db3", "a.db3", "b.db3", metadata=["a.db3", "b.db3"]),
    ]
    for bag in bags[:9]:  # the recorder was closed: what it counted is known
        write_metadata(bag, [path.name for path in bag.iterdir() if "-" not in path.name], messages)
    return [{path.name: path.read_bytes() for path in sorted(bag.iterdir())} for bag in bags]


# Damages: each changes the content of one file


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 3, 20))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_near_the_start(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(min(len(data), 200))] = chance.randrange(256)


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def lose_a_stretch(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.choice((1, 16, 512, 3000))]


def blank_a_stretch(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    length = min(chance.choice((8, 512, 4096)), len(data) - start)
    data[start : start + length] = bytes([chance.choice((0, 255))]) * length


def swap_stretches(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((16, 512, 1024))
    if len(data) > 2 * size:
        one, other = (chance.randrange(len(data) // size) * size for _ in range(2))
        data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def repeat_a_stretch(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((16, 512, 2048))
    source, target = chance.randrange(len(data)), chance.randrange(len(data))
    stretch = data[source : source + size]
    data[target : target + chance.choice((0, len(stretch)))] = stretch


DAMAGES = (flip, flip, flip_near_the_start, cut, lose_a_stretch, blank_a_stretch, swap_stretches, repeat_a_stretch)


def damaged(files: dict[str, bytes], others: list[dict[str, bytes]], chance: random.Random) -> dict[str, bytes]:
    """The bag with one or two damages, of a file's content or of which file has which name."""
    files = dict(files)
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(sorted(files))
        what = chance.randrange(10)
        if what == 0 and len(files) > 2:
            del files[name]
        elif what == 1:
            other = chance.choice(sorted(files))
            files[name], files[other] = files[other], files[name]
        elif what == 2:
            files[f"copy of {name}"] = files[name]
        elif what == 3:
            files[name] = chance.choice(list(chance.choice(others).values()))
        elif files[name]:
            content = bytearray(files[name])
            chance.choice(DAMAGES)(content, chance)
            files[name] = bytes(content)
    return files


def picture_number(image: np.ndarray) -> int | None:
    """Which picture it is; None where it is none of them, or damaged."""
    return next((number for number in range(FRAMES) if np.array_equal(image, number_picture(number))), None)


def check(path: Path, *, is_counted: bool, has_checksum: bool, is_other: bool) -> None:
    """Read a damaged bag and hold it to the rules.

    Args:
        path: The bag.
        is_counted: Its metadata.yaml is as it was: it counts what was written.
        has_checksum: Its messages had checksums before the damage.
        is_other: A file of it is one of another bag, whole: only metadata.yaml can tell.
    """
    try:
        with BagReader(path) as bag:
            source = FrameSource(bag, FrameOptions(), ("road",))
            frames = list(source.frames())
            problems, account = source.problems.lines(), source.account()
    except SemlaError:
        return  # refused with a sentence
    known = {stamp(index) for index in range(FRAMES)}
    stamps = [frame.frame.stamp_ns for frame in frames]
    shown = [number for frame in frames if (number := picture_number(frame.frame.image)) is not None]
    assert len(frames) <= FRAMES
    assert len(set(shown)) == len(shown), "a picture twice"
    for frame in frames:
        number = picture_number(frame.frame.image)
        is_own = number is None or frame.frame.stamp_ns not in known or frame.frame.stamp_ns == stamp(number)
        # A page of an SQLite file that lies where another one was cannot be told from it; that the file is damaged can.
        assert is_own or (problems and not has_checksum), "a picture under another's stamp"
    # Without a checksum, nobody can tell a pixel or a stamp that is damaged from another one.
    assert (
        problems
        or (is_other and not is_counted)
        or (len(frames) == FRAMES and (not has_checksum or set(stamps) == known))
    )
    for topic in account:
        assert topic["delivered"] + topic["lost"] + topic["left_out"] == topic["counted"]
        assert min(topic["delivered"], topic["lost"], topic["left_out"]) >= 0
        if topic["used_as"]:
            assert topic["left_out"] == 0
    if is_counted:  # perhaps under a name that is damaged, too
        assert sum(topic["counted"] for topic in account if topic["type"] == IMAGE) >= FRAMES


@pytest.mark.parametrize("group", range(GROUPS))
def test_damage_never_goes_unsaid(group: int, tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    bags = sound_bags(tmp_path / "sound")
    for number in range(group, COUNT, GROUPS):
        chance = random.Random(SEED * 1_000_003 + number)
        whole = chance.choice(bags)
        files = damaged(whole, bags, chance)
        path = tmp_path / str(number)
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
        alone = [path / name for name in sorted(files) if name.endswith((".mcap", ".db3", ".zst"))]
        is_other = any(content in other.values() for content in files.values() for other in bags if other is not whole)
        is_alone = len(whole) == 2 and len(alone) == 1 and not is_other and chance.random() < 0.5
        is_counted = not is_alone and files.get("metadata.yaml") == whole["metadata.yaml"]
        try:
            check(
                alone[0] if is_alone else path,
                is_counted=is_counted,
                has_checksum=bags.index(whole) in CHECKED,
                is_other=is_other,
            )
        except BaseException as error:
            error.add_note(f"damaged recording {number} of seed {SEED}")
            raise
