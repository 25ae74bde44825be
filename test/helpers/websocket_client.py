"""A WebSocket client of the standard library alone (RFC 6455), with what viewing needs of Foxglove's protocol."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
from typing import Any


class Viewer:
    """A connected viewer.

    Attributes:
        channels: Topic -> what the server advertised.
    """

    def __init__(self, port: int, timeout_s: float = 60.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: foxglove.sdk.v1\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        assert b"101" in status, status
        while self._stream.readline().strip():
            pass
        self.channels: dict[str, dict[str, Any]] = {}
        self._topic_of: dict[int, str] = {}

    def _receive(self) -> tuple[int, bytes]:
        """One frame: opcode and payload. The server does not split its messages."""
        first, second = self._stream.read(2)
        size = second & 127
        if size >= 126:
            size = int.from_bytes(self._stream.read(2 if size == 126 else 8), "big")
        return first & 15, self._stream.read(size)

    def _send(self, message: dict[str, Any]) -> None:
        payload, mask = json.dumps(message).encode(), os.urandom(4)
        size = struct.pack("!BBH", 0x81, 0x80 | 126, len(payload))
        self._socket.sendall(size + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)))

    def next(self) -> tuple[str, bytes] | None:
        """Handle one frame; topic and serialized message where it was one."""
        opcode, payload = self._receive()
        if opcode == 1:
            message = json.loads(payload)
            if message["op"] == "advertise":
                self.channels |= {channel["topic"]: channel for channel in message["channels"]}
        elif opcode == 2 and payload[0] == 1:
            return self._topic_of[int.from_bytes(payload[1:5], "little")], payload[13:]
        return None

    def wait_for_topic(self, topic: str) -> dict[str, Any]:
        while topic not in self.channels:
            self.next()
        return self.channels[topic]

    def subscribe(self, topic: str) -> None:
        number = len(self._topic_of) + 1
        self._topic_of[number] = topic
        channel = self.wait_for_topic(topic)["id"]
        self._send({"op": "subscribe", "subscriptions": [{"id": number, "channelId": channel}]})

    def message_of(self, topic: str) -> bytes:
        while True:
            received = self.next()
            if received is not None and received[0] == topic:
                return received[1]

    def close(self) -> None:
        self._stream.close()
        self._socket.close()
