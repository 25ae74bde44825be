"""Read and check the three files of one adapter's folder; nothing is used before it has been checked."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from semla_ros.errors import AdapterError
from semla_ros.library_manifest import AdapterEntry
from semla_ros.lora_settings import LoraSettings, parse_lora_settings
from semla_ros.safetensors_header import Header, HeaderError, read_header
from semla_ros.segmentation.checkpoint import file_sha256

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
CENTROID_KEY = "train_average_embedding"  # the published name
CENTROIDS_KEY = "centroids"  # ours, optional: several centroids of one domain, shape (M, D)
KEY_START = "base_model.model."
MAX_SMALL_FILE_BYTES = 64 * 1024 * 1024  # configuration and statistics; a larger one is not what it claims to be
FLOAT_TYPES = ("F32", "F16", "BF16", "F64")

Signature = Mapping[str, tuple[int, int]]  # module path -> (out features, in features)


def statistics_name(name: str) -> str:
    """File name of a domain's centroid."""
    return f"{name}_statistics.npz"


def file_names(name: str) -> tuple[str, str, str]:
    """The three files of an adapter's folder."""
    return CONFIG_NAME, WEIGHTS_NAME, statistics_name(name)


@dataclass(frozen=True, eq=False)
class DomainStatistics:
    """What `<name>_statistics.npz` tells of a domain; the published ones hold the centroid alone.

    Attributes:
        centroid: Mean scene embedding, shape (D,), float32.
        centroids: Several centroids, shape (M, D), float32; None where there is one only.
        images: Number of images behind the centroid; 0 where not known.
        spread_mean: Mean distance of the domain's images to the centroid; None where not known.
        spread_p95: 95th percentile of that distance.
    """

    centroid: NDArray[np.float32]
    centroids: NDArray[np.float32] | None = None
    images: int = 0
    spread_mean: float | None = None
    spread_p95: float | None = None


@dataclass(frozen=True, eq=False)
class AdapterFiles:
    """What the folder of one adapter holds, checked except for the values of its matrices.

    Attributes:
        folder: The folder; its name is the adapter's.
        settings: Rank, alpha, scaling.
        statistics: Centroid and spread.
        sha256: Digest of the weights file that the library states; empty where it states none.
        num_layers: Layers that it adapts.
        num_bytes: Size of the weights file.
    """

    folder: Path
    settings: LoraSettings
    statistics: DomainStatistics
    sha256: str = ""
    num_layers: int = 0
    num_bytes: int = 0

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.folder.name


def read_adapter(folder: Path, targets: Signature | None, entry: AdapterEntry | None = None) -> AdapterFiles:
    """Read and check an adapter's folder, except for the values of its matrices.

    Args:
        folder: `<library>/<name>`.
        targets: Layers of the base model that may be adapted; None checks no shape.
        entry: What the library's manifest says of it.

    Raises:
        AdapterError: A file is missing, damaged, unsupported, made for another base model, or not the one that the
            manifest names.
    """
    name = folder.name
    inside = folder.resolve()
    for file_name in file_names(name):
        path = folder / file_name
        if path.is_symlink() and inside not in path.resolve().parents:
            raise AdapterError(f"adapter '{name}': {file_name} is a link that leaves its folder; copy the file instead")
    expected = dict(entry.sha256) if entry else {}
    settings = parse_lora_settings(_read_small(folder, CONFIG_NAME, expected), name)
    statistics = _parse_statistics(_read_small(folder, statistics_name(name), expected), name)
    try:
        header = read_header(folder / WEIGHTS_NAME)
        num_bytes = (folder / WEIGHTS_NAME).stat().st_size
    except (HeaderError, OSError) as error:
        raise AdapterError(f"adapter '{name}': {WEIGHTS_NAME}: {_reason(error)}; copy the folder again") from None
    _check_layers(name, header, settings, targets)
    return AdapterFiles(
        folder,
        settings,
        statistics,
        sha256=expected.get(WEIGHTS_NAME, ""),
        num_layers=len(header.tensors) // 2,
        num_bytes=num_bytes,
    )


