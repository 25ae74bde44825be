"""Downloads from the Hugging Face hub to this machine: of what is published, and of what `hf://owner/repo` names.

What is downloaded goes into the hub's own cache, which other programs share, or into a folder of one's own. A download
is gone on with where it was interrupted, and a file appears under its name only once its digest is right. What is on
this machine is used as it is: nothing is asked of the network, and nothing changes, until it is fetched again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from semla_ros.atomic_files import write_atomically
from semla_ros.errors import ConfigError, FetchError, known_names
from semla_ros.file_integrity import file_sha256
from semla_ros.hub.published import PUBLISHED, PublishedItem, own_assets

if TYPE_CHECKING:
    import ssl

RECORD_NAME = "fetched.json"  # beside what was fetched into a folder
STAGING_NAME = ".download"  # partial downloads, below the item's folder
FILES = ("*.safetensors", "*.pth", "*.pt", "*.npz", "*.zip", "*.json", "*.yaml", "*.md", "*LICENSE*")  # of a repository
CHUNK_BYTES = 1 << 20
TRIES = 5  # of one download, each going on where the one before broke off
TIMEOUT_S = 30.0  # without a byte

# As huggingface_hub's file system spells it; a `Path` of it has lost a slash.
_HUB_NAME = re.compile(
    r"hf:/{1,2}((?P<kind>spaces|datasets)/)?(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<inside>.+))?"
)

OnProgress = Callable[[int, int | None], object]


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
    item: PublishedItem,
    dest: Path | None,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    on_progress: OnProgress = lambda _done, _total: None,
) -> list[FetchedFile]:
    """Download an item's files, unless they are there.

    Args:
        item: What to download.
        dest: Folder of models, in which they get a folder `<id>`, with a record of where they came from; None = the
            hub's cache.
        revision: Branch, tag or commit of the repository; None takes the newest, or what is there.
        endpoint: Another server with the hub's interface; None takes `$HF_ENDPOINT`, then the public one.
        on_progress: Told the bytes of a file that are there, and how many there are.

    Returns:
        The files.

    Raises:
        FetchError: The hub cannot be reached, lacks the file, or the digest is wrong. What is there stays as it is, a
            partial download is gone on with by the next call.
    """
    if dest is None:
        return [_fetch_to_cache(item, path, revision, endpoint, on_progress) for path in item.files]
    folder = dest / item.id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(
            f"{item.id}: {folder} cannot be made: {error.strerror}; give another folder with --dest"
        ) from None
    try:
        return [_fetch_to_folder(item, path, folder, revision, endpoint, on_progress) for path in item.files]
    except FetchError:
        for empty in (folder / STAGING_NAME, folder):
            with contextlib.suppress(OSError):  # not empty: there is something to go on with
                empty.rmdir()
        raise


def hub_folder(name: str | Path, *, endpoint: str | None = None, is_new: bool = False) -> Path:
    """Where what an `hf://` name means is on this machine; it is downloaded where it is not there.

    Args:
        name: `hf://[spaces/]owner/repo[@revision][/path]`.
        endpoint: As for `fetch`.
        is_new: Look for a newer state; else what is there stays.

    Returns:
        A folder, or the file that the name means.

    Raises:
        ConfigError: It is no such name.
        FetchError: It cannot be downloaded.
    """
    match = _HUB_NAME.fullmatch(str(name))
    if match is None or ".." in str(name).split("/"):
        raise ConfigError(
            f"'{name}' is no name on the hub; it is written hf://owner/repo, hf://owner/repo@revision or "
            "hf://owner/repo/folder"
        )
    from huggingface_hub import HfApi, snapshot_download

    repository, revision, inside = match["repository"], match["revision"], (match["inside"] or "").rstrip("/")
    kind = (match["kind"] or "models")[:-1]
    wanted = [inside, *(f"{inside}/{item}" for item in FILES)] if inside else list(FILES)
    asked = hashlib.sha256(json.dumps([kind, repository, revision, inside]).encode()).hexdigest()[:12]
    # Not in the hub's own cache: there each file is a link out of its folder, which an adapter's may not be.
    home = own_assets("hub", f"{repository.replace('/', '--')}-{asked}")
    current = home / "commit"
    try:
        if is_new or not current.is_file():
            commit = (
                HfApi(endpoint=endpoint).repo_info(repository, repo_type=kind, revision=revision or "main").sha or ""
            )
            if not (home / commit).is_dir():
                partial = home / f".{commit}"
                snapshot_download(
                    repository,
                    repo_type=kind,
                    revision=commit,
                    allow_patterns=wanted,
                    endpoint=endpoint,
                    local_dir=partial,
                )
                partial.rename(home / commit)
            write_atomically(current, commit)
        found = home / current.read_text(encoding="utf-8") / inside
    except Exception as error:  # as below
        raise FetchError(f"{name}: {_explain(error, revision, endpoint, str(home))}") from None
    if not found.exists():
        raise FetchError(f"{name}: the repository has no '{inside}'")
    return found


def _fetch_to_cache(
    item: PublishedItem, path: str, revision: str | None, endpoint: str | None, on_progress: OnProgress
) -> FetchedFile:
    """The whole file in the hub's cache, where the hub's own library finds it.

    That library throws away what an interrupted process had. So its file is put where it keeps files by their digest;
    it makes the rest, and were they kept elsewhere one day, it would download the file itself.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(item.repository, path, repo_type=item.kind, revision=revision)
    if isinstance(cached, str):
        blob = Path(cached).resolve()
        sha256 = file_sha256(blob)
        if not Path(cached).is_symlink() or _has_digest(blob, sha256, blob.name):  # only where links work it tells
            return FetchedFile(path=Path(cached), sha256=sha256, commit=_commit_of(cached, path), was_there=True)
        blob.unlink()
    blobs = Path(constants.HF_HUB_CACHE, f"{item.kind}s--{item.repository.replace('/', '--')}", "blobs")
    with _explained(item, path, revision, endpoint, str(blobs)):
        partial, sha256, remote = _downloaded(item, path, blobs, revision, endpoint, on_progress)
        partial.replace(blobs / remote.etag)
        found = hf_hub_download(item.repository, path, repo_type=item.kind, revision=revision, endpoint=endpoint)
    return FetchedFile(path=Path(found), sha256=sha256, commit=_commit_of(found, path), was_there=False)


