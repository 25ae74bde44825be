"""The small typed results that the steps hand to each other, checked once when made; the one spelling of a mix."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import ImageError, counted

FloatArray = NDArray[np.float32] | NDArray[np.float64]
ImageArray = NDArray[np.uint8]
MaskArray = NDArray[np.uint8] | NDArray[np.uint16]

BASE_MODEL = "base model"  # name of the part that a mix leaves to the unadapted weights; no adapter may have it
UNLABELLED = 255  # index of "no class" in an 8-bit mask; 65535 in a 16-bit one


def check_image(image: ImageArray, start: str = "") -> None:
    """Refuse what is not a uint8 RGB image.

    Raises:
        ImageError: Says what came, after `start`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"{start}expected a uint8 RGB image of shape (H, W, 3) with H and W at least 1, "
            f"got {image.dtype} of shape {tuple(image.shape)}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One camera image on its way through the pipeline.

    Attributes:
        image: RGB, shape (H, W, 3), uint8, H and W >= 1. Not copied; the maker must not change it afterwards.
        stamp_ns: Acquisition time in nanoseconds, in the clock of the source.
        camera: Name of the camera, empty for the only one.
        frame_id: tf frame of the source message.
    """

    image: ImageArray
    stamp_ns: int
    camera: str = ""
    frame_id: str = ""

    def __post_init__(self) -> None:
        check_image(self.image, f"frame of camera '{self.camera}' at {self.stamp_ns} ns: ")


class Level(IntEnum):
    """How bad a status is; values of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True, kw_only=True)
