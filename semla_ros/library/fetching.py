"""Download published weights through the Hugging Face hub: resumable, and each file held to its digest.

A download is gone on with where it was interrupted. A file appears under its name only once its digest is right, and
`fetched.json` beside it records where it came from, so that a second call needs no network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from semla_ros.errors import FetchError, known_names
from semla_ros.file_integrity import file_sha256, write_atomically
from semla_ros.library.adapter_files import CONFIG_NAME
from semla_ros.library.manifest import is_plain_name

RECORD_NAME = "fetched.json"
STAGING_NAME = ".download"  # partial downloads, below the item's folder
MAX_UNPACKED_BYTES = 20 * 1024**3


@dataclass(frozen=True, kw_only=True)
class PublishedItem:
    """Something that others have published.

    Attributes:
        id: Folder that it is put into.
        repository: On the hub.
        files: Paths in the repository.
        kind: Of the repository: "model" or "space".
        summary: One line for tables.
        is_library: The file is a zip archive of adapter folders.
    """

    id: str
    repository: str
    files: tuple[str, ...]
    kind: str = "model"
    summary: str = ""
    is_library: bool = False


# Where the authors' own pages point to. Their pages state no digests.
PUBLISHED = {
    item.id: item
    for item in (
        PublishedItem(
            id="catseg-b",
            repository="hamacojr/CAT-Seg-weights",
            kind="space",
            files=("model_base.pth",),
            summary="CAT-Seg, CLIP ViT-B/16",
        ),
        PublishedItem(
            id="catseg-l",
            repository="hamacojr/CAT-Seg-weights",
            kind="space",
            files=("model_large.pth",),
            summary="CAT-Seg, CLIP ViT-L/14@336: the base model of the published adapters",
        ),
        PublishedItem(
            id="semla-adapters",
            repository="rezaqorbani/SemLA",
            files=("loradb.zip",),
            summary="SemLA adapters for 20 domains, for catseg-l",
            is_library=True,
        ),
        PublishedItem(
            id="ViT-L-14-openai",
            repository="timm/vit_large_patch14_clip_224.openai",
            files=("open_clip_model.safetensors",),
            summary="OpenAI CLIP ViT-L/14: the scene encoder of the published adapters",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class FetchedFile:
    """A file that is on this machine now.

    Attributes:
        path: Where it is.
        sha256: Its digest.
        commit: Of the repository.
        was_there: Nothing had to be downloaded.
    """

    path: Path
    sha256: str
    commit: str
    was_there: bool


def published_item(name: str) -> PublishedItem:
    """A published item by id.

    Raises:
        FetchError: There is none of that name.
    """
    if name not in PUBLISHED:
        raise FetchError(f"'{name}' is not a published item; {known_names(name, ('all', *PUBLISHED))}")
    return PUBLISHED[name]


def fetch(
    item: PublishedItem, dest: Path, *, revision: str | None = None, endpoint: str | None = None
) -> list[FetchedFile]:
    """Download an item's files into `<dest>/<id>/`, unless they are there.

    Args:
        item: What to download.
        dest: Folder of models.
        revision: Branch, tag or commit of the repository; None takes the newest, or what is there.
        endpoint: Another server with the hub's interface; None takes `$HF_ENDPOINT`, then the public one.

    Returns:
        The files.

    Raises:
        FetchError: The hub cannot be reached, lacks the file, or the digest is wrong. What is there stays as it is, a
            partial download is gone on with by the next call.
    """
    folder = dest / item.id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(
            f"{item.id}: {folder} cannot be made: {error.strerror}; give another folder with --dest"
        ) from None
    try:
        return [_fetch_file(item, path, folder, revision, endpoint) for path in item.files]
    except FetchError:
        for empty in (folder / STAGING_NAME, folder):
            with contextlib.suppress(OSError):  # not empty: there is something to go on with
                empty.rmdir()
        raise


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


def _fetch_file(
    item: PublishedItem, path: str, folder: Path, revision: str | None, endpoint: str | None
) -> FetchedFile:
    target = folder / PurePosixPath(path).name
    record = _read_record(folder)
    known = record.get(target.name, {})
    is_wanted_revision = revision is None or revision in (known.get("revision"), known.get("commit"))
    if target.is_file() and is_wanted_revision and known.get("sha256") == file_sha256(target):
        return FetchedFile(path=target, sha256=known["sha256"], commit=known.get("commit", ""), was_there=True)
    partial, commit, stated = _download(item, path, folder / STAGING_NAME, revision, endpoint)
    sha256 = file_sha256(partial)
    if not _has_digest(partial, sha256, stated):
        shutil.rmtree(folder / STAGING_NAME, ignore_errors=True)
        raise FetchError(
            f"{item.id}: {path} from {item.repository} has SHA-256 {sha256}, expected {stated}; "
            "the download was thrown away: try again, or check the endpoint"
        )
    partial.replace(target)
    shutil.rmtree(folder / STAGING_NAME, ignore_errors=True)
    record[target.name] = {
        "sha256": sha256,
        "repository": item.repository,
        "path": path,
        "revision": revision or "main",
        "commit": commit,
    }
    write_atomically(folder / RECORD_NAME, json.dumps(record, indent=2) + "\n")
    return FetchedFile(path=target, sha256=sha256, commit=commit, was_there=False)


def _download(
    item: PublishedItem, path: str, staging: Path, revision: str | None, endpoint: str | None
) -> tuple[Path, str, str]:
    """The whole file in the staging folder, the repository's commit, and the digest that the hub states.

    The hub's own `hf_hub_download` throws away what an interrupted process had; here it is gone on with.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    try:
        url = hf_hub_url(item.repository, path, repo_type=item.kind, revision=revision, endpoint=endpoint)
        metadata = get_hf_file_metadata(url, endpoint=endpoint)
        stated, commit = metadata.etag or "", metadata.commit_hash or ""
        staging.mkdir(parents=True, exist_ok=True)
        # Named by its digest: what was begun of another version is not gone on with.
        partial = staging / f"{hashlib.sha256(stated.encode()).hexdigest()[:16]}.partial"
        resume_size = partial.stat().st_size if partial.is_file() else 0
        if metadata.size is not None and resume_size > metadata.size:
            resume_size = 0
        with partial.open("r+b" if resume_size else "wb") as file:
            file.seek(resume_size)
            file.truncate()
            is_same_host = urlsplit(metadata.location).netloc == urlsplit(url).netloc
            http_get(
                metadata.location,  # the very state that the digest belongs to
                file,
                resume_size=resume_size,
                headers=build_hf_headers(token=None if is_same_host else False),  # no token for a content network
                expected_size=metadata.size,
                displayed_filename=PurePosixPath(path).name,
            )
    except Exception as error:  # the hub's transport library, and with it the errors, changes between releases
        raise FetchError(_explain(error, item, path, revision, endpoint, staging.parent)) from None
    return partial, commit, stated


