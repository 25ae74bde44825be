"""Make a library of a set of adapter folders, add single adapters to one, write `library.yaml`.

Nothing is written on an error.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from semla_ros.atomic_files import atomic_folder, locked, write_atomically
from semla_ros.errors import AdapterError, LibraryError
from semla_ros.file_integrity import file_sha256
from semla_ros.library.adapter_files import AdapterFiles, AdapterReader, Signature, file_names
from semla_ros.library.adapter_library import AdapterLibrary, adapter_folders
from semla_ros.library.manifest import (
    BASE_STATISTICS_NAME,
    FORMAT,
    MANIFEST_NAME,
    AdapterEntry,
    LibraryManifest,
    ModelReference,
    is_plain_name,
    read_manifest,
)

ALONG = ("CARD.md", "README.md", "LICENSE", "LICENSE.txt")  # copied with an adapter where they are there


def import_library(
    folder: Path,
    *,
    targets: Signature | None = None,
    base: ModelReference | None = None,
    encoder: ModelReference | None = None,
    licence: str = "",
    note: str = "",
) -> LibraryManifest:
    """Check a set of adapter folders in the published layout and write `library.yaml` beside them.

    What an earlier `library.yaml` says of spread, images, families and settings is kept; digests are made anew.

    Args:
        folder: Holds one folder per adapter.
        targets: Layers of the base model, module path -> (out, in); None checks no shape.
        base: The model that the adapters were trained on; None keeps what the manifest says.
        encoder: The scene encoder behind the centroids, likewise.
        licence: For adapters of which the manifest knows none.
        note: One line about the library.

    Returns:
        The manifest as written.

    Raises:
        LibraryError: The folder holds no adapter, its centroids differ in length, or `library.yaml` is damaged.
        AdapterError: An adapter cannot be used. Nothing is written.
    """
    if not folder.is_dir():
        raise LibraryError(f"adapter library {folder}: no such folder; give the one that holds one folder per adapter")

    def change(earlier: LibraryManifest) -> LibraryManifest:
        names = adapter_folders(folder, LibraryManifest())
        if not names:
            raise LibraryError(f"adapter library {folder}: no folder in it has an adapter_config.json")
        order = [name for name in earlier.adapters if name in names]
        entries: dict[str, AdapterEntry] = {}
        lengths: dict[int, str] = {}
        for name in [*order, *(name for name in names if name not in order)]:
            files = read_checked(folder / name, targets)
            lengths.setdefault(files.statistics.centroid.size, name)
            if len(lengths) > 1:
                (first, first_name), (second, second_name) = lengths.items()
                raise LibraryError(
                    f"adapter library {folder}: centroid of '{first_name}' has {first} values, of '{second_name}' "
                    f"{second}; they are from different scene encoders: make them again with 'semla library index'"
                )
            entry = earlier.adapters.get(name, AdapterEntry())
            entries[name] = completed_entry(entry, files, licence)
        return dataclasses.replace(
            earlier,
            base=base or earlier.base,
            encoder=encoder or earlier.encoder,
            adapters=entries,
            note=note or earlier.note,
        )

    return change_manifest(folder, change)


def add_adapter(library: Path, source: Path, *, name: str = "", targets: Signature | None = None) -> str:
    """Copy one adapter's folder into a library, which it joins whole or not at all.

    Args:
        library: Made where it is missing.
        source: The adapter's folder, in the published layout.
        name: Its name in the library; its folder's name where empty.
        targets: Layers of the base model, module path -> (out, in); None checks no shape.

    Returns:
        The name.

    Raises:
        AdapterError: The adapter cannot be used, or the name is taken or no plain folder name.
        LibraryError: The adapter comes from a library for another base model or scene encoder, or its centroid has
            another length than those of the library.
    """
    source = source.expanduser().resolve()
    name = name or source.name
    if not is_plain_name(name):
        raise AdapterError(f"adapter name {name!r} must be a plain folder name; it would leave the library")
    if not source.is_dir():
        raise AdapterError(f"adapter '{name}': there is no folder {source}")
    target = library / name
    if target.exists() or target.is_symlink():
        raise AdapterError(f"adapter '{name}': {target} exists already; remove it, or give another name")
    files = read_checked(source, targets)
    origin = read_manifest(source.parent)
    _check_fits(library, name, origin, files.statistics.centroid.size)

    def change(manifest: LibraryManifest) -> LibraryManifest:
        home = source.parent / BASE_STATISTICS_NAME
        if not (library / MANIFEST_NAME).is_file() and adapter_folders(library, manifest) == [name]:
            # The first adapter brings along what its own library states.
            manifest = dataclasses.replace(origin, adapters={}, note="")
        if manifest.base_domain is not None and not (library / BASE_STATISTICS_NAME).exists() and home.is_file():
            shutil.copyfile(home, library / BASE_STATISTICS_NAME)
        entry = origin.adapters.get(source.name, AdapterEntry())
        entry = completed_entry(entry, AdapterReader().read(library, name))
        return dataclasses.replace(manifest, adapters={**manifest.adapters, name: entry})

    with atomic_folder(target) as partial:
        for old, new in zip(file_names(source.name), file_names(name), strict=True):
            shutil.copyfile(source / old, partial / new)
        for extra in ALONG:
            if (source / extra).is_file() and not (source / extra).is_symlink():
                shutil.copyfile(source / extra, partial / extra)
    try:
        change_manifest(library, change)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return name


def read_checked(folder: Path, targets: Signature | None) -> AdapterFiles:
    """Read an adapter's folder and check every value in it; see `AdapterReader`."""
    reader = AdapterReader(targets)
    files = reader.read(folder.parent, folder.name)
    reader.read_layers(files)
    return files


