"""Read and check the three files of one adapter's folder; nothing is used before it has been checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from semla_ros.errors import AdapterError
from semla_ros.library.domain_statistics import DomainStatistics, parse_statistics, statistics_name
from semla_ros.library.lora_settings import LoraSettings, parse_lora_settings
from semla_ros.library.manifest import BASE_STATISTICS_NAME, AdapterEntry
from semla_ros.library.safetensors_header import Header, HeaderError, read_header

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
KEY_START = "base_model.model."
FLOAT_TYPES = ("F32", "F16", "BF16", "F64")
MAX_SMALL_FILE_BYTES = 64 * 1024 * 1024  # configuration and statistics; a larger one is not what it claims to be

Signature = Mapping[str, tuple[int, int]]  # module path -> (out features, in features)


def file_names(name: str) -> tuple[str, str, str]:
    """The three files of an adapter's folder."""
    return CONFIG_NAME, WEIGHTS_NAME, statistics_name(name)


@dataclass(frozen=True, eq=False, slots=True)
class AdapterFiles:
    """What the folder of one adapter holds, checked except for the values of its matrices.

    Attributes:
        library: The folder that holds the adapter's one.
        name: The adapter's name, and its folder's.
        settings: Rank, alpha, scaling.
        statistics: Centroid and spread.
        sha256: Digest of the weights file that the library states; empty where it states none.
        num_layers: Layers that it adapts.
        num_bytes: Size of the weights file.
    """

    library: Path
    name: str
    settings: LoraSettings
    statistics: DomainStatistics
    sha256: str = ""
    num_layers: int = 0
    num_bytes: int = 0

    @property
    def folder(self) -> Path:
        """`<library>/<name>`; thousands of paths would be memory for nothing."""
        return self.library / self.name


class AdapterReader:
    """Reads and checks adapter folders for one base model.

    Args:
        targets: Layers of the base model that may be adapted; None checks no shape against a model.
    """

    def __init__(self, targets: Signature | None = None) -> None:
        # Adapters of a library mostly have the same layers, and equal texts are parsed to the same objects.
        self._problem = lru_cache(maxsize=16)(partial(layers_problem, targets=targets))

    def read(self, library: Path, name: str, entry: AdapterEntry | None = None) -> AdapterFiles:
        """Read and check an adapter's folder, except for the values of its matrices.

        Args:
            library: The folder that holds the adapter's one.
            name: The adapter's name, and its folder's.
            entry: What the library's manifest says of it.

        Raises:
            AdapterError: A file is missing, damaged, unsupported, made for another base model, or not the one that the
                manifest names.
        """
        folder = f"{library}/{name}"  # no Path: it would intern the name of each of thousands of adapters for good
        for file_name in file_names(name):
            path = f"{folder}/{file_name}"
            if os.path.islink(path) and Path(folder).resolve() not in Path(path).resolve().parents:
                raise AdapterError(
                    f"adapter '{name}': {file_name} is a link that leaves its folder; copy the file instead"
                )
        expected = entry.sha256 if entry else {}
        settings = parse_lora_settings(_read(folder, name, CONFIG_NAME, expected), name)
        statistics = parse_statistics(_read(folder, name, statistics_name(name), expected), name)
        try:
            header = read_header(f"{folder}/{WEIGHTS_NAME}")
        except (HeaderError, OSError) as error:
            raise _unreadable(name, WEIGHTS_NAME, error) from None
        if problem := self._problem(header, settings):
            raise AdapterError(f"adapter '{name}': {problem}")
        return AdapterFiles(
            library,
            name,
            settings,
            statistics,
            sha256=expected.get(WEIGHTS_NAME, ""),
            num_layers=len(header.tensors) // 2,
            num_bytes=header.file_bytes,
        )


