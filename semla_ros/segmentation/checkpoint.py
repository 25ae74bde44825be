"""Read model files: published checkpoints, and this package's own.

A file is either understood whole or refused by name: missing, unexpected or misshapen tensors, values that are not
finite, a pickle that holds more than tensors.
"""

from __future__ import annotations

import functools
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from semla_ros.errors import CheckpointError, SemlaError
from semla_ros.file_integrity import file_sha256, foreign, open_regular
from semla_ros.segmentation.protocol import ModelConfig, SegmentationModel
from semla_ros.segmentation.registry import model_class, recognised
from semla_ros.segmentation.text_prompts import Vocabulary

SEGMENTER_FILE = "segmenter.safetensors"  # in a model folder
HEADER_KEY = "semla"  # metadata of our own files: JSON with config, class names, token rows, template, model id
_FIRST_KIND = "catseg"  # of files written before there was another one
_NAMES_SHOWN = 3
# What a header holds, if it does: type of each entry, and of its parts or keys.
_HEADER_TYPES: dict[str, tuple[type[dict[str, Any]] | type[list[Any]] | type[str], type]] = {
    "kind": (str, str),
    "config": (dict, str),
    "class_names": (list, str),
    "token_rows": (list, int),
    "template": (str, str),
    "model_id": (str, str),
    "extra": (dict, str),
}
WRAPPERS = ("model", "state_dict", "model_state_dict")  # keys under which training saves weights
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of parallel, compiled and Lightning modules
_PICKLES = (b"PK\3\4", b"\x80")  # torch's archive, or the stream itself


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model with everything needed to use it.

    Attributes:
        model: On the asked device, fp32, in evaluation mode, no gradients.
        tokenizer: Its vocabulary.
        class_names: The classes it was trained for; empty where the file does not say.
        template: Prompt template or set of templates.
        model_id: "semla-tiny", "catseg-b", "catseg-l", or the file's name.
        path: The file read.
        metadata: What else the header of one of our own files holds.
    """

    model: SegmentationModel
    tokenizer: Vocabulary
    class_names: tuple[str, ...]
    template: str
    model_id: str
    path: Path
    metadata: Mapping[str, Any]

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the file; read when first asked for, it takes seconds for a published checkpoint."""
        return file_sha256(self.path)


class Unfilled(TorchFunctionMode):
    """Modules built under it do not draw the random values that the weights of a file replace.

    Not `torch.device("meta")`: there, torch computes by its reference code in Python, which imports torch._dynamo and
    sympy, for 0.8 s and 100 MB.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer one call of torch."""
        del types
        if getattr(function, "__module__", "") == "torch.nn.init":
            return (kwargs or {})["tensor"]
        return (torch.empty if function is torch.randn else function)(*args, **(kwargs or {}))


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite: so is their sum then, and it takes a fifth of the time of `isfinite`."""
    return math.isfinite(tensor.sum(dtype=torch.float64))


def load_model(
    path: str | Path, device: str | torch.device = "cpu", *, config: ModelConfig | None = None
) -> LoadedModel:
    """Load a segmentation model.

    Args:
        path: A published checkpoint (`.pth`, `.pt`, `.safetensors`), a file of our own, or a folder with one.
        device: Where the weights go.
        config: Its architecture; None = what the file's header says, else what its tensors' shapes do.

    Returns:
        The model and its vocabulary.

    Raises:
        CheckpointError: The file cannot be read, or is not a whole and sound checkpoint of this architecture.
    """
    file = model_file(Path(path))
    tensors, metadata = read_weights(file)
    try:
        header = _header(metadata)
        kind = _kind(header, tensors)
        tensors = kind.own_names(tensors)
        model = _unfilled(kind, header.get("config") if config is None else config.as_dict(), tensors)
        _check_whole(model, tensors)
        _check_finite(tensors)
    except SemlaError as error:
        raise CheckpointError(f"{file}: {error}") from None
    state = {name: item.to(device, torch.float32, copy=True) for name, item in tensors.items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.to(device).eval().requires_grad_(False)
    return LoadedModel(
        model=model,
        tokenizer=Vocabulary(header.get("token_rows"), model.context_length, cuts_long_prompts=model.cuts_long_prompts),
        class_names=tuple(header.get("class_names") or ()),
        template=header.get("template") or model.template,
        model_id=header.get("model_id") or model.published_id or file.stem,
        path=file,
        metadata=header.get("extra") or {},
    )


def model_file(path: Path) -> Path:
    """The file of a model, where its folder is given too; raises CheckpointError."""
    if path.is_dir():
        if (path / SEGMENTER_FILE).is_file():
            return path / SEGMENTER_FILE
        files = sorted(item for item in path.iterdir() if item.suffix in (".pth", ".pt", ".safetensors"))
        if len(files) != 1:
            raise CheckpointError(f"{path}: expected {SEGMENTER_FILE} or a single checkpoint in it, found {len(files)}")
        return files[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such model file")
    return path


def read_weights(path: Path, start: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a checkpoint: what it is, its content says and not its name. Nothing of a pickle is executed.

    Args:
        path: Safetensors, or a pickle of tensors by name, as they are or under one of `WRAPPERS`. A prefix that
            training puts before every name is taken off.
        start: Only tensors whose name starts so are read, if any does.

    Returns:
        Tensors by name; the metadata of a safetensors file.

    Raises:
        CheckpointError: The file is neither, cut off, damaged, holds other objects, or a git-lfs pointer stands for it.
    """
    try:
        with open_regular(path) as file:
            first = file.read(16)
        if reason := foreign(first):
            raise CheckpointError(f"{path}: {reason}")
        if first.startswith(_PICKLES) and first[8:9] != b"{":  # where the header of safetensors begins
            tensors, metadata = _unpickled(path), dict[str, str]()
        else:
            with safe_open(path, framework="pt") as content:
                names = list(content.keys())
                kept = [name for name in names if name.startswith(start)] or names
                tensors, metadata = {name: content.get_tensor(name) for name in kept}, content.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); fetch or copy it again") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: damaged, or holds Python objects other than tensors, which are never executed here; "
            "fetch it again or convert it to safetensors"
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle may lead torch into any
        first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise CheckpointError(f"{path}: cannot be read ({first_line}); fetch or copy it again") from None
    while tensors and (
        prefix := next((item for item in _PREFIXES if all(name.startswith(item) for name in tensors)), "")
    ):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return {name: item for name, item in tensors.items() if name.startswith(start)} or tensors, metadata