def read_layers(files: AdapterFiles, *, is_verified: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrices of an adapter, memory-mapped, as stored; layers whose scaling differs have that put into A.

    Args:
        files: The checked folder.
        is_verified: Values and digest were checked before.

    Returns:
        Module path -> A (r, in), B (out, r).

    Raises:
        AdapterError: The file has changed since, or holds values that are not finite.
    """
    name, path, settings = files.name, files.folder / WEIGHTS_NAME, files.settings
    if not is_verified and files.sha256 and file_sha256(path) != files.sha256:
        raise AdapterError(_wrong_digest(name, WEIGHTS_NAME))
    layers = {}
    try:
        with safe_open(str(path), framework="pt") as tensors:
            for module in layer_paths(tensors.keys()):
                a, b = (tensors.get_tensor(key) for key in _keys(module))
                if not is_verified:
                    _check_finite(name, module, a, b)
                ratio = settings.scaling_of(module) / settings.scaling if settings.scaling else 1.0
                layers[module] = (a if ratio == 1.0 else a.float() * ratio, b)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"adapter '{name}': {WEIGHTS_NAME}: {_reason(error)}; copy the folder again") from None
    return layers


def layer_paths(keys: Iterable[str]) -> list[str]:
    """Module paths in the keys of a published weights file."""
    end = ".lora_A.weight"
    return sorted(key[len(KEY_START) : -len(end)] for key in keys if key.startswith(KEY_START) and key.endswith(end))


def _keys(module: str) -> tuple[str, str]:
    return f"{KEY_START}{module}.lora_A.weight", f"{KEY_START}{module}.lora_B.weight"


def _read_small(folder: Path, file_name: str, expected: Mapping[str, str]) -> bytes:
    """Content of a small file, held to the manifest's digest."""
    path, name = folder / file_name, folder.name
    try:
        size = path.stat().st_size
        if size > MAX_SMALL_FILE_BYTES:
            raise AdapterError(f"adapter '{name}': {file_name} has {size} bytes, expected a small file")
        data = path.read_bytes()
    except OSError as error:
        raise AdapterError(f"adapter '{name}': {file_name}: {_reason(error)}; copy the folder again") from None
    digest = expected.get(file_name)
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise AdapterError(_wrong_digest(name, file_name))
    return data


def _wrong_digest(name: str, file_name: str) -> str:
    return (
        f"adapter '{name}': {file_name} is not the file that library.yaml names (SHA-256 differs); "
        "copy the folder again, or run 'semla library import' if the change is meant"
    )


def _parse_statistics(data: bytes, name: str) -> DomainStatistics:
    where = f"adapter '{name}': {statistics_name(name)}"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(item.file_size for item in archive.infolist()) > MAX_SMALL_FILE_BYTES:
                raise AdapterError(f"{where} unpacks to more than {MAX_SMALL_FILE_BYTES} bytes; it is no centroid")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            if CENTROID_KEY not in arrays:
                raise AdapterError(f"{where} lacks '{CENTROID_KEY}', it holds {', '.join(arrays) or 'nothing'}")
            centroid = np.asarray(arrays[CENTROID_KEY])
            centroids = np.asarray(arrays[CENTROIDS_KEY]) if CENTROIDS_KEY in arrays else None
            images, *spread = (_scalar(arrays, key) for key in ("images", "spread_mean", "spread_p95"))
    except AdapterError:
        raise
    except Exception as error:  # numpy raises whatever the damage leads to
        hint = "pickled content is refused" if "pickle" in str(error).lower() else "truncated or no .npz file"
        raise AdapterError(f"{where} cannot be read: {hint} ({type(error).__name__}); make it again") from None
    for array, shape in ((centroid, "(1, D)"), (centroids, "(M, D)")):
        if array is None:
            continue
        if array.dtype.kind != "f" or array.ndim not in (1, 2) or 0 in array.shape:
            raise AdapterError(
                f"{where}: expected floating-point numbers of shape {shape}, got {array.dtype} {array.shape}"
            )
        if not np.isfinite(array.astype(np.float32)).all():
            raise AdapterError(f"{where} has values that are not finite; make it again with 'semla library index'")
    if centroid.size != centroid.shape[-1]:
        raise AdapterError(f"{where}: '{CENTROID_KEY}' has shape {centroid.shape}, expected one row (1, D)")
    if centroids is not None and (centroids.ndim != 2 or centroids.shape[1] != centroid.size):
        raise AdapterError(f"{where}: '{CENTROIDS_KEY}' has shape {centroids.shape}, expected (M, {centroid.size})")
    return DomainStatistics(
        centroid.reshape(-1).astype(np.float32),
        None if centroids is None else centroids.astype(np.float32),
        images=int(images or 0),
        spread_mean=spread[0],
        spread_p95=spread[1],
    )


def _scalar(arrays: Mapping[str, NDArray[Any]], key: str) -> float | None:
    """An optional number >= 0 of a statistics file."""
    if key not in arrays:
        return None
    value = float(arrays[key])
    if not 0 <= value < float("inf"):
        raise ValueError(f"{key} is {value}")
    return value


def _check_layers(name: str, header: Header, settings: LoraSettings, targets: Signature | None) -> None:
    """Names, types and shapes of the matrices against the configuration and the base model."""
    paths = layer_paths(header.tensors)
    wanted = {key for path in paths for key in _keys(path)}
    if strange := sorted(set(header.tensors) - wanted):
        raise AdapterError(
            f"adapter '{name}': tensor '{strange[0]}' is not one of a layer's pair "
            f"'{KEY_START}<module>.lora_A.weight' and '...lora_B.weight'; only plain LoRA can be fused"
        )
    if not paths:
        raise AdapterError(f"adapter '{name}': {WEIGHTS_NAME} holds no layer; train it again")
    for path in paths:
        pair = [header.tensors.get(key) for key in _keys(path)]
        if pair[1] is None or pair[0] is None:
            raise AdapterError(f"adapter '{name}': layer '{path}' lacks its lora_B.weight; copy the folder again")
        if wrong := [entry.dtype for entry in pair if entry is not None and entry.dtype not in FLOAT_TYPES]:
            raise AdapterError(
                f"adapter '{name}': layer '{path}' is of type {wrong[0]}, expected {', '.join(FLOAT_TYPES)}"
            )
        if targets is not None and path not in targets:
            raise AdapterError(
                f"adapter '{name}': module '{path}' is not one that the base model adapts; "
                "it was trained for another base model: retrain it or remove its folder"
            )
        target = targets[path] if targets is not None else None
        _check_shapes(name, path, pair[0].shape, pair[1].shape, settings.rank_of(path), target)


def _check_shapes(
    name: str, path: str, shape_a: tuple[int, ...], shape_b: tuple[int, ...], rank: int, target: tuple[int, int] | None
) -> None:
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != rank or shape_b[1] != rank:
        raise AdapterError(
            f"adapter '{name}': layer '{path}' has A {shape_a} and B {shape_b}, expected ({rank}, in) and "
            f"(out, {rank}) by the rank in {CONFIG_NAME}; copy the folder again"
        )
    if target is not None and (shape_b[0], shape_a[1]) != tuple(target):
        raise AdapterError(
            f"adapter '{name}': layer '{path}' has A {shape_a} and B {shape_b}, expected ({rank}, {target[1]}) and "
            f"({target[0]}, {rank}); it was trained for another base model: retrain it or remove its folder"
        )


def _check_finite(name: str, module: str, a: Tensor, b: Tensor) -> None:
    for label, matrix in (("A", a), ("B", b)):
        if not bool(torch.isfinite(matrix).all()):
            raise AdapterError(
                f"adapter '{name}': {label} of layer '{module}' has values that are not finite; "
                "train it again or remove its folder"
            )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
