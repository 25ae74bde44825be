"""Centroid and spread of a domain from a folder of its images, resumable, the same in any order."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.errors import AdapterError, DatasetError, LibraryError
from semla_ros.file_integrity import file_sha256
from semla_ros.lab.training.adapter_training import domain_statistics
from semla_ros.lab.training.samples import image_files, training_image
from semla_ros.library.centroids import write_statistics
from semla_ros.library.domain_statistics import DomainStatistics, statistics_name
from semla_ros.library.importing import change_manifest
from semla_ros.library.manifest import AdapterEntry, LibraryManifest, ModelReference, read_manifest
from semla_ros.results import ImageArray

STATE_NAME = ".index.part"  # in the adapter's folder until its centroid is written


def index_adapter(
    folder: Path,
    images: Path,
    encoder: SceneEncoder,
    *,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
    on_problem: Callable[[DatasetError], object] = lambda _error: None,
) -> DomainStatistics:
    """Embed a domain's images and write `<name>_statistics.npz` into the adapter's folder.

    Spread, number of images, digest and the encoder's name are put into the `library.yaml`, which is made where there
    is none. An interrupted run is gone on with: finished embeddings lie in a hidden file of the folder until the
    centroid is written.

    Args:
        folder: The adapter's folder, `<library>/<name>`.
        images: Searched recursively.
        encoder: The library's scene encoder.
        batch_size: Images embedded at once.
        on_progress: Called with the number of images done, and of all.
        on_problem: Told of each image that cannot be read; it is left out.

    Returns:
        Mean and spread; they do not depend on the order of the files.

    Raises:
        AdapterError: There is no such folder.
        LibraryError: The library was made with another scene encoder.
        DatasetError: There is no image, or none that can be read.
    """
    name = folder.name
    if not folder.is_dir():
        raise AdapterError(f"adapter '{name}': there is no folder {folder}; train or add the adapter first")
    library = folder.parent
    used = ModelReference(id=encoder.id, sha256=encoder.sha256)
    _check_encoder(library, read_manifest(library), used)
    files = image_files(images, "images")
    with _State(folder / STATE_NAME, encoder) as state:
        readable = _embed_files(files, images, encoder, state, batch_size, on_progress, on_problem)
        embeddings = np.stack(list(readable.values()))
        sound = list(readable)
        statistics = domain_statistics(encoder, embeddings, lambda index: training_image(sound[index]))
        file = folder / statistics_name(name)
        write_statistics(file, statistics)
        change_manifest(library, lambda manifest: _with_statistics(manifest, library, file, statistics, used))
        state.path.unlink(missing_ok=True)
    return statistics


def _check_encoder(library: Path, manifest: LibraryManifest, used: ModelReference) -> None:
    if difference := manifest.encoder.difference(used):
        raise LibraryError(
            f"adapter library {library}: its scene encoder has {difference}, the one given; "
            "one library takes one encoder"
        )


def _with_statistics(
    manifest: LibraryManifest, library: Path, file: Path, statistics: DomainStatistics, used: ModelReference
) -> LibraryManifest:
    _check_encoder(library, manifest, used)  # again: another process may have written in the meantime
    name = file.parent.name
    entry = manifest.adapters.get(name, AdapterEntry())
    digests = {**entry.sha256, file.name: file_sha256(file)}
    entry = dataclasses.replace(entry, sha256=digests, images=0, spread_mean=None, spread_p95=None)
    return dataclasses.replace(
        manifest,
        encoder=manifest.encoder if manifest.encoder.id else used,
        adapters={**manifest.adapters, name: entry.completed(statistics)},
    )


def _embed_files(
    files: Sequence[Path],
    root: Path,
    encoder: SceneEncoder,
    state: _State,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None,
    on_problem: Callable[[DatasetError], object],
) -> dict[Path, NDArray[np.float32]]:
    """Embedding of each file that can be read, shape (D,); those of an interrupted run are not computed again."""
    problems: list[DatasetError] = []

    def sound_images(batch: Sequence[int]) -> Iterator[tuple[str, ImageArray]]:
        for index in batch:
            try:
                yield keys[index], training_image(files[index])
            except DatasetError as error:
                problems.append(error)
                on_problem(error)

    keys = [_file_key(path, root) for path in files]
    done = state.done
    todo = [index for index, key in enumerate(keys) if key not in done]
    batches = [todo[first : first + batch_size] for first in range(0, len(todo), batch_size)]
    if on_progress:
        on_progress(len(files) - len(todo), len(files))
    for number, batch in enumerate(batches, start=1):
        if sound := list(sound_images(batch)):
            state.add([key for key, _ in sound], encoder.embed_batch([image for _, image in sound]))
        if on_progress:
            on_progress(len(files) - len(todo) + sum(map(len, batches[:number])), len(files))
    if not done.keys() & set(keys):
        raise problems[0]
    return {file: done[key] for file, key in zip(files, keys, strict=True) if key in done}


def _file_key(path: Path, root: Path) -> str:
    """Names a file as long as it stays the same: path below the folder, size and time."""
    status = path.stat()
    text = f"{path.relative_to(root).as_posix()}\n{status.st_size}\n{status.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()


class _State:
    """Finished embeddings of a run that may be interrupted: a line that names the encoder, then one record an image.

    Raises:
        LibraryError: Another process indexes the same adapter.
    """

    def __init__(self, path: Path, encoder: SceneEncoder) -> None:
        self.path = path
        self._record = np.dtype([("key", "S64"), ("vector", np.float32, (encoder.dim,)), ("check", np.uint32)])
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise LibraryError(f"{path.parent}: another process is indexing this adapter") from None
        first = f"{encoder.id} {encoder.sha256}\n".encode()
        self._file.seek(0)
        content = self._file.read()
        if not content.startswith(first):  # of another encoder, or new
            self._file.truncate(0)
            self._file.write(first)
            content = first
        whole = (len(content) - len(first)) // self._record.itemsize
        self._file.truncate(len(first) + whole * self._record.itemsize)  # a record that was cut off is lost
        records = np.frombuffer(content, self._record, whole, len(first))
        self.done: dict[str, NDArray[np.float32]] = {
            record["key"].decode(errors="replace"): record["vector"]
            for record in records
            if record["check"] == _check_of(record)
        }

    def add(self, keys: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Append finished embeddings, shape (N, D)."""
        self.done.update(zip(keys, vectors, strict=True))
        records = np.empty(len(keys), self._record)
        records["key"], records["vector"] = [key.encode() for key in keys], vectors
        records["check"] = [_check_of(record) for record in records]
        self._file.write(records.tobytes())
        self._file.flush()

    def __enter__(self) -> _State:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _check_of(record: np.void) -> int:
    return zlib.crc32(record["key"] + record["vector"].tobytes())
