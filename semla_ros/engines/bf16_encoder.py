"""The scene encoder in bf16 in torch: half the memory traffic, and needs no other package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from semla_ros.engines.components import SCENE_ENCODER, FixedComponent


def has_bf16() -> bool:
    """Whether this machine's CPU computes in bf16, so that it is faster and not slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Bf16Runner:
    """A module with a copy of its weights in bf16.

    Autocast would cast the weights anew with each call, which takes as long as reading them twice.

    Args:
        module: Stays as it is.
    """

    runtime = "torch bf16"

    def __init__(self, module: nn.Module) -> None:
        self._module: nn.Module | None = copy.deepcopy(module).to(torch.bfloat16)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run once; fp32 in, fp32 out."""
        assert self._module is not None
        output: Tensor = self._module(*(item.to(torch.bfloat16) for item in inputs))
        return output.float()

    def close(self) -> None:
        """Drop the copy."""
        self._module = None


class Bf16Runtime:
    """Torch in bf16, for the scene encoder; a `Runtime`."""

    name = "torch"

    def makers(self, component: FixedComponent) -> Sequence[Callable[[], Bf16Runner]]:
        """See `Runtime.makers`."""
        is_tried = component.name == SCENE_ENCODER and component.inputs[0].device.type == "cpu" and has_bf16()
        return [partial(Bf16Runner, component.module)] if is_tried else []
