"""What a replay compares: the ways a vehicle's pipeline could have treated the same frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from semla_ros.errors import ConfigError, known_names
from semla_ros.lab.bags.writer import NANOSECONDS

KNOWN = ("base", "uniform", "semla", "semla@LIBRARY", "oracle:NAME", "frozen@SECONDS")  # forms of a variant
Kind = Literal["base", "uniform", "semla", "oracle", "frozen"]


@dataclass(frozen=True)
class ReplayVariant:
    """One way of adapting.

    Attributes:
        name: As asked for; key in the results.
        kind: "base": no adapter; "uniform": all adapters, equal weights; "semla": follows the scene; "oracle": one
            adapter throughout; "frozen": follows the scene up to a moment, then keeps its mix.
        adapter: For "oracle".
        until_s: For "frozen": seconds after the first frame, or a stamp in seconds.
        library: For "semla": folder of a library of its own; empty = that of the replay.
    """

    name: str
    kind: Kind
    adapter: str = ""
    until_s: float = 0.0
    library: str = ""

    @property
    def adapts(self) -> bool:
        """Whether its mix follows the scene."""
        return self.kind in ("semla", "frozen")

    def adapters(self, library: Sequence[str]) -> tuple[str, ...]:
        """The adapters of its fixed mix; empty where it has none.

        Args:
            library: Names of all that there are.

        Raises:
            ConfigError: The library lacks them.
        """
        if self.kind == "oracle" and self.adapter not in library:
            raise ConfigError(
                f"--compare {self.name}: the library has no adapter '{self.adapter}'; "
                f"{known_names(self.adapter, library)}"
            )
        if self.kind == "uniform" and not library:
            raise ConfigError("--compare uniform: the library has no adapters")
        return {"oracle": (self.adapter,), "uniform": tuple(library)}.get(self.kind, ())


def parse_variants(text: str) -> tuple[ReplayVariant, ...]:
    """Read `--compare`, such as "base,uniform,semla,semla@other_library,oracle:fog,frozen@12.5".

    Raises:
        ConfigError: A variant is unknown, incomplete or named twice.
    """
    variants: dict[str, ReplayVariant] = {}
    for name in (item.strip() for item in text.split(",")):
        if name in ("base", "uniform", "semla"):
            variant = ReplayVariant(name, name)  # type: ignore[arg-type]
        elif name.startswith("oracle:") and len(name) > len("oracle:"):
            variant = ReplayVariant(name, "oracle", adapter=name.partition(":")[2])
        elif name.startswith("semla@") and len(name) > len("semla@"):
            variant = ReplayVariant(name, "semla", library=name.partition("@")[2])
        elif name.startswith("frozen@"):
            try:
                variant = ReplayVariant(name, "frozen", until_s=_seconds(name.partition("@")[2]))
            except ValueError:
                raise ConfigError(
                    f"--compare: '{name}' needs a time: frozen@12.5 (seconds after the first frame) or a stamp"
                ) from None
        else:
            raise ConfigError(f"--compare: unknown variant '{name}'; {known_names(name, KNOWN)}")
        if name in variants:
            raise ConfigError(f"--compare names '{name}' twice")
        variants[name] = variant
    return tuple(variants.values())


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(text)
    return value / NANOSECONDS if value > 1e15 else value  # stamps are often written in nanoseconds


def choose_primary(variants: Sequence[ReplayVariant]) -> ReplayVariant:
    """The variant that report and bag are about: the first that adapts, else the last."""
    return next((variant for variant in variants if variant.adapts), variants[-1])


def reference_of(primary: str, names: Sequence[str]) -> str | None:
    """What the primary variant is compared with: base where it runs, else the first other one."""
    others = [name for name in names if name != primary]
    return "base" if "base" in others else (others[0] if others else None)
