"""The node's parameters: one table made from the config dataclasses, checked as a whole before anything changes.

`python -m semla_ros.serving.parameters` writes the table as `config/perception.yaml`.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from semla_ros.config import GONE, DriftConfig, InferenceConfig, RetrievalConfig, SemlaConfig, from_mapping
from semla_ros.errors import ConfigError

QOS_PREFIX = "qos_overrides."
# Declared by rclpy itself, so not by the table below.
BUILT_IN = ("use_sim_time", "start_type_description_service")


def _require(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"'{name}' must be {expected}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig:
    """How often the node reports on itself, and from when on it worries."""

    period_s: float = 1.0  # time between two reports, > 0
    stale_after_s: float = 2.0  # a camera without an image for so long is stale, > 0
    max_age_ms: float = 1000.0  # warn where the median mask leaves the node so long after, or before, its stamp, > 0
    max_latency_ms: float = 500.0  # warn where the 95th percentile of a frame's time in the node is above, > 0
    min_rate_hz: float = 0.0  # warn where a camera's masks come slower, >= 0; 0 = never
    max_drop_ratio: float = 0.9  # warn where a larger part of a camera's images is overtaken by newer ones, 0..1
    max_broken_ratio: float = 0.5  # error where a larger part of a camera's images is broken (else warn), 0..1
    hold_s: float = 10.0  # how long a failure stays visible, and the window of the ratios above, > 0
    hardware_id: str = ""  # written into each status; empty = the host's name

    def __post_init__(self) -> None:
        for name in ("period_s", "stale_after_s", "max_age_ms", "max_latency_ms", "hold_s"):
            _require(getattr(self, name) > 0, f"diagnostics.{name}", "positive", getattr(self, name))
        _require(self.min_rate_hz >= 0, "diagnostics.min_rate_hz", "at least 0", self.min_rate_hz)
        for name in ("max_drop_ratio", "max_broken_ratio"):
            _require(0 <= getattr(self, name) <= 1, f"diagnostics.{name}", "in [0, 1]", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """What concerns the ROS side only."""

    autostart: bool = True  # configure and activate without a lifecycle manager
    image_transport: Literal["raw", "compressed"] = "raw"  # take `image`, or `image/compressed`
    cameras: tuple[str, ...] = ()  # camera names, each with `<name>/image`; none = one camera on `image`
    adaptation_scope: Literal["vehicle", "camera"] = "vehicle"  # one model for all cameras, or one (in memory too) each
    max_batch: int = 0  # cameras answered by one forward pass; 0 = all on a GPU, one on a CPU
    cv_bridge: Literal["auto", "never", "always"] = "auto"  # auto: where it is installed and not known to crash
    mask_scale: float = 1.0  # size of the published images relative to the camera's, > 0, at most 1
    overlay_alpha: float = 0.5  # opacity of the class colours in the overlay, 0..1
    watch_library_s: float = 2.0  # time between looks at the library folder for changes, 0 = never
    release_on_deactivate: bool = False  # give back the model's memory, a GPU's too, until the next activation
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("image_transport", ("raw", "compressed")),
            ("adaptation_scope", ("vehicle", "camera")),
            ("cv_bridge", ("auto", "never", "always")),
        ):
            _require(getattr(self, name) in allowed, name, f"one of {', '.join(allowed)}", getattr(self, name))
        _require(self.max_batch >= 0, "max_batch", "at least 0", self.max_batch)
        _require(0 < self.mask_scale <= 1, "mask_scale", "in (0, 1]", self.mask_scale)
        _require(0 <= self.overlay_alpha <= 1, "overlay_alpha", "in [0, 1]", self.overlay_alpha)
        _require(self.watch_library_s >= 0, "watch_library_s", "at least 0", self.watch_library_s)
        _require(len(set(self.cameras)) == len(self.cameras), "cameras", "free of repetitions", self.cameras)
        for name in self.cameras:
            _require(name.replace("/", "").replace("_", "").isalnum(), "cameras", "made of topic name parts", name)


@dataclass(frozen=True)
class Spec:
    """One parameter.

    Attributes:
        name: Name in ROS.
        description: What it does, with unit and range.
        default: Its default, in ROS types.
        is_live: It can be set while the node runs.
        is_recommended: Where it is not given, the library's or model's recommendation counts before the default.
    """

    name: str
    description: str
    default: Any
    is_live: bool = False
    is_recommended: bool = False


_DESCRIPTIONS = {
    "model": "Model id (semla-tiny, catseg-b, catseg-l) or path of a checkpoint",
    "model_dir": "Where model files are looked for first; then $SEMLA_MODEL_DIR, then the package's share folder",
    "library": "Adapter library folder; empty = the one shipped with the model",
    "classes": "Vocabulary: index in the mask -> name; [''] = the model's own class list",
    "top_k": "Adapters fused per scene, at least 1",
    "temperature": "Softmax temperature over inverse distance, > 0; lower favours the nearest adapter",
    "distance": "Distance of scene embedding and centroid: euclidean or cosine",
    "fade_out_of_library": "Fade towards the base model where no centroid is near",
    "fade_start": "Nearest distance relative to the library's spread at which the fade starts, > 0",
    "fade_end": "Nearest distance relative to the library's spread at which only the base model is left, > fade_start",
    "min_weight": "Weights below this are dropped and the rest renormalised, 0..1",
    "base_is_candidate": "The base model competes with the centroid of its own domain, where the library has one",
    "retrieval_rate_hz": "Scene embeddings per second of image time, Hz, > 0",
    "drift_threshold": "Relative move of the smoothed scene embedding that triggers a new mix, > 0",
    "release_threshold": "Hysteresis: a change under way goes on until the move is below this, 0..drift_threshold",
    "min_dwell_s": "Shortest life of a mix in seconds of image time, s, >= 0",
    "smoothing_s": "Time constant of the smoothing of the scene embedding, s, 0 = none",
    "inference": "whole: one view of the image; sliding: the published 4 windows and a global view",
    "device": "auto, cpu, cuda or cuda:<index>",
    "engine": "auto, torch, onnx, openvino or tensorrt",
    "precision": "auto, fp32, bf16 or fp16; auto: the fastest that agrees with fp32",
    "threads": "CPU threads of the forward pass, 0 = all physical cores but one",
    "compile": "torch.compile the forward pass",
    "memory": "double: new weights are prepared beside those in use; single: less memory, longer swap",
    "autostart": "Configure and activate without a lifecycle manager",
    "image_transport": "raw: subscribe to image; compressed: to image/compressed",
    "cameras": "Camera names, each with <name>/image and ~/<name>/mask; [''] = one camera on image",
    "adaptation_scope": "vehicle: all cameras share one adapted model; camera: each has its own, in memory too",
    "max_batch": "Cameras that share a model and are answered by one forward pass; 0 = all on a GPU, one on a CPU",
    "cv_bridge": "auto: use it where it is installed and not known to crash; never; always",
    "mask_scale": "Width and height of published images relative to the camera's, 0..1",
    "overlay_alpha": "Opacity of the class colours in the overlay, 0..1",
    "watch_library_s": "Time between looks at the library folder for new and removed adapters, s, 0 = never",
    "release_on_deactivate": "Give back the model's memory, a GPU's too, on deactivate; activate then loads it again",
    "diagnostics.period_s": "Time between two reports on /diagnostics, s",
    "diagnostics.stale_after_s": "STALE where a camera sent no image for so long, s",
    "diagnostics.max_age_ms": "WARN where the median mask is published so long after its stamp, or before it, ms",
    "diagnostics.max_latency_ms": "WARN where the 95th percentile of a frame's time in the node is above, ms",
    "diagnostics.min_rate_hz": "WARN where masks of a camera come slower, Hz, 0 = never",
    "diagnostics.max_drop_ratio": "WARN where a larger part of a camera's images is overtaken by newer ones, 0..1",
    "diagnostics.max_broken_ratio": "ERROR where a larger part of a camera's images is broken, WARN below, 0..1",
    "diagnostics.hold_s": "How long a failure stays visible, and the window of the ratios, s",
    "diagnostics.hardware_id": "Written into each status; empty = the host's name",
}
_LIVE_NODE = {"overlay_alpha"} | {
    f"diagnostics.{item.name}" for item in dataclasses.fields(DiagnosticsConfig) if item.name not in ("period_s",)
}
_GROUPS: tuple[tuple[str, type[Any]], ...] = (
    ("", SemlaConfig), ("", NodeConfig), ("", RetrievalConfig), ("", DriftConfig), ("", InferenceConfig),
    ("diagnostics.", DiagnosticsConfig),
)  # fmt: skip
_NESTED = ("retrieval", "drift", "inference", "diagnostics")


def _is_nested(cls: type[Any], name: str) -> bool:
    """Whether a field is a group of its own; `inference` is also the name of a field inside its group."""
    return cls in (SemlaConfig, NodeConfig) and name in _NESTED


def _to_ros(value: Any) -> Any:
    """Config value to ROS value. An empty string array has no type on the wire, so `['']` stands for it."""
    return (list(value) or [""]) if isinstance(value, tuple) else value


def _from_ros(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(item for item in value if item != "")
    return value


def _make_specs() -> dict[str, Spec]:
    specs = {}
    for prefix, cls in _GROUPS:
        config = cls()
        is_recommended = cls in (RetrievalConfig, DriftConfig)
        for item in dataclasses.fields(cls):
            name = prefix + item.name
            if _is_nested(cls, item.name):
                continue
            specs[name] = Spec(
                name=name,
                description=_DESCRIPTIONS[name],
                default=_to_ros(getattr(config, item.name)),
                is_live=is_recommended or name == "classes" or name in _LIVE_NODE,
                is_recommended=is_recommended,
            )
    return specs


SPECS: Mapping[str, Spec] = _make_specs()


def unknown_parameters(names: Iterable[str]) -> list[str]:
    """One sentence per name that is no parameter of the node, with the nearest one that is."""
    sentences = []
    for name in sorted(names):
        if name in SPECS or name in BUILT_IN or name.startswith(QOS_PREFIX):
            continue
        if (group := name.split(".")[0]) in GONE:
            sentences.append(f"parameter '{name}': {GONE[group]}")
            continue
        near = difflib.get_close_matches(name, SPECS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(SPECS)}"
        sentences.append(f"unknown parameter '{name}'; {hint}")
    return sentences


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All parameters, checked.

    Attributes:
        values: Every parameter of the table in ROS types.
        explicit: Names that were given rather than taken from the defaults.
        node: The ROS side.
        pipeline: The rest; `retrieval` and `drift` are None where none of their fields was given.
        retrieval: Retrieval settings with defaults filled in.
        drift: Drift settings with defaults filled in.
    """

    values: Mapping[str, Any]
    explicit: frozenset[str]
    node: NodeConfig
    pipeline: SemlaConfig
    retrieval: RetrievalConfig
    drift: DriftConfig

    @classmethod
    def make(cls, given: Mapping[str, Any], explicit: Iterable[str] | None = None) -> Settings:
        """Check given values (ROS types; None = not set) together with the defaults of the rest.

        Args:
            given: Name -> value.
            explicit: Which of them count as given by the user; None = all.

        Raises:
            ConfigError: A name is unknown, a value is of the wrong type or out of range, or values do not fit together.
        """
        unknown = unknown_parameters(given)
        if unknown:
            raise ConfigError(unknown[0])
        given = {name: value for name, value in given.items() if name in SPECS}
        values = {
            name: spec.default if given.get(name) is None else _to_ros(_from_ros(given[name]))
            for name, spec in SPECS.items()
        }
        is_given = frozenset(name for name, value in given.items() if value is not None)
        explicit = is_given if explicit is None else frozenset(explicit) & is_given

        def group(cls: type[Any], prefix: str = "", **nested: Any) -> Any:
            fields = [item.name for item in dataclasses.fields(cls) if item.name not in nested]
            plain = {name: _from_ros(values[prefix + name]) for name in fields if prefix + name in SPECS}
            return from_mapping(cls, {**plain, **nested}, where=prefix.rstrip("."))

        retrieval, drift = group(RetrievalConfig), group(DriftConfig)
        node = group(NodeConfig, diagnostics=group(DiagnosticsConfig, "diagnostics."))
        pipeline = group(
            SemlaConfig,
            retrieval=retrieval if explicit & _names(RetrievalConfig) else None,
            drift=drift if explicit & _names(DriftConfig) else None,
            inference=group(InferenceConfig),
        )
        for name, spec in SPECS.items():  # 1 for a float parameter is meant as 1.0
            if isinstance(spec.default, float):
                values[name] = float(values[name])
        return cls(values=values, explicit=explicit, node=node, pipeline=pipeline, retrieval=retrieval, drift=drift)

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """These settings with some values changed; raises `ConfigError` as `make` does."""
        return Settings.make({**self.values, **changes}, self.explicit | set(changes))

    def with_recommended(self, retrieval: RetrievalConfig, drift: DriftConfig, classes: Iterable[str]) -> Settings:
        """These settings with the values that a loaded pipeline uses where none was given."""
        recommended = {**dataclasses.asdict(retrieval), **dataclasses.asdict(drift), "classes": list(classes)}
        given = {name: self.values[name] for name in self.explicit}
        return Settings.make({**self.values, **recommended, **given}, self.explicit)