class Status:
    """One entry of a diagnostic message, without ROS.

    Attributes:
        name: What it is about.
        level: How bad it is.
        message: One sentence per worry, each with what to do; a short state where there is none.
        values: Key (with unit) -> value, in this order.
        hardware_id: What device it is about.
    """

    name: str
    level: Level = Level.OK
    message: str
    values: Mapping[str, str] = field(default_factory=dict)
    hardware_id: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterMix:
    """Which adapters a model is fused from, and why.

    `weights` and `base_weight` sum to 1; `base_weight` is the part that the mix fades towards the base model where the
    scene lies outside the library.

    Attributes:
        names: Adapter names, heaviest first, length K; empty for the base model.
        weights: Fusion weights, shape (K,), float64, >= 0.
        distances: Scene embedding to each adapter's centroid, shape (K,), float64; NaN where not known.
        base_weight: Weight left to the unadapted base model, 0..1.
        is_out_of_library: True where even the nearest centroid is farther than the library's own spread.
    """

    names: tuple[str, ...] = ()
    weights: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    distances: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    base_weight: float = 1.0
    is_out_of_library: bool = False

    def __post_init__(self) -> None:
        count = len(self.names)
        if len({*self.names, BASE_MODEL}) <= count:
            raise ValueError(f"each adapter of a mix must have a name of its own, not '{BASE_MODEL}', got {self.names}")
        if self.weights.shape != (count,) or self.distances.shape != (count,):
            raise ValueError(
                f"mix of {counted(count, 'adapter')} has weights {self.weights.shape}, distances {self.distances.shape}"
            )
        total = float(self.weights.sum()) + self.base_weight
        if not np.isfinite(total) or abs(total - 1.0) > 1e-6 or min((self.base_weight, *self.weights)) < 0:
            raise ValueError(
                f"weights of a mix and base_weight must be >= 0 and sum to 1, got {self.weights} + {self.base_weight}"
            )

    @classmethod
    def parse(cls, text: str) -> AdapterMix:
        """Read a mix in the words of `str`; one name alone is the whole mix, and what is left goes to the base model.

        Args:
            text: Such as "fog 70%, night 20%"; empty for the base model.

        Raises:
            ValueError: It is no mix, or one of more than 100%.
        """
        parts = [part.strip() for part in text.split(",") if part.strip()]
        pairs = [part[:-1].rstrip().rpartition(" ") if part.endswith("%") else (part, " ", "100") for part in parts]
        shares = {name.rstrip(): float(percent) / 100 for name, _, percent in pairs}
        if len(shares) < len(parts) or "" in shares:
            raise ValueError(f"each share of a mix has an adapter's name of its own before it, got '{text}'")
        rest = 1.0 - sum(share for name, share in shares.items() if name != BASE_MODEL)
        base_weight = shares.pop(BASE_MODEL, max(rest, 0.0))
        total = base_weight + sum(shares.values())
        if not abs(total - 1.0) < 0.005 or min((base_weight, *shares.values())) < 0:  # `str` rounds
            raise ValueError(f"shares of a mix are 0% to 100% and sum to 100%, got '{text}'")
        names = tuple(sorted(shares, key=lambda name: -shares[name]))
        weights = np.array([shares[name] for name in names]) / total
        return cls(names=names, weights=weights, distances=np.full(len(names), np.nan), base_weight=base_weight / total)

    def only(self, *names: str) -> AdapterMix:
        """The same mix with these adapters of it; the base model gets the weight of the others."""
        kept = np.array([name in names for name in self.names], bool)
        return dataclasses.replace(
            self,
            names=tuple(name for name in self.names if name in names),
            weights=self.weights[kept],
            distances=self.distances[kept],
            base_weight=self.base_weight + float(self.weights[~kept].sum()),
        )

    def difference(self, other: AdapterMix) -> float:
        """Share of the mix that differs from another's, 0..1: their total variation distance, base model included."""
        mine, others = self.shares(), other.shares()
        names = mine.keys() | others.keys()
        return min(1.0, sum(abs(mine.get(name, 0.0) - others.get(name, 0.0)) for name in sorted(names)) / 2)

    @cached_property
    def id(self) -> str:
        """8 hex digits that names and weights alone decide on: the same mix has the same id in every process."""
        shares = sorted((name, float(weight)) for name, weight in self.shares().items())
        return hashlib.sha256(repr(shares).encode()).hexdigest()[:8]

    def as_dict(self) -> dict[str, float]:
        """Weights by adapter name, heaviest first."""
        return {name: float(weight) for name, weight in zip(self.names, self.weights, strict=True)}

    def shares(self) -> dict[str, float]:
        """Weights by adapter name, heaviest first, then that of `BASE_MODEL`; sums to 1."""
        return {**self.as_dict(), BASE_MODEL: self.base_weight}

    @property
    def heaviest(self) -> str:
        """Name of the largest share: an adapter's, or `BASE_MODEL`."""
        shares = self.shares()
        return max(shares, key=shares.__getitem__)

    def __str__(self) -> str:
        """In words, without what weighs less than half a per cent: "fog 70.0%, base model 30.0%"."""
        return ", ".join(f"{name} {weight:.1%}" for name, weight in self.shares().items() if weight >= 0.005)

    def as_json(self) -> dict[str, Any]:
        """As plain values; numbers have six digits, a distance that is not known is None."""
        return {
            "adapters": [
                {"name": name, "weight": round(weight, 6), "distance": None if np.isnan(far) else round(far, 6)}
                for name, weight, far in zip(self.names, self.weights.tolist(), self.distances.tolist(), strict=True)
            ],
            "base_weight": round(float(self.base_weight), 6),
            "out_of_library": bool(self.is_out_of_library),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """What one generation of the fused model is made of. Generation 0 is the base model.

    Attributes:
        number: Grows by one with every swap, never repeats in a node.
        mix: The adapters in it.
        class_names: The vocabulary, index in the mask -> name.
        vocabulary_version: Grows with every change of the class list, likewise.
        scene_stamp_ns: Stamp of the frame whose scene embedding chose the mix; None for the base model.
        reason: Why it was made: "base", "drift", "recall" (back to the mix before, which still stood by), "vocabulary",
            "library", "parameters", "reset", "failure" (the base model, because the mix before could not serve).
    """

    number: int
    mix: AdapterMix
    class_names: tuple[str, ...]
    vocabulary_version: int
    scene_stamp_ns: int | None = None
    reason: str = "base"

    def after(self, earlier: Generation) -> Generation:
        """The same, numbered as what follows an earlier one, with labels of its own."""
        version = earlier.vocabulary_version + 1
        return dataclasses.replace(self, number=earlier.number + 1, vocabulary_version=version)

    def statuses(self) -> list[Status]:
        """The mix for `~/adapter_weights`: one status per adapter, heaviest first, and one for the base model's part.

        Numbers are written so that `from_statuses` reads the same ones.
        """
        mix, scene_ns = self.mix, self.scene_stamp_ns
        common = {
            "generation": str(self.number),
            "mix_id": mix.id,
            "reason": self.reason,
            "scene_stamp_ns": "" if scene_ns is None else str(scene_ns),
        }

        def status(name: str, weight: float, distance: float, level: Level = Level.OK, more: str = "") -> Status:
            known = "" if np.isnan(distance) else repr(float(distance))
            values = {"weight": repr(float(weight)), "distance": known, **common}
            return Status(name=name, level=level, message=f"weight {weight:.3f}{more}", values=values)

        adapters = [status(*item) for item in zip(mix.names, mix.weights, mix.distances, strict=True)]
        outside = (Level.WARN, "; the scene lies outside the library") if mix.is_out_of_library else ()
        return [*adapters, status(BASE_MODEL, mix.base_weight, float("nan"), *outside)]

    @classmethod
    def from_statuses(
        cls, statuses: Sequence[Status], class_names: tuple[str, ...] = (), vocabulary_version: int = 0
    ) -> Generation:
        """Read what `statuses` wrote.

        Args:
            statuses: At least that of the base model.
            class_names: The vocabulary, which the statuses do not tell.
            vocabulary_version: Its version.

        Raises:
            ValueError: They are no mix.
        """
        base = [status for status in statuses if status.name == BASE_MODEL]
        adapters = [status for status in statuses if status.name != BASE_MODEL]
        if len(base) != 1:
            names = ", ".join(status.name for status in statuses)
            raise ValueError(f"a mix has one status named '{BASE_MODEL}', got {names or 'none at all'}")
        values = base[0].values
        try:
            scene = values["scene_stamp_ns"]
            return cls(
                number=int(values["generation"]),
                mix=AdapterMix(
                    names=tuple(status.name for status in adapters),
                    weights=np.array([float(status.values["weight"]) for status in adapters]),
                    distances=np.array([float(status.values["distance"] or "nan") for status in adapters]),
                    base_weight=float(values["weight"]),
                    is_out_of_library=base[0].level == Level.WARN,
                ),
                class_names=class_names,
                vocabulary_version=vocabulary_version,
                scene_stamp_ns=int(scene) if scene else None,
                reason=values["reason"],
            )
        except KeyError as error:
            raise ValueError(f"a status of a mix lacks {error}") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """The answer to one frame.

    Attributes:
        mask: Class index per pixel, shape (H, W) of the source image (or of the model where so configured), uint8
            (uint16 above 254 classes).
        confidence: Probability of the chosen class scaled to 0..255, shape of `mask`, uint8; None where not asked for.
        generation: The generation that made this mask.
        stamp_ns: Copied from the frame.
        camera: Copied from the frame.
        frame_id: Copied from the frame.
        latency_ms: Milliseconds by stage ("preprocess", "forward", "postprocess", "total").
    """

    mask: MaskArray
    confidence: NDArray[np.uint8] | None
    generation: Generation
    stamp_ns: int
    camera: str
    frame_id: str
    latency_ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class MaskInfo:
    """What explains one mask, for `~/mask_info`.

    Attributes:
        camera: Its name; empty for the only one.
        generation: Number of the generation that made it.
        vocabulary_version: Version of the labels that its indices are of.
        mix_id: `AdapterMix.id` of the generation's mix.
        engine: Name of the engine.
        precision: "fp32", "bf16" or "fp16"; empty where the engine does not tell.
        latency_ms: Time in the model.
    """

    camera: str
    generation: int
    vocabulary_version: int
    mix_id: str
    engine: str
    precision: str
    latency_ms: float

    def status(self) -> Status:
        """As one status, which `from_status` reads."""
        values = {item.name: str(getattr(self, item.name)) for item in dataclasses.fields(self)}
        name = f"mask of {self.camera}" if self.camera else "mask"
        return Status(name=name, message=f"generation {self.generation}, mix {self.mix_id}", values=values)

    @classmethod
    def from_status(cls, status: Status) -> MaskInfo:
        """Read what `status` wrote.

        Raises:
            ValueError: It is something else.
        """
        read: dict[str, Callable[[str], Any]] = {"generation": int, "vocabulary_version": int, "latency_ms": float}
        try:
            values = {item.name: status.values[item.name] for item in dataclasses.fields(cls)}
        except KeyError as error:
            raise ValueError(f"what is told of a mask lacks {error}") from None
        return cls(**{name: read.get(name, str)(value) for name, value in values.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptationStep:
    """What one turn of the adaptation path decided.

    Attributes:
        action: "throttled" (too early, nothing computed), "steady" (the mix still fits), "dwell" (the mix would change
            by more than `mix_threshold`, but that has to last, or the fusions of this minute are used up), "frozen",
            "fused" (a new generation was committed), "recalled" (the same, of the mix before, which still stood by and
            had not to be fused), "failed".
        stamp_ns: Stamp of the scene frame.
        drift: Share of the mix in use that would change, 0..1; None if not computed.
        mix: The mix put into use, for "fused" and "recalled".
        generation: The generation serving after this step.
        error: Why it failed, for "failed".
        latency_ms: Milliseconds by stage ("embed", "retrieve", "prepare", "commit").
    """

    action: str
    stamp_ns: int
    generation: Generation
    drift: float | None = None
    mix: AdapterMix | None = None
    error: str | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)
