"""Generations as a node would announce them."""

from __future__ import annotations

import numpy as np

from semla_ros.results import BASE_MODEL, AdapterMix, Generation


def generation(number: int, shares: dict[str, float], *, scene_stamp_ns: int = 1) -> Generation:
    """Of these shares; what they lack to 1 goes to the base model."""
    adapters = {name: share for name, share in shares.items() if name != BASE_MODEL}
    mix = AdapterMix(
        names=tuple(adapters),
        weights=np.array(list(adapters.values()), np.float64),
        distances=np.ones(len(adapters)),
        base_weight=1.0 - sum(adapters.values()),
    )
    return Generation(
        number=number, mix=mix, class_names=(), vocabulary_version=0, scene_stamp_ns=scene_stamp_ns, reason="drift"
    )
