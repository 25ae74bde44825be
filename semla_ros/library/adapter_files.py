"""Read and check the three files of one adapter's folder; nothing is used before it has been checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from semla_ros.errors import AdapterError
from semla_ros.file_integrity import file_sha256
from semla_ros.library.domain_statistics import CENTROID_KEY, DomainStatistics, parse_statistics, statistics_name
from semla_ros.library.lora_layers import CONFIG_NAME, WEIGHTS_NAME, Signature, layer_keys, layer_paths, layers_problem
from semla_ros.library.lora_settings import LoraSettings, parse_lora_settings
from semla_ros.library.manifest import BASE_STATISTICS_NAME, AdapterEntry
from semla_ros.library.safetensors_header import Header, HeaderError, read_header

if TYPE_CHECKING:
    from torch import Tensor

MAX_SMALL_FILE_BYTES = 64 * 1024 * 1024  # configuration and statistics; a larger one is not what it claims to be
MAX_LAYOUTS = 16

__all__ = ["CENTROID_KEY", "CONFIG_NAME", "WEIGHTS_NAME", "AdapterFiles", "AdapterReader", "Signature"]


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

    Adapters of a library mostly have the same layers, so that each layout is checked once.

    Args:
        targets: Layers of the base model that may be adapted; None checks no shape against a model.
    """

    def __init__(self, targets: Signature | None = None) -> None:
        self._targets = targets
        self._checked: dict[tuple[Header, LoraSettings], str | None] = {}

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
        expected = dict(entry.sha256) if entry else {}
        settings = parse_lora_settings(_read_small(folder, name, CONFIG_NAME, expected), name)
        statistics = parse_statistics(_read_small(folder, name, statistics_name(name), expected), name)
        try:
            header = read_header(f"{folder}/{WEIGHTS_NAME}")
        except (HeaderError, OSError) as error:
            raise AdapterError(f"adapter '{name}': {WEIGHTS_NAME}: {_reason(error)}; copy the folder again") from None
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

    def _problem(self, header: Header, settings: LoraSettings) -> str | None:
        key = (header, settings)  # by identity: equal texts are parsed to the same objects
        if key not in self._checked:
            if len(self._checked) >= MAX_LAYOUTS:
                self._checked.clear()
            self._checked[key] = layers_problem(header, settings, self._targets)
        return self._checked[key]


def read_layers(files: AdapterFiles, *, is_verified: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrices of an adapter, as stored; layers whose scaling differs have that put into A.

    Args:
        files: The checked folder.
        is_verified: Values and digest were checked before.

    Returns:
        Module path -> A (r, in), B (out, r).

    Raises:
        AdapterError: The file has changed since, or holds values that are not finite.
    """
    from semla_ros.library.safetensors_reader import read_tensors

    name, path, settings = files.name, files.folder / WEIGHTS_NAME, files.settings
    if not is_verified and files.sha256 and file_sha256(path) != files.sha256:
        raise AdapterError(_wrong_digest(name, WEIGHTS_NAME))
    layers = {}
    try:
        tensors = read_tensors(path)
        for module in layer_paths(tensors):
            a, b = (tensors[key] for key in layer_keys(module))
            if not is_verified:
                _check_finite(name, module, a, b)
            ratio = settings.scaling_of(module) / settings.scaling if settings.scaling else 1.0
            layers[module] = (a if ratio == 1.0 else a.float() * ratio, b)
    except (OSError, ValueError, KeyError) as error:
        raise AdapterError(f"adapter '{name}': {WEIGHTS_NAME}: {_reason(error)}; copy the folder again") from None
    return layers


def read_base_statistics(library: Path, sha256: str) -> DomainStatistics:
    """Statistics of the scenes that the base model was trained on, `<library>/base_statistics.npz`.

    Raises:
        AdapterError: The file is missing, damaged, or not the one that the manifest names.
    """
    data = _read_small(str(library), "base model", BASE_STATISTICS_NAME, {BASE_STATISTICS_NAME: sha256})
    return parse_statistics(data, "base model")


def _read_small(folder: str, name: str, file_name: str, expected: Mapping[str, str]) -> bytes:
    """Content of a small file, held to the manifest's digest."""
    try:
        with open(f"{folder}/{file_name}", "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_SMALL_FILE_BYTES:
                raise AdapterError(f"adapter '{name}': {file_name} has {size} bytes, expected a small file")
            data = file.read()
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


def _check_finite(name: str, module: str, a: Tensor, b: Tensor) -> None:
    for label, matrix in (("A", a), ("B", b)):
        if not bool(matrix.isfinite().all()):
            raise AdapterError(
                f"adapter '{name}': {label} of layer '{module}' has values that are not finite; "
                "train it again or remove its folder"
            )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, KeyError):
        return f"tensor {error} is missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
