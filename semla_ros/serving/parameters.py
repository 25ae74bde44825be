"""The node's parameters: the settings of `config.py` by name, checked as a whole before anything changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from semla_ros.config import (
    GONE,
    DiagnosticsConfig,
    DriftConfig,
    InferenceConfig,
    NodeConfig,
    RetrievalConfig,
    SemlaConfig,
    Setting,
    from_mapping,
    settings_of,
)
from semla_ros.errors import ConfigError, known_names

QOS_PREFIX = "qos_overrides."
# Declared by rclpy itself, so not by the table below.
BUILT_IN = ("use_sim_time", "start_type_description_service")
_GROUPS = (SemlaConfig, NodeConfig, RetrievalConfig, DriftConfig, InferenceConfig, DiagnosticsConfig)


def _to_ros(value: Any) -> Any:
    """Value as ROS has it; `['']` is an empty list, too."""
    if isinstance(value, (list, tuple)):
        return [] if list(value) == [""] else list(value)
    return value


SPECS: Mapping[str, Setting] = {
    cls.prefix + name: dataclasses.replace(setting, default=_to_ros(setting.default))
    for cls in _GROUPS
    for name, setting in settings_of(cls).items()
}


def unknown_parameters(names: Iterable[str]) -> list[str]:
    """One sentence per name that is no parameter of the node, with the nearest one that is."""
    sentences = []
    for name in sorted(names):
        if name in SPECS or name in BUILT_IN or name.startswith(QOS_PREFIX):
            continue
        if (group := name.split(".")[0]) in GONE:
            sentences.append(f"parameter '{name}': {GONE[group]}")
            continue
        sentences.append(f"unknown parameter '{name}'; {known_names(name, SPECS)}")
    return sentences


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raise ConfigError at a value that its parameter never allows; unknown names and wrong types are passed over.

    rclpy would refuse numbers out of range by itself, with nothing on /diagnostics.
    """
    for name, value in values.items():
        if name in SPECS and isinstance(value, type(SPECS[name].default)):
            SPECS[name].check(name, value)


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
            given: Name -> value; an empty list counts as not set.
            explicit: Which of them count as given by the user; None = all.

        Raises:
            ConfigError: A name is unknown, a value is of the wrong type or out of range, or values do not fit together.
        """
        if unknown := unknown_parameters(given):
            raise ConfigError(unknown[0])
        given = {name: value for name, value in given.items() if name in SPECS and _to_ros(value) not in (None, [])}
        explicit = frozenset(given) if explicit is None else frozenset(explicit) & frozenset(given)
        values = {name: _to_ros(given.get(name, spec.default)) for name, spec in SPECS.items()}

        def group(cls: type[Any], **nested: Any) -> Any:
            own = {name: values[cls.prefix + name] for name in settings_of(cls)}
            return from_mapping(cls, {**own, **nested})

        retrieval, drift = group(RetrievalConfig), group(DriftConfig)
        node = group(NodeConfig, diagnostics=group(DiagnosticsConfig))
        pipeline = group(
            SemlaConfig,
            retrieval=retrieval if explicit & set(settings_of(RetrievalConfig)) else None,
            drift=drift if explicit & set(settings_of(DriftConfig)) else None,
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


def explicit_only(settings: Settings, cls: type[Any]) -> dict[str, Any]:
    """The given ones among the fields of `RetrievalConfig` or `DriftConfig`, for `dataclasses.replace`."""
    return {name: settings.values[name] for name in settings_of(cls) if name in settings.explicit}
