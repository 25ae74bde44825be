"""Adapter libraries of the hub: those that others have published as an archive, and those that a name means."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from semla_ros.errors import FetchError
from semla_ros.file_integrity import file_sha256
from semla_ros.hub.published import own_assets
from semla_ros.library.adapter_files import CONFIG_NAME
from semla_ros.library.importing import import_library
from semla_ros.library.manifest import (
    MANIFEST_NAME,
    ModelReference,
    is_plain_name,
)

MAX_UNPACKED_BYTES = 20 * 1024**3


def library_below(folder: Path) -> Path:
    """The library in a downloaded folder: itself, or its one archive unpacked.

    Raises:
        SemlaError: The archive cannot be unpacked, or an adapter in it cannot be used.
    """
    archives = [folder] if folder.is_file() else sorted(folder.glob("*.zip"))
    if folder.is_dir() and (any(folder.glob(f"*/{CONFIG_NAME}")) or len(archives) != 1):
        return folder
    unpacked = own_assets("unpacked", file_sha256(archives[0])[:16])
    if not (unpacked / MANIFEST_NAME).is_file():
        make_library(archives[0], unpacked)
    return unpacked


def make_library(
    archive: Path, folder: Path, base: ModelReference | None = None, encoder: ModelReference | None = None
) -> list[str]:
    """Unpack an archive of adapters and check them all; see `import_library`.

    Args:
        archive: Zip archive of adapter folders.
        folder: Made where it is missing.
        base: The model that they were trained on, where it is known.
        encoder: The scene encoder behind the centroids, likewise.

    Returns:
        Names of the adapters.

    Raises:
        FetchError: It is no such archive; nothing is written.
        SemlaError: An adapter cannot be used. They are unpacked, without `library.yaml`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = unpack_library(archive, folder)
    import_library(folder, base=base, encoder=encoder)
    return names


def unpack_library(archive: Path, folder: Path) -> list[str]:
    """Unpack the adapter folders of a zip archive, wherever in it they lie.

    Args:
        archive: The archive.
        folder: Gets one folder per adapter; folders that are there are replaced.

    Returns:
        Names of the adapters.

    Raises:
        FetchError: It is no zip archive, holds no adapter, or would unpack to an absurd size. Nothing is written.
    """
    staging = folder / ".unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as content:
            members = _adapter_members(content.infolist(), archive)
            for member, target in members:
                path = staging / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
        names = sorted({target.parts[0] for _, target in members})
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)
            (staging / name).rename(folder / name)
        return names
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise FetchError(f"{archive}: cannot be unpacked ({error}); fetch it again") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _adapter_members(members: Iterable[zipfile.ZipInfo], archive: Path) -> list[tuple[zipfile.ZipInfo, Path]]:
    """Files of adapter folders with the path that each is to get: adapter's name, file's name."""
    files = [member for member in members if not member.is_dir()]
    parents = {PurePosixPath(member.filename).parent for member in files if _name(member) == CONFIG_NAME}
    chosen = []
    for member in files:
        path = PurePosixPath(member.filename)
        if path.parent not in parents:
            continue
        if not is_plain_name(path.parent.name) or not is_plain_name(path.name) or path.parent.name == "..":
            raise FetchError(
                f"{archive}: '{member.filename}' would leave the library; fetch it from a source you trust"
            )
        chosen.append((member, Path(path.parent.name, path.name)))
    if not chosen:
        raise FetchError(f"{archive}: no folder in it has an {CONFIG_NAME}")
    if len({target for _, target in chosen}) < len(chosen):
        raise FetchError(f"{archive}: two adapters in it have the same name")
    if sum(member.file_size for member, _ in chosen) > MAX_UNPACKED_BYTES:
        raise FetchError(f"{archive}: unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB; it is no adapter library")
    return chosen


def _name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename).name
