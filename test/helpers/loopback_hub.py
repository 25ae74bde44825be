"""A server on this machine that speaks as much of the Hugging Face hub's interface as this package needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories, and what was asked for.

    Attributes:
        repositories: "models/owner/repo" or "spaces/owner/repo" -> path -> content.
        allowed_token: Who may write.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)  # of the other host, by path
    allowed_token: str = "hf_writer"
    commit: str = COMMIT  # of the newest state, the only one
    cut_after: int | None = None  # bytes of a body after which the connection breaks
    wrong_digest: bool = False
    redirects: bool = False  # large files lie on another host, as they do on the public hub
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def put(self, repository: str, path: str, content: bytes, kind: str = "model") -> bytes:
        self.repositories.setdefault(f"{kind}s/{repository}", {})[path] = content
        return content

    @property
    def revisions(self) -> tuple[str, ...]:
        return "main", "v1", self.commit

    def find(self, path: str) -> bytes | None:
        """The content that a request for a file names."""
        match = re.fullmatch(r"/(?:(spaces)/)?([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path)
        if match is None:
            return self.content.get(path)
        files = self.repositories.get(f"{match[1] or 'models'}/{match[2]}", {})
        return files.get(match[4]) if match[3] in self.revisions else None


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(has_body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            self.note()
            self.answer_about()
        else:
            self.answer(has_body=True)

    def do_POST(self) -> None:
        self.note()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.hub.allowed_token}":
            self.send_json({"error": "Invalid username or password."}, 401)
            return
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.hub.repositories.setdefault(f"models/{name}", {})
            self.send_json({"url": f"{self.hub.endpoint}/{name}"})
            return
        if self.path == "/api/validate-yaml":  # the front matter of a card
            self.send_json({"errors": [], "warnings": []})
            return
        match = re.fullmatch(r"/api/(models/[\w.-]+/[\w.-]+)/(preupload|commit)/main", self.path.split("?")[0])
        if match is None or match[1] not in self.hub.repositories:
            self.send_json({"error": "no such repository"}, 404)
        elif match[2] == "preupload":
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.send_json({"files": files})
        else:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.hub.repositories[match[1]][line["value"]["path"]] = content
            url = f"{self.hub.endpoint}/{match[1].removeprefix('models/')}/commit/{self.hub.commit}"
            self.send_json({"commitUrl": url, "commitOid": self.hub.commit, "pullRequestUrl": None})

    def note(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        self.hub.tokens.append((self.path, self.headers.get("Authorization")))

    def answer_about(self) -> None:
        """What a repository holds."""
        match = re.fullmatch(
            r"/api/(models|spaces)/([\w.-]+/[\w.-]+)/(revision|tree)/([\w.-]+)", self.path.split("?")[0]
        )
        files = self.hub.repositories.get(f"{match[1]}/{match[2]}") if match else None
        if match is None or files is None or match[4] not in self.hub.revisions:
            code = "RepoNotFound" if files is None else "RevisionNotFound"
            self.send_json({"error": "not found"}, 404, {"X-Error-Code": code})
        elif match[3] == "tree":
            self.send_json(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
                    for path, content in files.items()
                ]
            )
        else:
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
            about = {
                "id": match[2],
                "sha": self.hub.commit,
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            self.send_json(about)

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(body)

    def answer(self, has_body: bool) -> None:
        self.note()
        hub, asked = self.hub, self.headers.get("Range")
        content = hub.find(self.path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", self.hub.commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        digest = "f" * 64 if hub.wrong_digest else hashlib.sha256(content).hexdigest()
        if hub.redirects and "/resolve/" in self.path:
            self.send_response(302)
            self.send_header("Location", hub.endpoint.replace("127.0.0.1", "localhost") + "/content")
            self.send_header("X-Repo-Commit", self.hub.commit)
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if not has_body:
            return
        if hub.cut_after is None:
            self.wfile.write(content[first:])
            return
        self.wfile.write(content[first : first + hub.cut_after])
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
