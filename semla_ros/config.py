"""Every setting and its default, once.

YAML files, ROS parameters and command-line options only override these; an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from semla_ros.errors import ConfigError

DistanceName = Literal["euclidean", "cosine"]

# Settings of earlier releases -> what became of them.
GONE = {"compat": "defects of the published code are no settings any more; docs/compat.md says how to compare with it"}


def _require(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"'{name}' must be {expected}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """How many adapters a scene gets, and how sharply the nearest one wins."""

    top_k: int = 5  # adapters fused per scene, >= 1; all of them where the library has fewer
    temperature: float = 0.05  # softmax temperature over inverse distance, > 0
    distance: DistanceName = "euclidean"
    fade_out_of_library: bool = True  # fade towards the base model where no centroid is near
    fade_start: float = 1.0  # nearest distance / library spread where the fade starts, > 0
    fade_end: float = 2.0  # ... and where nothing but the base model is left, > fade_start
    min_weight: float = 0.0  # weights below this are dropped and the rest renormalised, 0..1
    base_is_candidate: bool = True  # the base model competes with the centroid of its own domain, where that is known

    def __post_init__(self) -> None:
        _require(self.top_k >= 1, "top_k", "at least 1", self.top_k)
        _require(self.temperature > 0, "temperature", "positive", self.temperature)
        _require(self.distance in typing.get_args(DistanceName), "distance", "'euclidean' or 'cosine'", self.distance)
        _require(self.fade_start > 0, "fade_start", "positive", self.fade_start)
        _require(
            self.fade_end > self.fade_start, "fade_end", f"greater than fade_start ({self.fade_start})", self.fade_end
        )
        _require(0 <= self.min_weight < 1, "min_weight", "in [0, 1)", self.min_weight)


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """When the scene counts as changed."""

    retrieval_rate_hz: float = 2.0  # scene embeddings per second of image time, > 0
    drift_threshold: float = 0.15  # relative move of the smoothed embedding that triggers a new mix, > 0
    release_threshold: float = 0.05  # hysteresis: while a change is under way, go on until the move falls below this
    min_dwell_s: float = 0.5  # shortest life of a mix in seconds of image time, >= 0
    smoothing_s: float = 0.7  # time constant of the exponential smoothing of the embedding in seconds, 0 = none

    def __post_init__(self) -> None:
        _require(self.retrieval_rate_hz > 0, "retrieval_rate_hz", "positive", self.retrieval_rate_hz)
        _require(self.drift_threshold > 0, "drift_threshold", "positive", self.drift_threshold)
        _require(
            0 <= self.release_threshold <= self.drift_threshold,
            "release_threshold",
            f"between 0 and drift_threshold ({self.drift_threshold})",
            self.release_threshold,
        )
        _require(self.min_dwell_s >= 0, "min_dwell_s", "at least 0", self.min_dwell_s)
        _require(self.smoothing_s >= 0, "smoothing_s", "at least 0", self.smoothing_s)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How one image goes through the segmentation model."""

    inference: Literal["whole", "sliding"] = "whole"  # one view, or the published 4 windows + global view
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1"
    engine: Literal["auto", "torch", "onnx", "openvino", "tensorrt"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"  # "auto": fastest that passes parity with fp32
    threads: int = 0  # CPU threads of the forward pass; 0 = all physical cores but one
    compile: bool = False  # torch.compile the forward pass
    memory: Literal["double", "single"] = "double"  # double: new weights are prepared beside the ones in use

    def __post_init__(self) -> None:
        for name, allowed in (
            ("inference", ("whole", "sliding")),
            ("engine", ("auto", "torch", "onnx", "openvino", "tensorrt")),
            ("precision", ("auto", "fp32", "bf16", "fp16")),
            ("memory", ("double", "single")),
        ):
            _require(getattr(self, name) in allowed, name, f"one of {', '.join(allowed)}", getattr(self, name))
        _require(self.threads >= 0, "threads", "at least 0", self.threads)


@dataclass(frozen=True, kw_only=True)
class SemlaConfig:
    """Everything the pipeline needs to start."""

    model: str = "semla-tiny"  # id (semla-tiny, catseg-b, catseg-l) or path of a checkpoint
    model_dir: str = ""  # where model files are looked for first; then $SEMLA_MODEL_DIR, then the share folder
    library: str = ""  # adapter library folder; empty = the one shipped with the model
    classes: tuple[str, ...] = ()  # vocabulary; empty = the model's own class list
    retrieval: RetrievalConfig | None = None  # None = what the library or model recommends, else the defaults
    drift: DriftConfig | None = None  # likewise
    inference: InferenceConfig = field(default_factory=InferenceConfig)


T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Build a config dataclass from plain values, as read from YAML.

    Args:
        cls: One of the dataclasses of this module.
        values: Keys are field names; nested dataclasses take nested mappings.
        where: Where the values come from, for messages.

    Returns:
        The checked config.

    Raises:
        ConfigError: A key is unknown, a value has the wrong type or is out of range.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix}expected a mapping of settings, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    known = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        if unknown[0] in GONE:
            raise ConfigError(f"{prefix}'{unknown[0]}': {GONE[unknown[0]]}")
        raise ConfigError(f"{prefix}unknown setting '{unknown[0]}'; known: {', '.join(sorted(known))}")
    arguments = {key: _coerce(hints[key], value, f"{prefix}'{key}'") for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a field's type; int passes for float, list for tuple."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(item for item in typing.get_args(hint) if item is not type(None))
        return _coerce(hint, value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where} must be one of {', '.join(map(str, typing.get_args(hint)))}, got {value!r}")
        return value
    if origin is tuple:
        if (
            isinstance(value, str)
            or not isinstance(value, (list, tuple))
            or not all(isinstance(item, str) for item in value)
        ):
            raise ConfigError(f"{where} must be a list of strings, got {value!r}")
        return tuple(value)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_mapping(hint, value, where=where.strip("'"))  # type: ignore[arg-type]
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value


def load_yaml(cls: type[T], path: Path) -> T:
    """Read a config dataclass from a YAML file; see `from_mapping`."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"settings file {path}: {error}") from None
    return from_mapping(cls, values or {}, where=str(path))
