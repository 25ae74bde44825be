"""A library of LoRA adapters, each with the centroid of the scenes that it was trained on.

    <library>/<name>/adapter_config.json
    <library>/<name>/adapter_model.safetensors
    <library>/<name>/<name>_statistics.npz        centroid
    <library>/library.yaml                        optional: base model, scene encoder, digests, spreads, settings

Centroids and settings are in memory, matrices stay on disk until an adapter is used. A folder that cannot be used is
left out and named in `problems`; the others serve.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import AdapterError, LibraryError, known_names
from semla_ros.file_integrity import FileMark, mark_of
from semla_ros.library.adapter_files import (
    AdapterFiles,
    AdapterReader,
    LoraLayers,
    Signature,
    file_names,
    read_base_statistics,
)
from semla_ros.library.domain_statistics import DomainStatistics
from semla_ros.library.manifest import (
    BASE_STATISTICS_NAME,
    MANIFEST_NAME,
    AdapterEntry,
    LibraryManifest,
    ModelReference,
    is_plain_name,
    read_manifest,
)
from semla_ros.results import BASE_MODEL

logger = logging.getLogger(__name__)

EAGER_BYTES = 512 * 1024 * 1024  # libraries up to this size have every value checked when they are opened,
EAGER_ADAPTERS = 256  # up to this number of adapters


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter, its matrices read when they are first asked for.

    Attributes:
        name: Its folder's name.
        scaling: Factor of every B A; where single layers differ, their A holds the rest.
    """

    name: str
    scaling: float
    _read: Callable[[], LoraLayers]

    @cached_property
    def layers(self) -> LoraLayers:
        """Module path -> A (r, in), B (out, r), in the stored type.

        Raises:
            AdapterError: See `AdapterReader.read_layers`.
        """
        return self._read()