def _commit_of(cached: str, path: str) -> str:
    """A file in the cache lies below a folder named by the commit."""
    return Path(cached).parents[len(PurePosixPath(path).parts) - 1].name


def _fetch_to_folder(
    item: PublishedItem, path: str, folder: Path, revision: str | None, endpoint: str | None, on_progress: OnProgress
) -> FetchedFile:
    target = folder / PurePosixPath(path).name
    record = _read_record(folder)
    known = record.get(target.name, {})
    is_wanted_revision = revision is None or revision in (known.get("revision"), known.get("commit"))
    if target.is_file() and is_wanted_revision and known.get("sha256") == file_sha256(target):
        return FetchedFile(path=target, sha256=known["sha256"], commit=known.get("commit", ""), was_there=True)
    with _explained(item, path, revision, endpoint, str(folder)):
        partial, sha256, remote = _downloaded(item, path, folder / STAGING_NAME, revision, endpoint, on_progress)
    partial.replace(target)
    shutil.rmtree(folder / STAGING_NAME, ignore_errors=True)
    record[target.name] = {
        "sha256": sha256,
        "repository": item.repository,
        "path": path,
        "revision": revision or "main",
        "commit": remote.commit,
    }
    write_atomically(folder / RECORD_NAME, json.dumps(record, indent=2) + "\n")
    return FetchedFile(path=target, sha256=sha256, commit=remote.commit, was_there=False)


@dataclass(frozen=True)
class _Remote:
    """A file on the hub: the state that its digest belongs to."""

    location: str
    etag: str
    commit: str
    size: int | None
    headers: dict[str, str]


def _downloaded(
    item: PublishedItem,
    path: str,
    staging: Path,
    revision: str | None,
    endpoint: str | None,
    on_progress: OnProgress,
) -> tuple[Path, str, _Remote]:
    """The whole file in the staging folder, and its SHA-256; one with another digest than stated is thrown away."""
    remote = _look_up(item, path, revision, endpoint)
    staging.mkdir(parents=True, exist_ok=True)
    partial = staging / f"{remote.etag}.incomplete"  # what was begun of another version is not gone on with
    _go_on(remote, partial, on_progress)
    sha256 = file_sha256(partial)
    if not _has_digest(partial, sha256, remote.etag):
        partial.unlink()
        raise FetchError(
            f"{item.id}: {path} from {item.repository} has SHA-256 {sha256}, expected {remote.etag}; "
            "the download was thrown away: try again, or check the endpoint"
        )
    return partial, sha256, remote


