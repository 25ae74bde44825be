"""Centroid and spread of a domain from a folder of its images, resumable, the same in any order."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.errors import AdapterError, LibraryError
from semla_ros.file_integrity import file_sha256, write_atomically
from semla_ros.lab.training.samples import image_files, read_image
from semla_ros.library.domain_statistics import (
    DomainStatistics,
    statistics_name,
    statistics_of,
    write_statistics,
)
from semla_ros.library.manifest import (
    MANIFEST_NAME,
    AdapterEntry,
    ModelReference,
    read_manifest,
    write_manifest,
)

logger = logging.getLogger(__name__)

SAVE_EVERY_BATCHES = 20  # embeddings at most lost by an interruption, in batches


def index_adapter(
    folder: Path,
    images: Path,
    encoder: SceneEncoder,
    *,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> DomainStatistics:
    """Embed a domain's images and write `<name>_statistics.npz` into the adapter's folder.

    Where the library has a `library.yaml`, spread, number of images and digest are put into it. An interrupted run is
    gone on with: finished embeddings lie in `.index.npz` of the folder until the centroid is written.

    Args:
        folder: The adapter's folder, `<library>/<name>`.
        images: Searched recursively.
        encoder: The library's scene encoder.
        batch_size: Images embedded at once.
        on_progress: Called with the number of images done, and of all.

    Returns:
        Mean and spread; they do not depend on the order of the files.

    Raises:
        AdapterError: There is no such folder.
        LibraryError: The library was made with another scene encoder.
        DatasetError: There is no image, or one cannot be read; finished embeddings are kept.
    """
    name = folder.name
    if not folder.is_dir():
        raise AdapterError(f"adapter '{name}': there is no folder {folder}; train or add the adapter first")
    library = folder.parent
    manifest = read_manifest(library)
    used = ModelReference(id=encoder.id, sha256=encoder.sha256)
    if difference := manifest.encoder.difference(used):
        raise LibraryError(
            f"adapter library {library}: its scene encoder has {difference}, the one given; "
            "one library takes one encoder"
        )
    files = image_files(images, "images")
    embeddings = _embed_files(files, images, encoder, folder / ".index.npz", batch_size, on_progress)
    statistics = statistics_of(embeddings)
    file = folder / statistics_name(name)
    write_statistics(file, statistics)
    if (library / MANIFEST_NAME).is_file():
        entry = manifest.adapters.get(name, AdapterEntry())
        digests = {**entry.sha256, file.name: file_sha256(file)}
        entry = dataclasses.replace(entry, sha256=digests, images=0, spread_mean=None, spread_p95=None)
        adapters = {**manifest.adapters, name: entry.completed(statistics)}
        reference = manifest.encoder if manifest.encoder.id else used
        write_manifest(library, dataclasses.replace(manifest, encoder=reference, adapters=adapters))
    (folder / ".index.npz").unlink(missing_ok=True)
    return statistics


def _embed_files(
    files: Sequence[Path],
    root: Path,
    encoder: SceneEncoder,
    state_file: Path,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> NDArray[np.float32]:
    """Embeddings of all files, shape (N, D); those of an interrupted run are not computed again."""
    keys = [_file_key(path, root) for path in files]
    done = _read_state(state_file, encoder)
    todo = [index for index, key in enumerate(keys) if key not in done]
    batches = [todo[first : first + batch_size] for first in range(0, len(todo), batch_size)]
    if on_progress:
        on_progress(len(files) - len(todo), len(files))
    try:
        for number, batch in enumerate(batches, start=1):
            vectors = encoder.embed_batch([read_image(files[index]) for index in batch])
            done.update(zip([keys[index] for index in batch], vectors, strict=True))
            if number % SAVE_EVERY_BATCHES == 0:
                _write_state(state_file, encoder, done)
            if on_progress:
                on_progress(len(files) - len(todo) + sum(map(len, batches[:number])), len(files))
    except BaseException:
        _write_state(state_file, encoder, done)
        raise
    return np.stack([done[key] for key in keys])


def _file_key(path: Path, root: Path) -> str:
    """Names a file as long as it stays the same: path below the folder, size and time."""
    status = path.stat()
    text = f"{path.relative_to(root).as_posix()}\n{status.st_size}\n{status.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()


def _read_state(path: Path, encoder: SceneEncoder) -> dict[str, NDArray[np.float32]]:
    """Finished embeddings of an interrupted run with the same encoder; none where there was no such run."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as state:
            if str(state["encoder"]) != _encoder_key(encoder) or state["vectors"].shape[1:] != (encoder.dim,):
                return {}
            return dict(zip(state["keys"].tolist(), state["vectors"].astype(np.float32), strict=True))
    except Exception as error:  # numpy raises whatever the damage leads to
        logger.warning("%s is damaged (%s): starting over", path, error)
        return {}


def _write_state(path: Path, encoder: SceneEncoder, done: dict[str, NDArray[np.float32]]) -> None:
    if not done:
        return
    buffer = io.BytesIO()
    np.savez(buffer, encoder=_encoder_key(encoder), keys=np.array(list(done)), vectors=np.stack(list(done.values())))
    write_atomically(path, buffer.getvalue())


def _encoder_key(encoder: SceneEncoder) -> str:
    return f"{encoder.id} {encoder.sha256}"