def _explain(
    error: Exception, item: PublishedItem, path: str, revision: str | None, endpoint: str | None, folder: Path
) -> str:
    """One clear line for whatever the hub's library raised."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = endpoint or constants.ENDPOINT
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    sentences = (
        (OfflineModeIsEnabled, f"offline mode is on; unset HF_HUB_OFFLINE, or copy the file to {folder} yourself"),
        (GatedRepoError, f"its authors ask for consent; accept on {where}, then set HF_TOKEN"),
        (RevisionNotFoundError, f"{where} has no revision '{revision}'"),
        (RepositoryNotFoundError, f"{where} has no such repository; it may have moved, or be private"),
        (RemoteEntryNotFoundError, f"the repository has no such file{f' at {revision}' if revision else ''}"),
        (
            Exception,
            f"{where} cannot be reached or broke off ({reason}); with a network the same command goes on where it "
            f"stopped; without one, copy the file to {folder} from another machine",
        ),
    )
    sentence = next(sentence for kind, sentence in sentences if isinstance(error, kind))
    return f"{item.id}: {path} of {item.repository}: {sentence}"


def _has_digest(path: Path, sha256: str, stated: str) -> bool:
    """Whether a file has the digest that the hub states: SHA-256 for large files, git's SHA-1 for small ones."""
    from huggingface_hub.utils.sha import git_hash

    return stated == sha256 or (len(stated) == 40 and stated == git_hash(path.read_bytes()))


def _read_record(folder: Path) -> dict[str, Any]:
    """What was fetched into a folder before; nothing where the record is missing or damaged."""
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