def read_layers(files: AdapterFiles, *, is_verified: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrices of an adapter, as stored; layers whose scaling differs have that put into A.

    The file is read, not mapped: one that is overwritten meanwhile is then a wrong file, not the end of the process.
    `safe_open` would besides leave some 64 bytes of each tensor behind for good, and each new scene reads adapters.

    Args:
        files: The checked folder.
        is_verified: Values and digest were checked before.

    Returns:
        Module path -> A (r, in), B (out, r).

    Raises:
        AdapterError: The file has changed since, or holds values that are not finite.
    """
    from safetensors.torch import load

    name, settings = files.name, files.settings
    expected = {} if is_verified else {WEIGHTS_NAME: files.sha256}
    content = _read(str(files.folder), name, WEIGHTS_NAME, expected, most_bytes=None)
    layers = {}
    try:
        tensors = load(content)
        for module in layer_paths(tensors):
            a, b = (tensors[key] for key in layer_keys(module))
            if not is_verified:
                _check_finite(name, module, a, b)
            ratio = settings.scaling_of(module) / settings.scaling if settings.scaling else 1.0
            layers[module] = (a if ratio == 1.0 else a.float() * ratio, b)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _unreadable(name, WEIGHTS_NAME, error) from None
    return layers


def read_base_statistics(library: Path, sha256: str) -> DomainStatistics:
    """Statistics of the scenes that the base model was trained on, `<library>/base_statistics.npz`.

    Raises:
        AdapterError: The file is missing, damaged, or not the one that the manifest names.
    """
    data = _read(str(library), "base model", BASE_STATISTICS_NAME, {BASE_STATISTICS_NAME: sha256})
    return parse_statistics(data, "base model")


def layer_paths(keys: Iterable[str]) -> list[str]:
    """Module paths in the keys of a published weights file."""
    end = ".lora_A.weight"
    return sorted(key[len(KEY_START) : -len(end)] for key in keys if key.startswith(KEY_START) and key.endswith(end))


def layer_keys(module: str) -> tuple[str, str]:
    """Keys of A and B of a layer."""
    return f"{KEY_START}{module}.lora_A.weight", f"{KEY_START}{module}.lora_B.weight"


def layers_problem(header: Header, settings: LoraSettings, targets: Signature | None) -> str | None:
    """What is wrong with the names, types or shapes in a weights file; None where nothing is.

    Args:
        header: Of the weights file.
        settings: Ranks that the configuration states.
        targets: Layers of the base model that may be adapted; None checks no shape against a model.
    """
    paths = layer_paths(header.tensors)
    wanted = {key for path in paths for key in layer_keys(path)}
    if strange := sorted(set(header.tensors) - wanted):
        return (
            f"tensor '{strange[0]}' is not one of a layer's pair "
            f"'{KEY_START}<module>.lora_A.weight' and '...lora_B.weight'; only plain LoRA can be fused"
        )
    if not paths:
        return f"{WEIGHTS_NAME} holds no layer; train it again"
    for path in paths:
        a, b = (header.tensors.get(key) for key in layer_keys(path))
        if a is None or b is None:
            return f"layer '{path}' lacks its lora_B.weight; copy the folder again"
        if wrong := [entry.dtype for entry in (a, b) if entry.dtype not in FLOAT_TYPES]:
            return f"layer '{path}' is of type {wrong[0]}, expected {', '.join(FLOAT_TYPES)}"
        if targets is not None and path not in targets:
            return (
                f"module '{path}' is not one that the base model adapts; "
                "it was trained for another base model: retrain it or remove its folder"
            )
        rank = settings.rank_of(path)
        given = f"layer '{path}' has A {a.shape} and B {b.shape}, expected"
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
            return f"{given} ({rank}, in) and (out, {rank}) by the rank in {CONFIG_NAME}; copy the folder again"
        if targets is not None and (b.shape[0], a.shape[1]) != tuple(targets[path]):
            out_features, in_features = targets[path]
            return (
                f"{given} ({rank}, {in_features}) and ({out_features}, {rank}); "
                "it was trained for another base model: retrain it or remove its folder"
            )
    return None


def _read(
    folder: str,
    name: str,
    file_name: str,
    expected: Mapping[str, str],
    *,
    most_bytes: int | None = MAX_SMALL_FILE_BYTES,
) -> bytes:
    """Content of a file, held to the manifest's digest where it states one."""
    try:
        with open(f"{folder}/{file_name}", "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if most_bytes is not None and size > most_bytes:
                raise AdapterError(f"adapter '{name}': {file_name} has {size} bytes, expected a small file")
            data = file.read()
    except OSError as error:
        raise _unreadable(name, file_name, error) from None
    digest = expected.get(file_name)
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise AdapterError(
            f"adapter '{name}': {file_name} is not the file that library.yaml names (SHA-256 differs); "
            "copy the folder again, or run 'semla library import' if the change is meant"
        )
    return data


def _check_finite(name: str, module: str, a: Tensor, b: Tensor) -> None:
    for label, matrix in (("A", a), ("B", b)):
        if not bool(matrix.isfinite().all()):
            raise AdapterError(
                f"adapter '{name}': {label} of layer '{module}' has values that are not finite; "
                "train it again or remove its folder"
            )


def _unreadable(name: str, file_name: str, error: Exception) -> AdapterError:
    reason = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        reason = "the file is missing"
    elif isinstance(error, KeyError):
        reason = f"tensor {error} is missing"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return AdapterError(f"adapter '{name}': {file_name}: {reason}; copy the folder again")
