"""`<name>_statistics.npz`: the centroid of a domain's scene embeddings, how far its images lie from it, examples."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from semla_ros.config import LARGEST
from semla_ros.errors import AdapterError

CENTROID_KEY = "train_average_embedding"  # the published name
MAX_UNPACKED_BYTES = 64 * 1024 * 1024
NUMBERS = ("images", "spread_mean", "spread_p95", "reach", "step")
SCENES = ("known", "strange")


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
        known: Embeddings of some of the domain's images, in units of `step`, shape (M, D), int8; None where there are
            none.
        strange: Those of images that are no scenes of any domain, likewise: what `known` is held against.
        step: See above.
        reach: Distance within which 95 % of the domain's images have another one.
    """

    centroid: NDArray[np.float32]
    images: int = 0
    spread_mean: float | None = None
    spread_p95: float | None = None
    known: NDArray[np.int8] | None = None
    strange: NDArray[np.int8] | None = None
    step: float = 0.0
    reach: float = 0.0

    def scenes(self, kind: Literal["known", "strange"]) -> NDArray[np.float32]:
        """Example embeddings, shape (M, D); none where the file has none."""
        rows = self.known if kind == "known" else self.strange
        return np.zeros((0, self.centroid.size), np.float32) if rows is None else rows * np.float32(self.step)


def nearest_gaps(rows: NDArray[np.float32], known: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Distance of each row (N, D) to the nearest known scene (M, D), or to the nearest other row; shape (N,)."""
    others = rows if known is None else known
    squares = (rows**2).sum(1)[:, None] + (others**2).sum(1)[None] - 2 * rows @ others.T
    if known is None:
        np.fill_diagonal(squares, np.inf)
    nearest: NDArray[np.float32] = np.sqrt(np.maximum(squares.min(1), 0))
    return nearest


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
            images, spread_mean, spread_p95, reach, step = (_scalar(arrays, key, where) for key in NUMBERS)
            known, strange = (_scenes(arrays, key, centroid.size) for key in SCENES)
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
    return DomainStatistics(
        centroid, int(images or 0), spread_mean, spread_p95, known, strange, step=step or 0.0, reach=reach or 0.0
    )


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


def _scenes(arrays: Mapping[str, NDArray[Any]], key: str, dim: int) -> NDArray[np.int8] | None:
    """Optional example embeddings of a statistics file."""
    if key not in arrays:
        return None
    values = np.asarray(arrays[key])
    if values.dtype != np.int8 or values.ndim != 2 or values.shape[1] != dim:
        raise ValueError(f"{key} is {values.dtype} {values.shape}")
    return values
