"""`adapter_config.json` of a LoRA adapter: rank, alpha and scaling of each layer, or why it cannot be fused."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semla_ros.errors import AdapterError

# Settings that change what an adapter computes, each with the values under which it is a weighted sum of B A.
_REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("use_dora", (False, None), "DoRA rescales the base weight, so its effect is no weighted sum of B·A"),
    ("bias", ("none", None), "trained biases cannot be fused by a weighted sum of B·A"),
    ("lora_bias", (False, None), "trained biases cannot be fused by a weighted sum of B·A"),
    ("modules_to_save", (None, []), "whole modules are replaced, which cannot be fused by a weighted sum of B·A"),
    ("layer_replication", (None, []), "it changes the model's layers"),
    ("use_qalora", (False, None), "its A is pooled, so its effect is no weighted sum of B·A"),
    ("trainable_token_indices", (None, [], {}), "token embeddings are replaced"),
    ("target_parameters", (None, []), "it targets bare parameters instead of linear layers"),
    ("alora_invocation_tokens", (None, []), "it acts only on part of a sequence"),
    ("arrow_config", (None,), "its weights change with the input"),
)
# Initialisations that move part of the base weights into the adapter: it is right only on that changed base.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PATTERN = re.compile(r"\^?[\w.]+\$?")


@dataclass(frozen=True, eq=False, slots=True)
class LoraSettings:
    """What fusing needs to know of an adapter's configuration.

    Attributes:
        rank: Default rank, >= 1.
        alpha: Default alpha.
        use_rslora: Scaling is alpha / sqrt(rank) instead of alpha / rank.
        rank_pattern: Module path (or its end) -> rank, where it differs.
        alpha_pattern: Likewise for alpha.
    """

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    @property
    def scaling(self) -> float:
        """Scaling of layers that no pattern names."""
        return self._scaling(self.alpha, self.rank)

    def rank_of(self, path: str) -> int:
        """Rank of one layer."""
        rank: int = _lookup(self.rank_pattern, path, self.rank)
        return rank

    def scaling_of(self, path: str) -> float:
        """Scaling of one layer."""
        return self._scaling(_lookup(self.alpha_pattern, path, self.alpha), self.rank_of(path))

    def _scaling(self, alpha: float, rank: int) -> float:
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def parse_lora_settings(text: bytes, name: str) -> LoraSettings:
    """Check `adapter_config.json`.

    Args:
        text: Content of the file.
        name: The adapter's name, for messages.

    Raises:
        AdapterError: It is no LoRA configuration, or of a variant that a weighted sum of B·A cannot reproduce.
    """
    try:
        return _parse(text)
    except _SettingsError as error:
        raise AdapterError(f"adapter '{name}': adapter_config.json: {error}") from None


class _SettingsError(ValueError):
    """What is wrong with a configuration."""


@functools.lru_cache(maxsize=16)  # adapters of one library mostly have the same configuration
def _parse(text: bytes) -> LoraSettings:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _SettingsError(f"not valid JSON ({error}); copy the folder again") from None
    if not isinstance(values, dict):
        raise _SettingsError(f"must hold a mapping, got {type(values).__name__}")
    kind = values.get("peft_type")
    if kind != "LORA":
        raise _SettingsError(f"peft_type is {kind!r}, only 'LORA' can be fused by a weighted sum of B·A")
    for key, allowed, reason in _REFUSED:
        if values.get(key) not in allowed:
            raise _SettingsError(f"{key} is {values[key]!r}, expected {allowed[0]!r}: {reason}; retrain it without")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        raise _SettingsError(
            f"init_lora_weights is '{start}', which changes the base weights; convert the adapter to a plain one"
        )
    # fan_in_fan_out needs no look: it acts on transposed layers only, and every module fused here is plain linear.
    return LoraSettings(
        rank=_whole(values.get("r"), "'r'"),
        alpha=_number(values.get("lora_alpha"), "'lora_alpha'"),
        use_rslora=bool(values.get("use_rslora") or False),
        rank_pattern={key: _whole(value, "'rank_pattern'") for key, value in _pattern(values, "rank_pattern")},
        alpha_pattern={key: _number(value, "'alpha_pattern'") for key, value in _pattern(values, "alpha_pattern")},
    )


def _pattern(values: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    pattern = values.get(key) or {}
    if not isinstance(pattern, dict):
        raise _SettingsError(f"'{key}' must be a mapping, got {type(pattern).__name__}")
    for item in pattern:
        if not _PATTERN.fullmatch(item):  # a regular expression of a stranger could run for ever
            raise _SettingsError(f"'{key}' names modules by {item!r}; expected module paths or their last parts")
    return list(pattern.items())


def _lookup(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """Value of the first key that is the path, or its last parts; "^" in front asks for the whole path."""
    for key, value in pattern.items():
        end = key.strip("^$")
        if path == end or (not key.startswith("^") and path.endswith("." + end)):
            return value
    return default


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _SettingsError(f"{what}: a rank must be a whole number of at least 1, got {value!r}")
    return value


def _number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # JSON knows integers of any length
        number = math.inf
    if not math.isfinite(number):
        raise _SettingsError(f"{what}: an alpha must be a finite number, got {str(value)[:40]!r}")
    return number