def completed_entry(entry: AdapterEntry, files: AdapterFiles, licence: str = "") -> AdapterEntry:
    """A manifest entry with the digests of an adapter's files, and what its statistics file tells."""
    digests = {name: file_sha256(files.folder / name) for name in file_names(files.name)}
    return dataclasses.replace(entry.completed(files.statistics), sha256=digests, licence=entry.licence or licence)


def change_manifest(folder: Path, change: Callable[[LibraryManifest], LibraryManifest]) -> LibraryManifest:
    """Read, change and write `library.yaml`, one writer at a time; what `change` raises leaves it as it was.

    Raises:
        LibraryError: It cannot be read, or not all of it.
    """
    with locked(folder):
        manifest = read_manifest(folder)
        for reason in manifest.broken.values():
            raise LibraryError(f"{folder / MANIFEST_NAME}: {reason}; correct the entry, or remove it")
        manifest = change(manifest)
        write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: LibraryManifest) -> Path:
    """Write `library.yaml`; the file is whole at any time."""
    values: dict[str, Any] = {"format": FORMAT}
    values |= {key: value for key in ("domain", "note") if (value := getattr(manifest, key))}
    for key in ("base", "encoder"):
        if reference := _without_empty(getattr(manifest, key)):
            values[key] = reference
    for key in ("retrieval", "drift"):
        settings = getattr(manifest, key)
        if settings is not None:
            values[key] = dataclasses.asdict(settings)
    if manifest.base_domain is not None:
        values["base_domain"] = _without_empty(manifest.base_domain)
    values["adapters"] = {name: _without_empty(entry) for name, entry in manifest.adapters.items()}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    path = folder / MANIFEST_NAME
    write_atomically(path, text)
    return path


def _check_fits(library: Path, name: str, origin: LibraryManifest, length: int) -> None:
    """An adapter's origin and centroid against the library that it is to join."""
    manifest = read_manifest(library)
    for what, ours, theirs in (
        ("base model", manifest.base, origin.base),
        ("scene encoder", manifest.encoder, origin.encoder),
    ):
        if difference := theirs.difference(ours):
            raise LibraryError(
                f"adapter '{name}' was made for the {what} with {difference} as the library {library}; "
                f"add it to a library for its own {what}"
            )
    if library.is_dir() and adapter_folders(library, manifest):
        expected = AdapterLibrary.load(library, eager_bytes=0).centroids.shape[1]
        if length != expected:
            raise LibraryError(
                f"adapter '{name}': centroid has {length} values, those of {library} have {expected}; "
                "it was made with another scene encoder: make it again with 'semla library index'"
            )


def _without_empty(item: Any) -> dict[str, Any]:
    """Fields of a dataclass that say something."""
    return {key: value for key, value in dataclasses.asdict(item).items() if value not in ("", None, 0, {})}
