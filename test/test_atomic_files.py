"""Files and folders are whole or not there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from semla_ros.atomic_files import atomic_file, atomic_folder, write_atomically


def test_replacing_a_file_never_shows_a_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "timing.cache"
    write_atomically(path, b"old")

    def full_disk(_descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_gets_its_name_once_it_is_filled(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "library" / "fog") as partial:
        write_atomically(partial / "note.txt", "näher")
        assert not (tmp_path / "library" / "fog").exists()
    assert (tmp_path / "library" / "fog" / "note.txt").read_text(encoding="utf-8") == "näher"
    with pytest.raises(ValueError, match="broken"), atomic_folder(tmp_path / "library" / "rain"):
        raise ValueError("broken")
    assert [path.name for path in (tmp_path / "library").iterdir()] == ["fog"]


def test_files_are_as_readable_as_any_whatever_wrote_them(tmp_path: Path) -> None:
    former = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "model") as partial:
            partial.unlink()
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
        with atomic_folder(tmp_path / "adapter") as folder:
            os.close(os.open(folder / "weights", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(former)
    for path in (tmp_path / "model", tmp_path / "adapter" / "weights"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_disk_that_is_full_is_told_with_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "mask.png", b"x")
    assert caught.value.filename == str(tmp_path / "mask.png")
    with pytest.raises(FileNotFoundError) as missing:
        write_atomically(tmp_path / "no" / "mask.png", b"x")
    assert missing.value.filename == str(tmp_path / "no" / "mask.png")
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert pipe.is_fifo()
    with pytest.raises(OSError, match="No space left"):
        write_atomically(Path("/dev/full"), "text")
    assert Path("/dev/full").is_char_device()
