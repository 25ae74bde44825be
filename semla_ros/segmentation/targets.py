"""Which modules a LoRA adapter attaches to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from semla_ros.segmentation.protocol import SegmentationModel


def targets_among(model: nn.Module, kinds: Mapping[type[nn.Module], tuple[str, ...]]) -> list[str]:
    """Paths of the given children of each kind of module in a model, in module order."""
    return [f"{path}.{child}" for path, module in model.named_modules() for child in kinds.get(type(module), ())]


def lora_signature(model: SegmentationModel) -> dict[str, tuple[int, int]]:
    """Module path -> (out features, in features) of every LoRA target."""
    signature = {}
    for path in model.lora_targets():
        module = model.get_submodule(path)
        assert isinstance(module, nn.Linear)
        signature[path] = (module.out_features, module.in_features)
    return signature