def _names(cls: type[Any]) -> frozenset[str]:
    return frozenset(item.name for item in dataclasses.fields(cls))


def explicit_only(settings: Settings, cls: type[Any]) -> dict[str, Any]:
    """The given ones among the fields of `RetrievalConfig` or `DriftConfig`, for `dataclasses.replace`."""
    return {name: settings.values[name] for name in _names(cls) & settings.explicit}


def as_yaml() -> str:
    """The table as a parameter file: every parameter with description and default."""
    lines = [
        "# Every parameter of the perception node with its default, by `python -m semla_ros.serving.parameters`.",
        "# [live] ones can be set while the node runs; the others are read when it starts.",
        "# Names behind a '# ' are not set: what the adapter library or the model recommends counts, and the value",
        "# shown only where neither recommends one.",
        "/**:",
        "  ros__parameters:",
    ]
    top = [spec for spec in SPECS.values() if "." not in spec.name]
    groups = {name.split(".")[0] for name in SPECS if "." in name}
    lines += [line for spec in top for line in _yaml_lines(spec, spec.name, "    ")]
    for group in sorted(groups, reverse=True):
        lines.append(f"    {group}:")
        for name, spec in SPECS.items():
            if name.startswith(f"{group}."):
                lines += _yaml_lines(spec, name.split(".")[1], "      ")
    return "\n".join(lines) + "\n"


def _yaml_lines(spec: Spec, key: str, indent: str) -> list[str]:
    default = spec.default
    if isinstance(default, bool):
        text = str(default).lower()
    elif isinstance(default, (list, str)):
        text = "['']" if isinstance(default, list) else f'"{default}"'
    else:
        text = repr(default)
    comment = "[live] " if spec.is_live else ""
    return [
        f"{indent}# {comment}{spec.description}",
        f"{indent}{'# ' if spec.is_recommended else ''}{key}: {text}",
    ]


def literal_choices(name: str) -> tuple[str, ...]:
    """What a parameter of a fixed set of words may be; empty for the others."""
    for prefix, cls in _GROUPS:
        key = name.removeprefix(prefix)
        if key in _names(cls) and prefix + key == name and not _is_nested(cls, key):
            hint = typing.get_type_hints(cls)[key]
            return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    return ()


if __name__ == "__main__":
    print(as_yaml(), end="")
