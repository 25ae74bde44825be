"""Weights in half precision beside those in fp32: autocast alone would cast all of them in every frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from semla_ros.segmentation.protocol import SegmentationModel

_CAST = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)  # what autocast casts the weights and biases of


class HalfWeights:
    """A model whose linear layers and convolutions read a copy of their weights in half precision.

    Under autocast its answers are bit for bit those of the model itself, as the casts are the same. Fused weights are
    summed up in fp32 and rounded once, by `refresh`. The copy keeps its place, so captured graphs may read it.

    Args:
        model: Stays as it is.
        dtype: torch.float16 or torch.bfloat16.
    """

    def __init__(self, model: SegmentationModel, dtype: torch.dtype) -> None:
        self._model = model
        self._sources = {
            f"{path}.{name}": parameter
            for path, module in model.named_modules()
            if type(module) in _CAST and not path.startswith(model.text_tower)  # no frame reads that
            for name, parameter in module.named_parameters(recurse=False)
        }
        with torch.inference_mode(False), torch.no_grad():  # whoever calls: they are overwritten outside of it
            self._copies = {name: parameter.to(dtype) for name, parameter in self._sources.items()}

    @property
    def nbytes(self) -> int:
        """Of the copy."""
        return sum(item.nbytes for item in self._copies.values())

    def refresh(self) -> None:
        """Take over what the model's weights have become, in place."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._copies.values()), [item.detach() for item in self._sources.values()])

    def run(self, *inputs: Tensor) -> Tensor:
        """The forward pass, under autocast to the same precision."""
        answer: Tensor = torch.func.functional_call(self._model, self._copies, inputs)
        return answer
