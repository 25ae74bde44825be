"""Which modules a LoRA adapter attaches to."""

from __future__ import annotations

from torch import nn

from semla_ros.segmentation.aggregation_layers import LinearAttention, WindowAttention, WindowMlp
from semla_ros.segmentation.clip import ConvStem, Mlp, SelfAttention
from semla_ros.segmentation.cost_aggregation import CostAggregator, GroupedClassPart
from semla_ros.segmentation.model import CatSeg

# Children of each kind of module that an adapter targets. Not targeted: CLIP's output projection, norms,
# convolutions, the decoder, embeddings. The last two kinds exist in models with a convolutional stem only, which no
# published one has: linear maps that carry the stem's features into the transformer and the decoder.
_TARGETS: dict[type, tuple[str, ...]] = {
    SelfAttention: ("q_proj", "k_proj", "v_proj"),
    Mlp: ("c_fc", "c_proj"),
    WindowAttention: ("q", "k", "v", "proj"),
    WindowMlp: ("fc1", "fc2"),
    LinearAttention: ("q", "k", "v"),
    GroupedClassPart: ("MLP.0", "MLP.2"),
    ConvStem: ("to_tokens",),
}


def lora_targets(model: CatSeg) -> list[str]:
    """Module paths of the published target list that exist in a model, and those of its stem, in module order."""
    return [f"{path}.{child}" for path, module in model.named_modules() for child in _children(module)]


def _children(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, CostAggregator):
        return tuple(f"detail_projection.{index}" for index in range(len(module.detail_projection)))
    return _TARGETS.get(type(module), ())


def lora_signature(model: CatSeg) -> dict[str, tuple[int, int]]:
    """Module path -> (out features, in features) of every LoRA target."""
    signature = {}
    for path in lora_targets(model):
        module = model.get_submodule(path)
        assert isinstance(module, nn.Linear)
        signature[path] = (module.out_features, module.in_features)
    return signature
