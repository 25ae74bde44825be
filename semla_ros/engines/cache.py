"""Compiled engines and exported graphs on disk, each under a key of everything that it depends on.

A file is written beside its place and moved there, and an entry counts only with its description, which is written
last: a build that is killed, a full disk or two processes at once leave nothing half-made that could be loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semla_ros.atomic_files import atomic_file, write_atomically
from semla_ros.errors import EngineError
from semla_ros.file_integrity import file_sha256
from semla_ros.resources import engine_folder

_ABANDONED_S = 3600.0  # a file that is half-made and has not grown for so long was left by a build that died


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """What an engine depends on; any difference makes another entry.

    Attributes:
        component: Name of the fixed component.
        model_digest: SHA-256 over its architecture and weights.
        runtime: "onnx" (an exported graph) or "tensorrt" (a plan).
        runtime_version: Of the exporter or of TensorRT.
        device: Name of the GPU; "any" for a graph.
        precision: "fp32" or "fp16".
        shapes: See `FixedComponent.shapes`.
        export_revision: Of the code that exported a plan's graph; empty for a graph, whose `runtime_version` has it.
        attempt: 2 for a plan that replaces one which could not be loaded.
    """

    component: str
    model_digest: str
    runtime: str
    runtime_version: str
    device: str
    precision: str
    shapes: str
    export_revision: str = ""
    attempt: int = 1

    def file_stem(self) -> str:
        """Readable start and a digest of everything."""
        everything = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.component}-{self.runtime}-{hashlib.sha256(everything.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One file of the cache.

    Attributes:
        key: What it depends on.
        path: The file.
        num_bytes: Its size.
        sha256: Its digest when it was written.
        problem: Why it cannot be used; empty where it can.
    """

    key: EngineKey
    path: Path
    num_bytes: int
    sha256: str
    problem: str = ""


class EngineCache:
    """A folder of engines.

    Args:
        folder: Made when something is stored; None = `resources.engine_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or engine_folder()

    def find(self, key: EngineKey) -> Path | None:
        """The file of a key, intact; None where there is none, or it cannot be read.

        A damaged one is removed, unless the folder may only be read, or another process has replaced it meanwhile.
        """
        description = self._description(key)
        while text := _text(description):
            entry = _parsed(description, text)
            if entry is not None and entry.key == key and not _damage(entry):
                return entry.path
            # `store` takes the description away before it replaces the file: where that is as it was, so is the file.
            if _text(description) == text:
                self.remove(key)
                return None
        return None

    def store(self, key: EngineKey, write: Callable[[Path], None]) -> Path:
        """Make the file of a key.

        Args:
            key: What the file depends on.
            write: Writes a file at the path that it is given.

        Returns:
            Where it is now.

        Raises:
            EngineError: The folder cannot be written; what `write` raises passes through.
        """
        path = self._payload(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as partial:
                write(partial)
                values = {
                    "key": dataclasses.asdict(key),
                    "bytes": partial.stat().st_size,
                    "sha256": file_sha256(partial),
                }
                self._description(key).unlink(missing_ok=True)  # who reads now sees no entry instead of half of each
            write_atomically(self._description(key), json.dumps(values, indent=1))
        except OSError as error:
            raise EngineError(
                f"engine cache {self.folder}: cannot be written ({error}); free space, or set SEMLA_ENGINE_DIR to a "
                "folder that can"
            ) from None
        return path

    def remove(self, key: EngineKey) -> None:
        """Forget an entry; nothing happens where there is none, or the folder may only be read."""
        for path in (self._description(key), self._payload(key)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def entries(self, *, verify: bool = False) -> list[CacheEntry]:
        """Every entry, sorted by component; `verify` reads each file and compares its digest."""
        parsed = (_parsed(path, _text(path) or "") for path in sorted(self.folder.glob("*.json")))
        entries = [
            dataclasses.replace(entry, problem=_damage(entry, is_deep=verify)) for entry in parsed if entry is not None
        ]
        return sorted(entries, key=lambda entry: (entry.key.component, entry.key.runtime, entry.key.runtime_version))

    def clean(self, unwanted: Callable[[CacheEntry], bool]) -> list[CacheEntry]:
        """Remove entries, and what interrupted builds left.

        Half-made files count as left behind once they have not grown for an hour: until then another process may be
        writing them.

        Returns:
            The entries removed.

        Raises:
            EngineError: The folder may only be read.
        """
        removed = [entry for entry in self.entries(verify=True) if unwanted(entry)]
        described = {path.stem for path in self.folder.glob("*.json")}
        half_made = [
            *self.folder.glob(".*"),
            *(path for path in self.folder.glob("*.engine") if path.stem not in described),
        ]
        try:
            for entry in removed:
                entry.path.with_suffix(".json").unlink(missing_ok=True)
                entry.path.unlink(missing_ok=True)
            for path in filter(_is_abandoned, half_made):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise EngineError(f"engine cache {self.folder}: cannot be cleaned ({error})") from None
        return removed

    def _payload(self, key: EngineKey) -> Path:
        return self.folder / f"{key.file_stem()}.engine"

    def _description(self, key: EngineKey) -> Path:
        return self.folder / f"{key.file_stem()}.json"


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_S
    except OSError:  # finished or removed meanwhile
        return False


def _text(path: Path) -> str | None:
    """What a small file holds; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None  # a pipe would be waited for
    except (OSError, ValueError):
        return None


def _parsed(description: Path, text: str) -> CacheEntry | None:
    try:
        values = json.loads(text)
        key = EngineKey(**values["key"])
        num_bytes, sha256 = int(values["bytes"]), str(values["sha256"])
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return None
    return CacheEntry(key=key, path=description.with_suffix(".engine"), num_bytes=num_bytes, sha256=sha256)


def _damage(entry: CacheEntry, *, is_deep: bool = True) -> str:
    try:
        num_bytes = entry.path.stat().st_size
        if num_bytes != entry.num_bytes:
            return f"{num_bytes} bytes, {entry.num_bytes} were written"
        is_intact = not is_deep or file_sha256(entry.path) == entry.sha256
        return "" if is_intact else "its content has changed since it was written"
    except OSError as error:  # another process may remove it at any time
        return f"it cannot be read ({error.strerror or error})"
