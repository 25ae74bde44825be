"""Weights of one shape in one block of memory, so that one batched product fuses all of them.

A model has some 150 adapted matrices but only about ten shapes. Stacked by shape, `W0 + sum_i w_i * scaling_i B_i A_i`
is one `baddbmm` per shape: the adapters' ranks are concatenated, their weights go into the A side, and the product
lands in the memory the model reads. Nothing large is allocated per fusion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from semla_ros.errors import AdapterError, CheckpointError

LoraLayers = Mapping[str, tuple[Tensor, Tensor]]  # module path -> A (r, in), B (out, r)


@dataclass(frozen=True, eq=False)
class LayerStack:
    """One adapter's matrices for one slab, zero where the adapter does not touch a module.

    Attributes:
        a: Shape (G, r, in), float32.
        b: B transposed and multiplied by alpha / rank, shape (G, r, out), float32.
        bound: No entry of any `scaling * B A` of the stack exceeds this.
    """

    a: Tensor
    b: Tensor
    bound: float

    @property
    def rank(self) -> int:
        """Largest rank among the stacked layers."""
        return self.a.shape[1]


class Scratch:
    """Two buffers for the concatenated A and B sides, grown to the largest slab and rank seen, shared by all slabs."""

    def __init__(self, device: torch.device) -> None:
        self._buffers = [torch.empty(0, device=device) for _ in range(3)]

    def view(self, index: int, *shape: int) -> Tensor:
        """Float32 buffer `index` in this shape; its content is whatever was left there."""
        count = math.prod(shape)
        if self._buffers[index].numel() < count:
            self._buffers[index] = torch.empty(count, device=self._buffers[index].device)
        return self._buffers[index][:count].view(shape)


class WeightSlab:
    """The adapted weights of one shape: as loaded (`base`), in use (`live`) and being prepared (`standby`).

    Making a slab moves the modules' weights into it: afterwards each `module.weight` is a view of `live`.

    Args:
        modules: Module path -> module whose `weight` has the same shape (out, in) or (out, in, kh, kw) everywhere.
        shadows: The same modules in a second model whose weights are to be views of `standby`; may be empty.
        has_standby: False saves one copy of the weights; `fuse` then writes into `live` alone.

    Raises:
        CheckpointError: A base weight is not finite.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], shadows: Mapping[str, nn.Module], *, has_standby: bool
    ) -> None:
        self.paths = tuple(modules)
        self._row = {path: row for row, path in enumerate(self.paths)}
        self._parameters = [_weight(module) for module in modules.values()]
        self._shadow_parameters = [_weight(shadows[path]) for path in self.paths if path in shadows]
        self.base = torch.stack([parameter.detach().flatten(1) for parameter in self._parameters])  # (G, out, in)
        self._base_bound = float(self.base.abs().amax())
        if not math.isfinite(self._base_bound):
            broken = [path for path, weight in zip(self.paths, self.base, strict=True) if not weight.isfinite().all()]
            raise CheckpointError(f"weight of '{broken[0]}' has values that are not finite; load an intact checkpoint")
        self.live = self.base.clone()
        self.standby = self.base.clone() if has_standby else self.live
        self._views = {id(slab): self._shaped_views(slab) for slab in (self.live, self.standby)}
        self._bind()

    def stack(self, layers: LoraLayers, scaling: float, adapter: str) -> LayerStack | None:
        """Gather one adapter's layers of this shape.

        Args:
            layers: Module path -> A (r, in), B (out, r); paths that belong to other slabs are passed over.
            scaling: alpha / rank of the adapter.
            adapter: Its name, for messages.

        Returns:
            The stack, or None where the adapter touches nothing here.

        Raises:
            AdapterError: A matrix does not fit the base weight or is not finite.
        """
        own = [path for path in self.paths if path in layers]
        if not own:
            return None
        count, out_features, in_features = self.base.shape
        rank = max(layers[path][0].shape[0] for path in own)
        a = torch.zeros(count, rank, in_features, device=self.base.device)
        b = torch.zeros(count, rank, out_features, device=self.base.device)
        for path in own:
            layer_a, layer_b = (matrix.detach().flatten(1) for matrix in layers[path])
            layer_rank, row = layer_a.shape[0], self._row[path]
            if layer_a.shape != (layer_rank, in_features) or layer_b.shape != (out_features, layer_rank):
                raise AdapterError(
                    f"adapter '{adapter}': layer '{path}' has A {tuple(layer_a.shape)} and B {tuple(layer_b.shape)}, "
                    f"expected (r, {in_features}) and ({out_features}, r); it was trained for another base model: "
                    "retrain it or remove its folder"
                )
            a[row, :layer_rank] = layer_a
            torch.mul(layer_b.to(b).T, scaling, out=b[row, :layer_rank])
        bound = rank * float(a.abs().amax()) * float(b.abs().amax())
        if not math.isfinite(bound):
            raise AdapterError(f"adapter '{adapter}': has values that are not finite; remove or replace its folder")
        return LayerStack(a, b, bound)

    def check_finite(self, terms: Sequence[tuple[LayerStack, float]]) -> None:
        """Raise AdapterError unless every fused weight is certain to be finite, without computing one."""
        bound = self._base_bound + sum(weight * stack.bound for stack, weight in terms)
        if not bound < torch.finfo(self.base.dtype).max:
            raise AdapterError(
                f"fused weights of '{self.paths[0]}' and its like could overflow {self.base.dtype} "
                f"(up to {bound:.3g}); an adapter of the mix has absurd values: check the library"
            )

    def fuse(self, terms: Sequence[tuple[LayerStack, float]], scratch: Scratch) -> None:
        """Write `base + sum weight * B A` into `standby` (into `live` where there is no standby).

        Args:
            terms: Stacks with their fusion weights, in the order in which they are to be added up.
            scratch: Buffers to concatenate the terms in.
        """
        rank = sum(stack.rank for stack, _ in terms)
        if rank == 0:
            self.standby.copy_(self.base)
            return
        count, out_features, in_features = self.base.shape
        a = scratch.view(0, count, rank, in_features)
        b = scratch.view(1, count, rank, out_features)
        start = 0
        for stack, weight in terms:
            stop = start + stack.rank
            torch.mul(stack.a, weight, out=a[:, start:stop])
            b[:, start:stop] = stack.b
            start = stop
        if self.base.dtype == torch.float32:
            torch.baddbmm(self.base, b.transpose(1, 2), a, out=self.standby)
            return
        # Half-precision weights: sum in float32 and round once, instead of rounding A, B and the product.
        sum_in_float = scratch.view(2, out_features, in_features)
        for row in range(count):
            torch.addmm(self.base[row].float(), b[row].T, a[row], out=sum_in_float)
            self.standby[row].copy_(sum_in_float)

    def swap(self) -> None:
        """Put `standby` into use: by pointers on a CPU, by a copy on a GPU so that captured graphs stay valid."""
        if self.standby is self.live:
            return
        if self.live.is_cuda:
            self.live.copy_(self.standby, non_blocking=True)
            return
        self.live, self.standby = self.standby, self.live
        self._bind()

    def _bind(self) -> None:
        for parameter, view in zip(self._parameters, self._views[id(self.live)], strict=True):
            parameter.data = view
        if self._shadow_parameters:
            for parameter, view in zip(self._shadow_parameters, self._views[id(self.standby)], strict=True):
                parameter.data = view

    def _shaped_views(self, slab: Tensor) -> list[Tensor]:
        return [row.view(parameter.shape) for row, parameter in zip(slab, self._parameters, strict=True)]

    @property
    def num_bytes(self) -> int:
        """Memory of base, live and standby weights."""
        return sum(slab.nbytes for slab in {id(slab): slab for slab in (self.base, self.live, self.standby)}.values())


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight
