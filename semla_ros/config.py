"""Every setting, once: its default and meaning at the field, its range in the type, its unit in the name.

The checks here, the node's parameters, `config/perception.yaml` and the table in `docs/topics.md` come of these fields.
YAML files, ROS parameters and command-line options only override the defaults; an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from semla_ros.errors import ConfigError, known_names
from semla_ros.results import AdapterMix

T = TypeVar("T")
UNITS = {"s": "s", "ms": "ms", "hz": "Hz", "min": "1/min"}  # end of a setting's name -> its unit
LARGEST = {int: 2**31 - 1, float: 1e9}  # where a range has no upper end: what 32 bit hold, and no infinity
SMALLEST = 1e-9  # where a float has no lower end but 0: its inverse is no infinity either
TOPIC = re.compile(r"(~/|/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")
CAMERA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")  # a relative ROS topic name
LONGEST_CAMERA_NAME, MOST_CAMERAS = 100, 64  # of the 247 characters of a full topic name, others need some too
# 8K in both forms (7680x4320, 8192x4320) and still cameras of full format; it takes half a second and half a gigabyte.
MAX_IMAGE_PIXELS = 50_000_000
# Settings of earlier releases -> what became of them.
GONE = {
    "compat": "defects of the published code are no settings any more; docs/compat.md says how to compare with it",
    "drift_threshold": "the gate decides on the mix now; mix_threshold says what share of it must change",
    "release_threshold": "a change of scene is followed at once and needs no hysteresis; see mix_threshold",
    "min_dwell_s": "fusions are capped by max_fusions_per_min",
    "smoothing_s": "steady_s is the time constant of a steady scene; a change of scene is not smoothed",
}


@dataclass(frozen=True)
class Range:
    """Numbers from `lower` to `upper` (None: no end but `LARGEST`), the ends included unless they are open.

    An open lower end is 0, and stands for `SMALLEST`.
    """

    lower: float
    upper: float | None = None
    is_open_below: bool = False
    is_open_above: bool = False

    def __str__(self) -> str:
        """In words that follow "must be"."""
        if self.upper is not None:
            first, last = "(" if self.is_open_below else "[", ")" if self.is_open_above else "]"
            return f"in {first}{self.lower:g}, {self.upper:g}{last}"
        return "positive" if self.is_open_below else f"at least {self.lower:g}"

    def most(self, number_type: type) -> float:
        """The upper end that counts."""
        return LARGEST[number_type] if self.upper is None else self.upper

    def check(self, name: str, value: float) -> None:
        """Raise ConfigError where a number lies outside, is not finite, or needs more than 32 bit."""
        most = self.most(int if isinstance(value, int) else float)
        least = SMALLEST if self.is_open_below else self.lower
        if not value >= least or not (value < most if self.is_open_above else value <= most):
            limit = f" and at most {most:.0f}" if value > most and self.upper is None else ""
            limit = f" and at least {SMALLEST:g}" if self.lower < value < least else limit
            raise ConfigError(f"'{name}' must be {self}{limit}, got {value!r}")


Positive = Annotated[float, Range(0, is_open_below=True)]
NonNegative = Annotated[float, Range(0)]
Ratio = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(0)]
DistanceName = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class Setting:
    """What is known of a field.

    Attributes:
        text: What it does.
        default: Its default.
        is_live: It can change while the node runs.
        unit: "s", "ms", "Hz", "1/min"; empty where it has none.
        range: Of a number; None for words and switches.
        choices: The words that it may be; empty where it may be more than certain words.
    """

    text: str
    default: Any
    is_live: bool
    unit: str = ""
    range: Range | None = None
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """The values that it may have, in words; empty where its type says all."""
        return f"one of {', '.join(self.choices)}" if self.choices else str(self.range or "")

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError where a value is not among the allowed ones; its type is not looked at, nor is None."""
        if self.choices and value not in self.choices:
            raise ConfigError(f"'{name}' must be {self.allowed}, got {value!r}")
        if self.range is not None and value is not None:
            self.range.check(name, value)


def fixed(default: Any, text: str) -> Any:
    """A field of a config, read when the node starts."""
    return field(default=default, metadata={"text": text, "default": default, "is_live": False})


def live(default: Any, text: str) -> Any:
    """A field of a config that can change while the node runs."""
    return field(default=default, metadata={"text": text, "default": default, "is_live": True})


def _once_per_class(function: Callable[[type[Any]], T]) -> Callable[[type[Any]], T]:
    return functools.cache(function)  # type: ignore[return-value]


@_once_per_class
def settings_of(cls: type[Any]) -> dict[str, Setting]:
    """The fields of a dataclass that are made by `fixed` or `live`, by name."""
    hints, settings = typing.get_type_hints(cls, include_extras=True), {}
    for item in dataclasses.fields(cls):
        if item.metadata:
            hint = hints[item.name]
            ranges = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)]
            choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
            unit = UNITS.get(item.name.rsplit("_", 1)[-1], "")
            settings[item.name] = Setting(**item.metadata, unit=unit, range=next(iter(ranges), None), choices=choices)
    return settings


class Checked:
    """Base of dataclasses whose values must be among those that their fields allow.

    Attributes:
        prefix: Before the names of its fields, in messages and as parameters.
    """

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, setting in settings_of(type(self)).items():
            setting.check(self.prefix + name, getattr(self, name))


def _require(condition: bool, name: str, expected: str, value: object, start: str = "") -> None:
    if not condition:
        raise ConfigError(f"{start}'{name}' must be {expected}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(Checked):
    """How many adapters a scene gets, and how sharply the nearest one wins."""

    top_k: Annotated[int, Range(1)] = live(5, "Adapters fused per scene; all where the library has fewer")
    temperature: Positive = live(0.05, "Softmax temperature over inverse distance; lower favours the nearest adapter")
    distance: DistanceName = live("euclidean", "Distance of scene embedding and centroid")
    fade_out_of_library: bool = live(
        True, "An adapter's weight goes to the base model where the scene is strange to it"
    )
    fade_start: Positive = live(1.3, "How strange where that starts: 1 is where the images of its own domain end")
    fade_end: Positive = live(1.7, "How strange where nothing of the adapter is left; greater than fade_start")
    min_weight: Annotated[float, Range(0, 1, is_open_above=True)] = live(
        0.0, "Weights below this are dropped and the rest renormalised"
    )
    base_is_candidate: bool = live(True, "The base model competes with its own domain's centroid, where that is known")

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"greater than fade_start ({self.fade_start})"
        _require(self.fade_end > self.fade_start, "fade_end", expected, self.fade_end)


@dataclass(frozen=True, kw_only=True)
class DriftConfig(Checked):
    """When the mix changes with the scene."""

    retrieval_rate_hz: Positive = live(2.0, "Scene embeddings and retrievals per second of image time")
    mix_threshold: Annotated[float, Range(0, 1, is_open_above=True)] = live(
        0.3, "Share of the mix that must change for a new one to be fused"
    )
    steady_s: NonNegative = live(
        10.0,
        "Time constant of the mix in a steady scene; a change of two thirds must last 2/5 of it, smaller ones longer",
    )
    max_fusions_per_min: Positive = live(
        12.0, "Cap on fusions per minute of image time, recalls not counted; what changes faster gets a blend"
    )


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Checked):
    """How one image goes through the segmentation model."""

    inference: Literal["whole", "sliding"] = fixed(
        "whole", "whole: one view of the image; sliding: the published 4 windows and a global view"
    )
    working_resolution: str = fixed(
        "",
        "Height x width that images are resized to, such as 480x768, where the model leaves that open",
    )
    early_rejection: Count = fixed(
        0, "Classes that go on at each pixel of the decoder, in eager PyTorch, where the model can; 0 = all"
    )
    device: str = fixed("auto", "auto, cpu, cuda or cuda:<index>")
    engine: Literal["auto", "torch", "onnx", "openvino", "tensorrt"] = fixed("auto", "What runs the forward pass")
    precision: Literal["default", "auto", "fp32", "bf16", "fp16"] = fixed(
        "default", "auto: the fastest that agrees with fp32; default: auto on a GPU, fp32 on a CPU"
    )
    threads: Annotated[int, Range(0, 256)] = fixed(0, "CPU threads of the forward pass; 0 = all physical cores but one")
    compile: bool = fixed(False, "torch.compile the forward pass")
    memory: Literal["double", "single"] = fixed(
        "double",
        "double: a second set of weights to prepare in and, on a CPU, to recall a mix from; single: less memory",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        is_size = not self.working_resolution or re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", self.working_resolution)
        _require(bool(is_size), "working_resolution", "height x width such as 480x768", self.working_resolution)

    @property
    def view(self) -> str:
        """What the model sees of an image, in words: "whole", "whole at 480x768", "whole, early rejection 8"."""
        size = f" at {self.working_resolution}" if self.working_resolution else ""
        return self.inference + size + (f", early rejection {self.early_rejection}" if self.early_rejection else "")

    @property
    def working_size(self) -> tuple[int, int] | None:
        """Height and width of `working_resolution`; None where the model's own counts."""
        if not self.working_resolution:
            return None
        height, width = map(int, self.working_resolution.split("x"))
        return height, width


@dataclass(frozen=True, kw_only=True)
class SemlaConfig(Checked):
    """Everything the pipeline needs to start; what the library or model recommends counts where retrieval is None."""

    model: str = fixed(
        "semla-tiny",
        "Model id (semla-tiny, catseg-b, catseg-l, sed-b, sed-l), path of a checkpoint, or hf://owner/repo",
    )
    model_dir: str = fixed(
        "", "Where models are looked for first; then $SEMLA_MODEL_DIR, the share folder, the Hugging Face cache"
    )
    library: str = fixed("", "Adapter library: folder or hf://owner/repo; empty = the model's own")
    classes: tuple[str, ...] = live((), "Vocabulary: index in the mask -> name; [] = the model's own class list")
    initial_mix: str = fixed(
        "", "Mix to start with, such as 'fog 70%, night 20%', the rest base model; empty = the base model"
    )
    start_frozen: bool = fixed(False, "Start with adaptation frozen, at initial_mix; ~/freeze_adaptation ends that")
    retrieval: RetrievalConfig | None = None
    drift: DriftConfig | None = None  # likewise
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.model.strip()), "model", "the id or the path of a model", self.model)
        try:
            AdapterMix.parse(self.initial_mix)
        except ValueError as error:
            expected = "a mix such as 'fog 70%, night 20%'"
            raise ConfigError(f"'initial_mix' must be {expected}, got {self.initial_mix!r}: {error}") from None
        for name in ("model", "model_dir", "library"):
            value = getattr(self, name)
            try:
                Path(value).expanduser().exists()
            except (OSError, RuntimeError, ValueError) as error:  # too long, nobody's home, a NUL
                raise ConfigError(f"'{name}' must be a path that can be looked at, got {value!r}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig(Checked):
    """How often the node reports on itself, and from when on it worries."""

    prefix: ClassVar[str] = "diagnostics."

    period_s: Annotated[float, Range(0.01)] = fixed(1.0, "Time between two reports on /diagnostics")
    stale_after_s: Positive = live(2.0, "STALE where a camera sent no image for so long")
    max_age_ms: Positive = live(1000.0, "WARN where the median mask leaves so long after, or before, its stamp")
    max_latency_ms: Positive = live(500.0, "WARN where the 95th percentile of a frame's time in the node is above")
    min_rate_hz: NonNegative = live(0.0, "WARN where masks of a camera come slower; 0 = never")
    max_drop_ratio: Ratio = live(0.9, "WARN where a larger part of a camera's images is overtaken by newer ones")
    max_broken_ratio: Ratio = live(0.5, "ERROR where a larger part of a camera's images is broken, WARN below")
    max_lost_ratio: Ratio = live(0.01, "WARN where a larger part of a camera's images is lost on the way")
    hold_s: Positive = live(10.0, "How long a failure stays visible, and the window of the ratios")
    hardware_id: str = live("", "Written into each status; empty = the host's name")


@dataclass(frozen=True, kw_only=True)
class NodeConfig(Checked):
    """What concerns the ROS side only."""

    autostart: bool = fixed(True, "Configure and activate without a lifecycle manager")
    image_transport: Literal["raw", "compressed"] = fixed("raw", "Subscribe to image, or to image/compressed")
    cameras: tuple[str, ...] = fixed(
        (), "Cameras, each with <name>/image, or as <name>=<topic>, and ~/<name>/mask; [] = one camera on image"
    )
    adaptation_scope: Literal["vehicle", "camera"] = fixed(
        "vehicle", "vehicle: all cameras share one adapted model; camera: each has its own, in memory too"
    )
    max_batch: Count = fixed(0, "Cameras answered by one pass of a shared model; 0 = all on a GPU, one on a CPU")
    cv_bridge: Literal["auto", "never", "always"] = fixed("auto", "auto: where it is installed and not known to crash")
    assume_encoding: str = fixed(
        "",
        "What images are read as whose encoding leaves it open, such as 8UC3, 16UC1 or none; empty = what it can mean",
    )
    bits: Annotated[int, Range(0, 16)] = fixed(
        0, "Bits that 16-bit samples use, counted from the lowest: 8 to 16; 0 = found from the images"
    )
    max_image_pixels: Annotated[int, Range(1)] = fixed(MAX_IMAGE_PIXELS, "Larger images are dropped as broken")
    max_rate_hz: NonNegative = fixed(0.0, "Images of a camera that come faster on average are dropped; 0 = none are")
    mask_scale: Annotated[float, Range(0, 1, is_open_below=True)] = fixed(
        1.0, "Width and height of published images relative to the camera's"
    )
    overlay_alpha: Ratio = live(0.5, "Opacity of the class colours in the overlay")
    watch_library_s: NonNegative = fixed(2.0, "Time between looks at the library folder for changes; 0 = never")
    watchdog_s: NonNegative = fixed(
        0.0, "End the process with status 70 where the frame path hangs for so long; 0 = never. For a supervisor"
    )
    release_on_deactivate: bool = fixed(
        False, "Give back the model's memory, a GPU's too, on deactivate; activate then loads it again"
    )
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(not 0 < self.bits < 8, "bits", "0 or 8 to 16", self.bits)
        _require(not 0 < self.watch_library_s < 0.01, "watch_library_s", "0 or at least 0.01", self.watch_library_s)
        _require(len(self.cameras) <= MOST_CAMERAS, "cameras", f"at most {MOST_CAMERAS}", self.cameras)
        expected = (
            f"topic names like 'front' or 'left/wide' of at most {LONGEST_CAMERA_NAME} characters, or with the topic "
            "of the images like 'front=/front/image_raw'"
        )
        for entry in self.cameras:
            name, equals, topic = entry.partition("=")
            is_name = CAMERA_NAME.fullmatch(name) and len(name) <= LONGEST_CAMERA_NAME
            _require(bool(is_name and (TOPIC.fullmatch(topic) or not equals)), "cameras", expected, entry)
        if self.cameras:
            distinct = min(len(self.image_topics), len(set(self.image_topics.values())))
            _require(distinct == len(self.cameras), "cameras", "free of repetitions", self.cameras)

    @property
    def image_topics(self) -> dict[str, str]:
        """Camera -> topic of its raw images; "" -> `image` where there is one camera only."""
        entries = (entry.partition("=") for entry in self.cameras)
        return {name: topic or f"{name}/image" for name, _, topic in entries} or {"": "image"}


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Build a config dataclass from plain values, as read from YAML.

    Args:
        cls: A dataclass whose fields are plain values, words, tuples of strings, pairs of whole numbers, such
            dataclasses or mappings of them.
        values: Keys are field names; nested dataclasses take nested mappings.
        where: Where the values come from, for messages.

    Returns:
        The checked config.

    Raises:
        ConfigError: A key is unknown, a value has the wrong type or is out of range.
    """
    start = f"{where}: " if where else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{start}expected a mapping of settings, got {type(values).__name__}")
    hints, prefix = _hints(cls), getattr(cls, "prefix", "")
    if unknown := sorted(set(values) - set(hints), key=str):
        gone = f"'{unknown[0]}': {GONE[unknown[0]]}" if unknown[0] in GONE else ""
        raise ConfigError(
            start + (gone or f"unknown setting '{unknown[0]}'; {known_names(str(unknown[0]), sorted(hints))}")
        )
    if missing := [item.name for item in dataclasses.fields(cls) if _is_required(item) and item.name not in values]:  # type: ignore[arg-type]
        raise ConfigError(f"{start}'{missing[0]}' is missing")
    arguments = {key: _coerce(hints[key], value, start, prefix + key) for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{start}{error}") from None


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


@_once_per_class
def _hints(cls: type[Any]) -> dict[str, Any]:
    """Types of a dataclass' fields, by name."""
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def _coerce(hint: Any, value: Any, start: str, name: str) -> Any:
    """Check `value` against a field's type; int passes for float, list for tuple, nothing for an empty mapping."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(item for item in options if item is not type(None))
        return None if value is None else _coerce(inner, value, start, name)
    if dataclasses.is_dataclass(hint):
        is_made = isinstance(value, hint)  # type: ignore[arg-type]
        return value if is_made else from_mapping(hint, {} if value is None else value, where=start + name)  # type: ignore[arg-type]
    if origin is Mapping:
        value = {} if value is None else value
        _require(isinstance(value, Mapping), name, "a mapping", value, start)
        return {key: _coerce(options[1], item, f"{start}{name}: ", key) for key, item in value.items()}
    if hint is Any:
        return value
    if origin is Literal:
        _require(value in options, name, f"one of {', '.join(map(str, options))}", value, start)
        return value
    if origin is tuple:
        is_list = isinstance(value, (list, tuple)) and all(type(item) is options[0] for item in value)
        is_list = is_list and (Ellipsis in options or len(value) == len(options))
        _require(is_list, name, "a list of strings" if options[0] is str else "a list of whole numbers", value, start)
        for item in value:
            _require(options[0] is not str or _is_text(item), name, "free of control characters", item, start)
        return () if list(value) == [""] else tuple(value)  # an empty list of strings has no type in ROS
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        _require(isinstance(value, float) or abs(value) < 2**63, name, "a number of 64 bits", value, start)
        return float(value)
    _require(type(value) is hint, name, f"of type {getattr(hint, '__name__', hint)}", value, start)
    _require(hint is not str or _is_text(value), name, "free of control characters", value, start)
    return value


def _is_text(value: str) -> bool:
    """Whether a string can be published, and shown in one line."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)
