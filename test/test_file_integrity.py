"""Files are held to their digests."""

from __future__ import annotations

from pathlib import Path

from semla_ros.file_integrity import file_sha256


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
