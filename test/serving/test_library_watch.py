"""When a library's folder counts as changed."""

from __future__ import annotations

from pathlib import Path

from semla_ros.serving.library_watch import LibraryWatch


def test_a_change_of_the_library_counts_once_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "fog").mkdir()
    (tmp_path / "fog" / "weights").write_bytes(b"1")
    watch = LibraryWatch(tmp_path)
    assert [watch.has_changed() for _ in range(2)] == [False, False]
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "weights").write_bytes(b"12")
    assert not watch.has_changed()  # may still be being written
    assert [watch.has_changed() for _ in range(2)] == [True, False]
    (tmp_path / "fog" / "weights").unlink()
    assert [watch.has_changed() for _ in range(3)] == [False, True, False]