class AdapterLibrary:
    """The adapters that a scene can be served from. Made by `load`; a changed folder makes another one by `reload`.

    Attributes:
        folder: Where it was read from.
        names: Adapters that can be used, in library order: as the manifest lists them, then by name.
        centroids: Mean scene embedding of each, shape (N, D), float32.
        spread: Distance within which 95 % of a domain's own images lie to its centroid, shape (N,), float32; where that
            is not known, an estimate (see `estimated_spread`); NaN where there is nothing to estimate it from.
        is_spread_measured: Where it is no estimate, shape (N,), bool.
        base_statistics: Centroid and spread of the scenes that the base model was trained on; None where not known.
        problems: Adapters that cannot be used -> why. Grows where an adapter turns out to be damaged when first used.
        manifest: What `library.yaml` says; empty where there is none.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[AdapterFiles],
        manifest: LibraryManifest,
        problems: Mapping[str, str],
        base_statistics: DomainStatistics | None = None,
        reader: AdapterReader | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.base_statistics = base_statistics
        self.problems: dict[str, str] = dict(problems)
        rows = [item.statistics.centroid for item in files]
        self.centroids: NDArray[np.float32] = np.stack(rows) if rows else np.zeros((0, 0), np.float32)
        # Each adapter's centroid becomes a row of all of them, or thousands would be in memory twice.
        self._files = {item.name: _with_centroid(item, row) for item, row in zip(files, self.centroids, strict=True)}
        self.names: tuple[str, ...] = tuple(self._files)
        stated = np.array([self.entry(name).spread_p95 or np.nan for name in self.names], np.float32)
        self.is_spread_measured: NDArray[np.bool_] = np.isfinite(stated)
        self.spread: NDArray[np.float32] = np.where(
            self.is_spread_measured, stated, estimated_spread(self.centroids, stated)
        ).astype(np.float32)
        self._reader = reader or AdapterReader()
        self._verified: dict[str, FileMark] = {}  # weights files whose values and digests were found right
        self._aside: dict[str, tuple[FileMark | None, ...]] = {}  # files of what was set aside
        self._lock = threading.Lock()
        self._again: Callable[[], AdapterLibrary] = lambda: self

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        targets: Signature | None = None,
        encoder_id: str | None = None,
        encoder_dim: int | None = None,
        base_sha: str | Callable[[], str] | None = None,
        eager_bytes: int = EAGER_BYTES,
        reader: AdapterReader | None = None,
    ) -> AdapterLibrary:
        """Read and check a library.

        Args:
            folder: The library.
            targets: Layers of the base model that may be adapted, module path -> (out, in); None checks no shape.
            encoder_id: Scene encoder in use; a library made with another one is refused.
            encoder_dim: Length of its embeddings.
            base_sha: SHA-256 of the base model's file, or what computes it where it is needed; a library made for
                another one is refused.
            eager_bytes: Libraries of at most this size have all values and digests checked now; those of larger ones,
                or with hundreds of adapters, are checked when an adapter is first used. 0 checks none now,
                `sys.maxsize` all.
            reader: Has read it before, for the same targets.

        Raises:
            LibraryError: There is no such folder, nothing in it can be used, `library.yaml` is damaged, or the library
                was made for another base model or scene encoder.
        """
        folder = Path(folder).expanduser()
        manifest = read_manifest(folder) if folder.is_dir() else LibraryManifest()
        if manifest.base.sha256:
            sha256 = base_sha() if callable(base_sha) else base_sha
            _check_made_for(folder, "base model", manifest.base, ModelReference(sha256=sha256 or ""))
        _check_made_for(folder, "scene encoder", manifest.encoder, ModelReference(id=encoder_id or ""))
        reader, problems, files = reader or AdapterReader(targets), {}, []
        for name in adapter_folders(folder, manifest):
            try:
                files.append(_read_one(folder, name, reader, manifest))
            except AdapterError as error:
                problems[name] = str(error)
            except Exception as error:  # of a kind that nobody has seen yet; it costs one adapter, not all
                logger.exception("adapter '%s' cannot be read", name)
                problems[name] = f"adapter '{name}': {type(error).__name__}: {error}"
        problems |= _misnamed(folder)
        files = _of_one_length(files, encoder_dim, problems)
        dim = files[0].statistics.centroid.size if files else None
        library = cls(folder, files, manifest, problems, _base_statistics(folder, manifest, dim, problems), reader)
        is_small = len(files) <= EAGER_ADAPTERS or eager_bytes == sys.maxsize
        if is_small and sum(item.num_bytes for item in files) <= eager_bytes:
            library = library._only_intact()
        for reason in library.problems.values():
            logger.warning("left out of the library: %s", reason)
        if not library.names:
            first = next(iter(library.problems.values()), "no folder with an adapter_config.json")
            raise LibraryError(f"adapter library {folder}: no adapter can be used: {first}")
        library._again = lambda: cls.load(
            folder,
            targets=targets,
            encoder_id=encoder_id,
            encoder_dim=encoder_dim,
            base_sha=base_sha,
            eager_bytes=eager_bytes,
            reader=reader,
        )
        return library

    def reload(self) -> AdapterLibrary:
        """Read the folder again, held to the same model and encoder; this library stays as it is.

        What was set aside stays so until one of its files has changed.

        Raises:
            LibraryError: As `load`.
        """
        library = self._again()
        for name, marks in list(self._aside.items()):
            if name in library.names and marks == library._marks(name):
                library.set_aside(name, self.problems[name])
        return library

    def set_aside(self, name: str, reason: str) -> None:
        """Pass an adapter over from now on: it has failed in use."""
        with self._lock:
            if name in self._files:
                self._aside.setdefault(name, self._marks(name))  # of when it failed, not of when it is mended
            self.problems[name] = reason
        logger.warning("set aside: %s", reason)

    @property
    def without_digest(self) -> tuple[str, ...]:
        """Adapters whose weights the manifest states no digest of: a small damage to them cannot be seen."""
        return tuple(name for name, files in self._files.items() if not files.sha256)

    def adapter(self, name: str) -> Adapter:
        """One adapter.

        Raises:
            AdapterError: The library has no such adapter, or it cannot be used.
        """
        if name in self.problems:
            raise AdapterError(self.problems[name])
        if name not in self._files:
            raise AdapterError(f"adapter '{name}' is not in the library {self.folder}; {known_names(name, self.names)}")
        return Adapter(name, self._files[name].settings.scaling, lambda: self._read_layers(name))

    def files(self, name: str) -> AdapterFiles:
        """What is known of an adapter without reading its matrices; KeyError where it cannot be used."""
        return self._files[name]

    def entry(self, name: str) -> AdapterEntry:
        """What the manifest says of an adapter, and where it does not, the adapter's own statistics."""
        entry = self.manifest.adapters.get(name, AdapterEntry())
        return entry.completed(self._files[name].statistics) if name in self._files else entry

    @property
    def spread_source(self) -> str:
        """How it is known when a scene lies outside: spreads "measured", "estimated" (some or all), or "unknown"."""
        if not np.isfinite(self.spread).all():
            return "unknown"
        return "measured" if self.is_spread_measured.all() else "estimated"

    def _read_layers(self, name: str) -> LoraLayers:
        try:
            layers, mark = self._reader.read_layers(self._files[name], self._verified.get(name))
        except AdapterError as error:
            with self._lock:
                self.problems[name] = str(error)  # retrieval passes it over from now on
            raise
        self._verified[name] = mark
        return layers

    def _marks(self, name: str) -> tuple[FileMark | None, ...]:
        marks: list[FileMark | None] = []
        for file_name in file_names(name):
            try:
                marks.append(mark_of(os.stat(self._files[name].folder / file_name)))
            except OSError:
                marks.append(None)
        return tuple(marks)

    def _only_intact(self) -> AdapterLibrary:
        """This library without the adapters whose values or digests are wrong."""
        for name in self.names:
            with suppress(AdapterError):  # told in `problems`
                self._read_layers(name)
        intact = [files for name, files in self._files.items() if name not in self.problems]
        library = AdapterLibrary(self.folder, intact, self.manifest, self.problems, self.base_statistics, self._reader)
        library._verified = self._verified
        return library


