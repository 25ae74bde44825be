"""The scene encoder in half precision in torch: half the memory traffic, and needs no other package."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from semla_ros.engines.component_engine import Maker, Runtime
from semla_ros.segmentation.fixed_component import FixedComponent

_NAMES = {torch.bfloat16: "torch bf16", torch.float16: "torch fp16"}


class HalfRunner:
    """A module with a copy of its weights in half precision.

    Autocast would cast the weights anew with each call, which takes as long as reading them twice.

    Args:
        module: Stays as it is.
        dtype: torch.bfloat16 or torch.float16.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.runtime, self._dtype = _NAMES[dtype], dtype
        self._module: nn.Module | None = copy.deepcopy(module).to(dtype)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run once; fp32 in, fp32 out."""
        assert self._module is not None
        output: Tensor = self._module(*(item.to(self._dtype) for item in inputs))
        return output.float()

    def close(self) -> None:
        """Drop the copy."""
        self._module = None


class HalfRuntime(Runtime):
    """Torch in half precision, for a device that computes in it; a `Runtime`.

    Args:
        dtype: torch.bfloat16 or torch.float16.
    """

    name = "torch"

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def makers(self, component: FixedComponent) -> Sequence[Maker]:
        """See `Runtime.makers`."""
        return [partial(HalfRunner, component.module, self._dtype)]
