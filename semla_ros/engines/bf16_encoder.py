"""The scene encoder in bf16 in torch: half the memory traffic, and needs no other package."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from semla_ros.engines.component_engine import Maker, Runtime
from semla_ros.engines.components import FixedComponent


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


class Bf16Runtime(Runtime):
    """Torch in bf16, for a CPU that has the instructions; a `Runtime`."""

    name = "torch"

    def makers(self, component: FixedComponent) -> Sequence[Maker]:
        """See `Runtime.makers`."""
        return [partial(Bf16Runner, component.module)]