def _unpickled(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        # Older files are bare pickles, which cannot be mapped into memory; by this name torch would read safetensors.
        can_map = file.read(2) == b"PK" and path.suffix != ".safetensors"
        file.seek(0)
        source = path if can_map else file
        weights = torch.load(source, map_location="cpu", weights_only=True, mmap=can_map)
    while isinstance(weights, Mapping) and (inner := next((item for item in WRAPPERS if item in weights), "")):
        weights = weights[inner]
    if not isinstance(weights, Mapping) or not weights:
        wrappers = "', '".join(WRAPPERS)
        raise CheckpointError(f"{path}: expected a dictionary with the weights under '{wrappers}'")
    others = [str(name) for name, item in weights.items() if not isinstance(item, Tensor)]
    if others:
        raise CheckpointError(f"{path}: expected tensors, found something else under {_listed(others)}")
    return {str(name): item for name, item in weights.items()}


def _header(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What one of our own files says of itself; empty of another."""
    try:
        header = json.loads(metadata.get(HEADER_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is no JSON ({type(error).__name__}); fetch or copy it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"its header must be a mapping, got {type(header).__name__}; fetch or copy it again")
    for key, (kind, item) in _HEADER_TYPES.items():
        value = header.get(key)
        if value is not None and not (isinstance(value, kind) and all(type(part) is item for part in value)):
            raise CheckpointError(
                f"'{key}' of its header must be a {kind.__name__} of {item.__name__}, got {value!r:.40}"
            )
    return header


def _kind(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> type[SegmentationModel]:
    """What kind of model a file holds: its header says it, or its tensors do."""
    if header.get("config") is None:
        return recognised(tensors)
    return model_class(header.get("kind") or _FIRST_KIND)


def _unfilled(
    kind: type[SegmentationModel], settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]
) -> SegmentationModel:
    """A model without weights, of an architecture or of what a header states as one."""
    try:
        with Unfilled():
            return kind.build(settings, tensors)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"'config' of its header cannot be that of a model: {error}") from None


def _check_whole(model: SegmentationModel, tensors: Mapping[str, Tensor]) -> None:
    """Compare the names and shapes of a file with those of a model.

    Raises:
        CheckpointError: They differ; the message counts and names them.
    """
    expected = {name: tuple(item.shape) for name, item in model.state_dict().items()}
    derived = {name for name, _ in model.named_buffers()}
    missing = sorted(expected.keys() - tensors.keys() - derived)
    unexpected = sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in sorted(expected.items())
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems = [
        f"{len(names)} {kind}: {_listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError("tensors do not fit the architecture; " + "; ".join(problems))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise CheckpointError(f"'{name}' holds values that are not finite; the file is damaged")
