"""Late fusion: average the predictions of single-adapter models instead of fusing their weights.

A baseline of the paper, as many forward passes per image as there are adapters; for comparison, not for serving.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from semla_ros.adaptation.fusion import Fuser
from semla_ros.lab.evaluation.variants import equal_mix
from semla_ros.results import AdapterMix


def late_fused_probabilities(fuser: Fuser, mix: AdapterMix, predict: Callable[[Tensor], Tensor]) -> Tensor:
    """Average what the mix's adapters predict one by one.

    Leaves the fuser's model with the last single adapter; commit a mix before using it otherwise.

    Args:
        fuser: Of the model that `predict` runs.
        mix: Adapters and the weights of their predictions; what they lack to 1 goes to the base model.
        predict: Class embeddings (T, C) -> class probabilities (T, H, W) of one image by the model as it is now.

    Returns:
        Shape (T, H, W).
    """
    singles = [(equal_mix([name]), float(weight)) for name, weight in zip(mix.names, mix.weights, strict=True)]
    singles.append((AdapterMix(), mix.base_weight))
    total: Tensor | None = None
    for single, weight in singles:
        if weight <= 0:
            continue
        prepared = fuser.prepare(single)
        fuser.commit(prepared)
        with torch.no_grad():
            probabilities = weight * predict(prepared.text_features)
        total = probabilities if total is None else total + probabilities
    assert total is not None  # the weights of a mix sum to 1
    return total
