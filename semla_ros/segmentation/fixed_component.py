"""A part of a model that no adapter ever changes, and how another runtime takes it over."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., Tensor]

DECODER = "decoder"
MAX_MAPS = 256  # class maps at once in the decoder
_PROBE_SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedComponent:
    """One part of a model that another runtime can take over.

    Attributes:
        name: Such as `DECODER`.
        module: What is exported; on fp32 tensors. Once mounted, call `original` instead.
        inputs: An example and probe, fp32; the leading axis of the first may vary from 1 to `max_batch`.
        input_names: One for each input.
        max_batch: See `inputs`.
        original: The same function in torch, whatever is mounted.
        shadow: Where the replacement goes: owner, attribute, and the function it gets made from a runner.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    max_batch: int
    original: Forward
    shadow: tuple[tuple[object, str, Callable[[Forward], Callable[..., object]]], ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over architecture, weights and buffers, as hex; read once, as they are fixed."""
        values: dict[str, Any] = dict([*self.module.named_parameters(), *self.module.named_buffers()])
        total = hashlib.sha256(architecture(self.module).encode())
        for name, tensor in sorted(values.items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
        return total.hexdigest()

    def shapes(self) -> str:
        """Shapes of the inputs, the varying axis as its range: part of a cache key."""
        first, *others = (tuple(item.shape) for item in self.inputs)
        varying = "x".join([f"1-{self.max_batch}", *map(str, first[1:])])
        return ",".join([varying, *("x".join(map(str, shape)) for shape in others)])

    def mount(self, runner: Forward) -> ExitStack:
        """Let a runner serve instead of torch, until the returned stack is closed.

        Inputs that the runner was not built for still go to torch.
        """

        def served(*inputs: Tensor) -> Tensor:
            if self.accepts(inputs):
                return runner(*(item.float() for item in inputs))
            return self.original(*inputs)

        stack = ExitStack()
        for owner, attribute, adapt in self.shadow:
            # An attribute of the instance hides the class's method of that name.
            object.__setattr__(owner, attribute, adapt(served))
            stack.callback(object.__delattr__, owner, attribute)
        return stack

    def accepts(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a runner for this component takes such inputs."""
        given, made = ([tuple(item.shape) for item in items] for items in (inputs, self.inputs))
        is_batch_right = 1 <= given[0][0] <= self.max_batch and given[0][1:] == made[0][1:]
        return is_batch_right and given[1:] == made[1:]


def architecture(module: nn.Module) -> str:
    """What a module computes beside its weights: class and settings of each of its parts, one line each.

    `repr` is not enough: number of heads, windows, paddings and configurations stand in attributes that it leaves out.
    """
    lines = []
    for name, part in module.named_modules():
        settings = {key: item for key, item in vars(part).items() if key not in _OF_MODULES and _is_setting(item)}
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        lines.append(f"{name} {kind} {part.extra_repr()} {sorted(settings.items())}")
    return "\n".join(lines)


_OF_MODULES = frozenset(vars(nn.Module()))  # torch's own: whether it trains, its hooks, its parts


def _is_setting(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_setting(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str) or dataclasses.is_dataclass(value)


def noise(shape: tuple[int, ...], like: nn.Module) -> Tensor:
    """Seeded normal values to probe a component with, on the device of a module."""
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    return torch.randn(shape, generator=generator).to(next(like.parameters()).device)
