"""Read and check the three files of one adapter's folder; nothing is used before it has been checked."""

from __future__ import annotations

import hashlib
import io
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from semla_ros.errors import AdapterError, is_out_of_memory
from semla_ros.file_integrity import FileMark, foreign, mark_of, open_regular
from semla_ros.library.domain_statistics import DomainStatistics, parse_statistics, statistics_name
from semla_ros.library.lora_settings import LoraSettings, parse_lora_settings
from semla_ros.library.manifest import BASE_STATISTICS_NAME, AdapterEntry
from semla_ros.library.safetensors_header import Header, HeaderError, parse_header

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLED_NAME = "adapter_model.bin"
KEY_START = "base_model.model."
FLOAT_TYPES = ("F32", "F16", "BF16", "F64")
MAX_SMALL_FILE_BYTES = 64 * 1024 * 1024  # configuration and statistics; a larger one is not what it claims to be

# A value so far from the rest of its matrix is a damaged one. One flipped bit of an exponent multiplies a value by 2,
# 4, 16, 256 or more, or makes it tiny. In the shipped adapters and those of the reference set the largest value is at
# most 5.9 times the root mean square of its matrix; optimisers such as Adam bound each step of each value, so that no
# trained value is far from all others. Both bounds must be broken: heavy tails have a second large value.
OUTLIER_RMS = 16.0  # times the root mean square of all other values
OUTLIER_SECOND = 4.0  # times the second largest
# Of a file and the one read before, one is damaged where at most so many matrices differ, or one of few: training
# changes all of them, or, where A is kept fixed, every second one.
FEW_MATRICES = 0.1

Signature = Mapping[str, tuple[int, int]]  # module path -> (out features, in features)
LoraLayers = dict[str, "tuple[Tensor, Tensor]"]  # module path -> A (r, in), B (out, r)


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
    """Reads and checks adapter folders for one base model, and remembers what their matrices were.

    Args:
        targets: Layers of the base model that may be adapted; None checks no shape against a model.
    """

    def __init__(self, targets: Signature | None = None) -> None:
        # Adapters of a library mostly have the same layers, and equal texts are parsed to the same objects.
        self._problem = lru_cache(maxsize=16)(partial(layers_problem, targets=targets))
        self._prints: dict[str, tuple[int, ...]] = {}  # adapter -> check sums of its matrices when they were read last

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
        with _blaming(name):
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
            if not os.path.lexists(f"{folder}/{WEIGHTS_NAME}") and os.path.exists(f"{folder}/{PICKLED_NAME}"):
                raise AdapterError(
                    f"adapter '{name}': {PICKLED_NAME} is a pickle, which is never read: convert it to safetensors"
                )
            with _blaming(name, WEIGHTS_NAME), open_regular(f"{folder}/{WEIGHTS_NAME}") as file:
                header = parse_header(file, os.fstat(file.fileno()).st_size)
            self._check(header, settings, name)
            return AdapterFiles(
                library,
                name,
                settings,
                statistics,
                sha256=expected.get(WEIGHTS_NAME, ""),
                num_layers=len(header.tensors) // 2,
                num_bytes=header.file_bytes,
            )

    def read_layers(self, files: AdapterFiles, verified: FileMark | None = None) -> tuple[LoraLayers, FileMark]:
        """Matrices of an adapter, as stored; layers whose scaling differs have that put into A.

        The file is read, not mapped: one that is overwritten meanwhile is then a wrong file, not the end of the
        process. `safe_open` would besides leave some 64 bytes of each tensor behind for good, and each new scene reads
        adapters.

        Args:
            files: The checked folder.
            verified: Mark of the file whose values and digest were checked before; those of any other are checked now.

        Returns:
            Module path -> A (r, in), B (out, r), and the mark of the file that they are from.

        Raises:
            AdapterError: The file has changed since and is not sound, holds values that are not finite or out of all
                proportion to the others, or is, without a digest, the one read before but for a few matrices.
        """
        from safetensors.torch import load

        name, settings, path = files.name, files.settings, f"{files.library}/{files.name}/{WEIGHTS_NAME}"
        with _blaming(name, WEIGHTS_NAME):
            with open_regular(path) as file:
                mark = mark_of(os.fstat(file.fileno()))
                content = file.read()
            if mark != verified:
                _check_digest(name, WEIGHTS_NAME, content, files.sha256)
                self._check(parse_header(io.BytesIO(content), len(content)), settings, name)
            layers = {}
            tensors = load(content)
            for module in layer_paths(tensors):
                a, b = (tensors[key] for key in layer_keys(module))
                if mark != verified:
                    _check_values(name, f"A of layer '{module}'", a)
                    _check_values(name, f"B of layer '{module}'", b)
                ratio = settings.scaling_of(module) / settings.scaling if settings.scaling else 1.0
                layers[module] = (a if ratio == 1.0 else a.float() * ratio, b)
            if mark != verified:
                self._compare(name, tensors, has_digest=bool(files.sha256))
            return layers, mark

    def _compare(self, name: str, tensors: Mapping[str, Tensor], *, has_digest: bool) -> None:
        """Refuse a file that no digest vouches for and that nearly is the one read before."""
        import torch

        prints = tuple(
            zlib.crc32(tensors[key].contiguous().view(torch.uint8).numpy().tobytes()) for key in sorted(tensors)
        )
        earlier = self._prints.get(name, ())
        changed = sum(now != before for now, before in zip(prints, earlier, strict=False))
        is_nearly_it = len(earlier) == len(prints) > 2 and 0 < changed <= max(1, FEW_MATRICES * len(prints))
        if is_nearly_it and not has_digest:
            raise AdapterError(
                f"adapter '{name}': {changed} of {len(prints)} matrices differ from those read before, the others do "
                "not: one of the two files is damaged; copy the folder again, and state it by 'semla library import'"
            )
        self._prints[name] = prints

    def _check(self, header: Header, settings: LoraSettings, name: str) -> None:
        if problem := self._problem(header, settings):
            raise AdapterError(f"adapter '{name}': {problem}")


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