def estimated_spread(centroids: NDArray[np.float32], stated: NDArray[np.float32]) -> float:
    """Spread to go by for adapters that state none.

    Where others of the library state theirs, the median of those. Otherwise the diameter of the ball around their mean
    that holds all centroids: a scene farther away than any two domains can be from each other lies outside. Images
    often lie farther from their own centroid than it does from the next one, so nothing less would be safe.

    Args:
        centroids: Shape (N, D).
        stated: Spread of each, shape (N,), NaN where it states none.

    Returns:
        A length; NaN for a single adapter that states none.
    """
    known = stated[np.isfinite(stated)]
    if known.size:
        return float(np.median(known))
    if len(centroids) < 2:
        return float("nan")
    return 2 * float(np.linalg.norm(centroids - centroids.mean(0), axis=1).max())


def adapter_folders(folder: Path, manifest: LibraryManifest) -> list[str]:
    """Names of the folders that hold an adapter or were to hold one, in library order.

    Raises:
        LibraryError: The folder is not there.
    """
    try:
        with os.scandir(folder) as entries:
            found = {entry.name for entry in entries if is_plain_name(entry.name)}
    except OSError as error:
        raise LibraryError(
            f"adapter library {folder}: {error.strerror or error}; give the folder that holds one folder per adapter"
        ) from None
    found = {name for name in found if _holds_adapter(f"{folder}/{name}", name)}
    listed = [*manifest.adapters, *manifest.broken]
    return listed + sorted(found - set(listed))


