"""systemd is told where it asks for it."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from semla_ros.serving.supervisor import notify


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_told_where_it_asks_for_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@semla-{tmp_path.name}-{time.time_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0", 1))
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify("READY=1")
        systemd.settimeout(5.0)
        assert systemd.recv(100) == b"READY=1"
        while notify("WATCHDOG=1"):  # until its queue is full
            pass
        assert systemd.recv(100) == b"WATCHDOG=1"
        assert notify("WATCHDOG=1")
    assert not notify("READY=1")  # nobody is there any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert notify("READY=1")