def _read(folder: str, name: str, file_name: str, expected: Mapping[str, str]) -> bytes:
    """Content of a small file, held to the manifest's digest where it states one."""
    with _blaming(name, file_name), open_regular(f"{folder}/{file_name}") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_SMALL_FILE_BYTES:
            raise AdapterError(f"adapter '{name}': {file_name} has {size} bytes, expected a small file")
        data = file.read()
        if what := foreign(data):
            raise HeaderError(what)
    _check_digest(name, file_name, data, expected.get(file_name, ""))
    return data


def _check_digest(name: str, file_name: str, data: bytes, expected: str) -> None:
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise AdapterError(
            f"adapter '{name}': {file_name} is not the file that library.yaml names (SHA-256 differs); "
            "copy the folder again, or run 'semla library import' if the change is meant"
        )


def _check_values(name: str, what: str, matrix: Tensor) -> None:
    """Refuse values that are not finite, and one that dwarfs all others of its matrix."""
    import torch

    sizes = matrix.flatten().float().abs()
    largest, count = float(sizes.amax()) if sizes.numel() else 0.0, sizes.numel()
    if not math.isfinite(largest):
        raise AdapterError(
            f"adapter '{name}': {what} has values that are not finite; train it again or remove its folder"
        )
    squares = float(torch.linalg.vector_norm(sizes, dtype=torch.float64)) ** 2
    if count < 2 or largest <= OUTLIER_RMS * math.sqrt(max(squares - largest**2, 0.0) / (count - 1)):
        return
    second = float(sizes.topk(2).values[1])
    if largest > OUTLIER_SECOND * second:
        raise AdapterError(
            f"adapter '{name}': {what} has one value of {largest:.3g} where the others are at most {second:.3g}: "
            "the file is damaged; copy the folder again"
        )


@contextmanager
def _blaming(name: str, file_name: str = "") -> Iterator[None]:
    """Whatever fails inside belongs to an adapter, except that memory is short."""
    try:
        yield
    except AdapterError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, FileNotFoundError):
            reason = "the file is missing"
        elif isinstance(error, KeyError):
            reason = f"tensor {error} is missing"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif not isinstance(error, ValueError | SafetensorError):
            reason = f"{type(error).__name__}: {reason}"
        where = f"{file_name}: " if file_name else ""
        raise AdapterError(f"adapter '{name}': {where}{reason}; copy the folder again") from None
