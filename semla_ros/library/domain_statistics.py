"""`<name>_statistics.npz`: the centroid of a domain's scene embeddings, and how far its images lie from it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semla_ros.config import LARGEST
from semla_ros.errors import AdapterError
from semla_ros.file_integrity import write_atomically

CENTROID_KEY = "train_average_embedding"  # the published name
MAX_UNPACKED_BYTES = 64 * 1024 * 1024


def statistics_name(name: str) -> str:
    """File name of a domain's centroid."""
    return f"{name}_statistics.npz"


@dataclass(frozen=True, eq=False, slots=True)
class DomainStatistics:
    """What `<name>_statistics.npz` tells of a domain; the published ones hold the centroid alone.

    Attributes:
        centroid: Mean scene embedding, shape (D,), float32.
        images: Number of images behind the centroid; 0 where not known.
        spread_mean: Mean distance of the domain's images to the centroid; None where not known.
        spread_p95: 95th percentile of that distance.
    """

    centroid: NDArray[np.float32]
    images: int = 0
    spread_mean: float | None = None
    spread_p95: float | None = None


def statistics_of(embeddings: NDArray[np.float32]) -> DomainStatistics:
    """Mean and spread of a domain's scene embeddings, shape (N, D).

    They are the same to the last bit for any order of the rows; sums run in float64.
    """
    embeddings = embeddings[np.lexsort(embeddings.T[::-1])]
    mean = embeddings.astype(np.float64).mean(0)
    distances = np.linalg.norm(embeddings - mean, axis=1)
    return DomainStatistics(
        mean.astype(np.float32),
        images=len(embeddings),
        spread_mean=float(distances.mean()),
        spread_p95=float(np.percentile(distances, 95)),
    )


def write_statistics(file: Path, statistics: DomainStatistics) -> None:
    """Write `<name>_statistics.npz`: the published key, shape (1, D), and what the published code passes over."""
    arrays: dict[str, Any] = {CENTROID_KEY: statistics.centroid[None].astype(np.float32)}
    for key in ("images", "spread_mean", "spread_p95"):
        if value := getattr(statistics, key):
            arrays[key] = np.asarray(value)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(file, buffer.getvalue())


def parse_statistics(data: bytes, name: str) -> DomainStatistics:
    """Check the content of `<name>_statistics.npz`.

    Args:
        data: Content of the file.
        name: The adapter's name, for messages.

    Raises:
        AdapterError: It is damaged, holds pickled content, or no centroid of finite numbers.
    """
    where = f"adapter '{name}': {statistics_name(name)}"
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            if sum(item.file_size for item in arrays.zip.infolist()) > MAX_UNPACKED_BYTES:
                raise AdapterError(f"{where} unpacks to more than {MAX_UNPACKED_BYTES} bytes; it is no centroid")
            if CENTROID_KEY not in arrays:
                raise AdapterError(f"{where} lacks '{CENTROID_KEY}', it holds {', '.join(arrays) or 'nothing'}")
            centroid = np.asarray(arrays[CENTROID_KEY])
            images, spread_mean, spread_p95 = (
                _scalar(arrays, key, where) for key in ("images", "spread_mean", "spread_p95")
            )
    except AdapterError:
        raise
    except Exception as error:  # numpy raises whatever the damage leads to
        hint = "pickled content is refused" if "pickle" in str(error).lower() else "truncated or no .npz file"
        raise AdapterError(f"{where} cannot be read: {hint} ({type(error).__name__}); make it again") from None
    is_row = centroid.ndim in (1, 2) and centroid.size == centroid.shape[-1] > 0
    if centroid.dtype.kind != "f" or not is_row:
        raise AdapterError(
            f"{where}: expected one row of floating-point numbers, shape (1, D), got {centroid.dtype} {centroid.shape}"
        )
    centroid = centroid.reshape(-1).astype(np.float32)
    if not np.isfinite(centroid).all():
        raise AdapterError(f"{where} has values that are not finite; make it again with 'semla library index'")
    return DomainStatistics(centroid, int(images or 0), spread_mean, spread_p95)


def _scalar(arrays: Mapping[str, NDArray[Any]], key: str, where: str) -> float | None:
    """An optional number >= 0 of a statistics file."""
    if key not in arrays:
        return None
    array = np.asarray(arrays[key])
    value = float(array.item()) if array.size == 1 and array.dtype.kind in "fiu" else np.nan
    if not 0 <= value <= LARGEST[float]:
        shown = np.array2string(array, threshold=4)
        raise AdapterError(
            f"{where}: '{key}' must be a number from 0 to {LARGEST[float]:g}, got {shown}; make it again"
        )
    return value