def _misnamed(folder: Path) -> dict[str, str]:
    """Folders that hold an adapter under a name that none can have -> why; the names as they can be printed."""
    with os.scandir(folder) as entries:
        found = [entry.name for entry in entries if not is_plain_name(entry.name) and not entry.name.startswith(".")]
    return {
        ascii(name): f"adapter {name!a}: a name must be at most 200 printable characters of UTF-8, without / \\ :, "
        f"and not '{BASE_MODEL}'; rename the folder and its statistics file"
        for name in sorted(found)
        if _holds_adapter(f"{folder}/{name}", name)
    }


def _holds_adapter(path: str, name: str) -> bool:
    """Whether a folder has a file of an adapter, whatever kind of file, or is a link that leads nowhere."""
    if not os.path.isdir(path):
        return os.path.islink(path) and not os.path.exists(path)
    return any(os.path.lexists(f"{path}/{item}") for item in file_names(name))


def _with_centroid(files: AdapterFiles, centroid: NDArray[np.float32]) -> AdapterFiles:
    return dataclasses.replace(files, statistics=dataclasses.replace(files.statistics, centroid=centroid))


def _read_one(folder: Path, name: str, reader: AdapterReader, manifest: LibraryManifest) -> AdapterFiles:
    if name in manifest.broken:
        raise AdapterError(
            f"adapter '{name}': {MANIFEST_NAME}: {manifest.broken[name]}; correct the entry, or remove it"
        )
    path = f"{folder}/{name}"
    if os.path.islink(path) and not os.path.exists(path):
        raise AdapterError(f"adapter '{name}': its folder is a link that leads nowhere; copy the folder instead")
    if os.path.islink(path) and folder.resolve() not in Path(path).resolve().parents:
        raise AdapterError(f"adapter '{name}': its folder is a link that leaves the library; copy the folder instead")
    if not os.path.isdir(path):
        raise AdapterError(
            f"adapter '{name}': library.yaml lists it, but its folder is missing; copy it or import again"
        )
    return reader.read(folder, name, manifest.adapters.get(name))


def _base_statistics(
    folder: Path, manifest: LibraryManifest, dim: int | None, problems: dict[str, str]
) -> DomainStatistics | None:
    """Where the base model is at home; a damaged file becomes a problem, and retrieval goes on without it."""
    stated = manifest.base_domain
    if stated is None:
        return None
    try:
        statistics = read_base_statistics(folder, stated.sha256)
        if dim is not None and statistics.centroid.size != dim:
            raise AdapterError(
                f"{BASE_STATISTICS_NAME}: centroid has {statistics.centroid.size} values, expected {dim}; "
                "it was made with another scene encoder: make it again with that of the library"
            )
    except AdapterError as error:
        problems[BASE_STATISTICS_NAME] = str(error)
        return None
    spread = statistics.spread_p95 if stated.spread_p95 is None else stated.spread_p95
    return dataclasses.replace(statistics, spread_p95=spread)


def _of_one_length(
    files: Sequence[AdapterFiles], encoder_dim: int | None, problems: dict[str, str]
) -> list[AdapterFiles]:
    """The adapters whose centroid has the encoder's length, or the most common one; the others become problems."""
    if not files:
        return []
    expected = encoder_dim or Counter(item.statistics.centroid.size for item in files).most_common(1)[0][0]
    for item in files:
        if item.statistics.centroid.size != expected:
            problems[item.name] = (
                f"adapter '{item.name}': centroid has {item.statistics.centroid.size} values, expected {expected}; "
                "it was made with another scene encoder: make it again with 'semla library index'"
            )
    return [item for item in files if item.statistics.centroid.size == expected]


def _check_made_for(folder: Path, what: str, stated: ModelReference, actual: ModelReference) -> None:
    if difference := stated.difference(actual):
        raise LibraryError(
            f"adapter library {folder}: made for the {what} with {difference}, the one in use; "
            f"use that {what}, or a library made for this one"
        )