def _look_up(item: PublishedItem, path: str, revision: str | None, endpoint: str | None) -> _Remote:
    from urllib.parse import urlsplit

    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(item.repository, path, repo_type=item.kind, revision=revision, endpoint=endpoint)
    metadata = get_hf_file_metadata(url)
    etag = metadata.etag or ""
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag):
        raise FetchError(f"{item.id}: {urlsplit(url).netloc} states no digest of {path}; check the endpoint")
    is_same_host = urlsplit(metadata.location).netloc == urlsplit(url).netloc
    headers = build_hf_headers(token=None if is_same_host else False)  # no token for a content network
    return _Remote(metadata.location, etag, metadata.commit_hash or "", metadata.size, headers)


def _go_on(remote: _Remote, partial: Path, on_progress: OnProgress) -> None:
    """Download what a partial file lacks; where the connection breaks, again from there."""
    for left in reversed(range(TRIES)):
        done = partial.stat().st_size if partial.is_file() else 0
        if remote.size is not None and done > remote.size:
            partial.unlink()
            done = 0
        if done == remote.size:
            return
        try:
            _receive(remote, partial, done, on_progress)
            if remote.size is None or partial.stat().st_size == remote.size:
                return
        except OSError as error:
            if _is_of_the_disk(error) or not left:
                raise
    raise ConnectionError(f"{done} of {remote.size} bytes came")


def _is_of_the_disk(error: Exception) -> bool:
    """Rather than of the network, whose errors name no file, or one without a reason."""
    if not isinstance(error, OSError):
        return False
    names_a_file = error.filename is not None and error.strerror is not None
    return names_a_file or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _receive(remote: _Remote, partial: Path, done: int, on_progress: OnProgress) -> None:
    import urllib.request

    request = urllib.request.Request(remote.location)
    for name, value in remote.headers.items():
        request.add_unredirected_header(name, value)  # a token is for this host alone
    if done:
        request.add_header("Range", f"bytes={done}-")
    with (
        urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_certificates()) as answer,
        partial.open("ab" if answer.status == 206 else "wb") as file,  # 200: the whole of it
    ):
        while chunk := answer.read1(CHUNK_BYTES):
            file.write(chunk)
            on_progress(file.tell(), remote.size)


def _certificates() -> ssl.SSLContext:
    """The system's, and those of certifi, for machines that have none."""
    import ssl

    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


@contextlib.contextmanager
def _explained(
    item: PublishedItem, path: str, revision: str | None, endpoint: str | None, where: str
) -> Iterator[None]:
    try:
        yield
    except FetchError:
        raise
    except Exception as error:  # the hub's transport library, and with it the errors, changes between releases
        reason = _explain(error, revision, endpoint, where)
        raise FetchError(f"{item.id}: {path} of {item.repository}: {reason}") from None


def _explain(error: Exception, revision: str | None, endpoint: str | None, where: str) -> str:
    """One clear line for whatever the hub's library raised."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OSError) and _is_of_the_disk(error):
        return f"{error.filename or where}: {error.strerror}; make room, or give another folder"
    server = endpoint or constants.ENDPOINT
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    sentences = (
        (OfflineModeIsEnabled, f"offline mode is on; unset HF_HUB_OFFLINE, or copy the file to {where} yourself"),
        (GatedRepoError, f"its authors ask for consent; accept on {server}, then set HF_TOKEN"),
        (RevisionNotFoundError, f"{server} has no revision '{revision}'"),
        (RepositoryNotFoundError, f"{server} has no such repository; it may have moved, or be private"),
        (RemoteEntryNotFoundError, f"the repository has no such file{f' at {revision}' if revision else ''}"),
        (
            Exception,
            f"{server} cannot be reached or broke off ({reason}); with a network the same command goes on where it "
            f"stopped; without one, copy the file to {where} from another machine",
        ),
    )
    return next(sentence for kind, sentence in sentences if isinstance(error, kind))


def _has_digest(path: Path, sha256: str, stated: str) -> bool:
    """Whether a file has the digest that the hub states: SHA-256 for large files, git's SHA-1 for small ones."""
    if len(stated) != 40:
        return stated == sha256
    content = path.read_bytes()
    return stated == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _read_record(folder: Path) -> dict[str, Any]:
    """What was fetched into a folder before; nothing where the record is missing or damaged."""
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
