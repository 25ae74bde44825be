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

# An adapter whose change of a layer is larger than this many times the base weights of that shape, both as Frobenius
# norms, is a damaged one: shipped adapters reach 1.05, those of the reference set 0.30. Nor can a mix then overflow.
MAX_CHANGE = 32.0


@dataclass(frozen=True, eq=False)
class LayerStack:
    """One adapter's matrices for one slab, zero where the adapter does not touch a module.

    Attributes:
        a: Shape (G, r, in), float32.
        b: B transposed and multiplied by alpha / rank, shape (G, r, out), float32.
    """

    a: Tensor
    b: Tensor

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
        norms = torch.linalg.vector_norm(self.base, dim=(1, 2), dtype=torch.float32)
        norm, room = float(norms.amax()), torch.finfo(self.base.dtype).max - float(self.base.abs().amax())
        self._largest_change = min(MAX_CHANGE * norm or math.inf, room / 2)
        if not math.isfinite(norm):
            broken = [path for path, size in zip(self.paths, norms, strict=True) if not size.isfinite()]
            raise CheckpointError(f"weight of '{broken[0]}' has values that are not finite; load an intact checkpoint")
        self.live = self.base.clone()
        self.standby = self.live
        self._views = {id(slab): self._shaped_views(slab) for slab in (self.base, self.live)}
        if has_standby:
            self.add_standby()
        self._bind(self.live)

    def stack(self, layers: LoraLayers, scaling: float, adapter: str) -> LayerStack | None:
        """Gather one adapter's layers of this shape.

        Args:
            layers: Module path -> A (r, in), B (out, r); paths that belong to other slabs are passed over.
            scaling: alpha / rank of the adapter.
            adapter: Its name, for messages.

        Returns:
            The stack, or None where the adapter touches nothing here.

        Raises:
            AdapterError: A matrix does not fit the base weight, is not finite, or changes it out of proportion.
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
        # The norm of B A from the small products of its parts: sum of (A A^T) * (B^T B).
        changes = ((a @ a.transpose(1, 2)) * (b @ b.transpose(1, 2))).sum((1, 2)).clamp(min=0).sqrt()
        largest = float(changes.amax())
        if not largest <= self._largest_change:
            path = self.paths[int(changes.nan_to_num(torch.inf).argmax())]
            raise AdapterError(
                f"adapter '{adapter}': layer '{path}' has values that are not finite or change it by more than "
                f"{MAX_CHANGE:g} times the base weights; it is damaged: train it again or remove its folder"
            )
        return LayerStack(a, b)

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
        a, b, *sums = self.buffers(rank, scratch)
        start = 0
        for stack, weight in terms:
            stop = start + stack.rank
            torch.mul(stack.a, weight, out=a[:, start:stop])
            b[:, start:stop] = stack.b
            start = stop
        if not sums:
            torch.baddbmm(self.base, b.transpose(1, 2), a, out=self.standby)
            return
        # Half-precision weights: sum in float32 and round once, instead of rounding A, B and the product.
        for row in range(len(self.base)):
            torch.addmm(self.base[row].float(), b[row].T, a[row], out=sums[0])
            self.standby[row].copy_(sums[0])

    def buffers(self, rank: int, scratch: Scratch) -> list[Tensor]:
        """What `fuse` needs for terms of this rank in all: A side, B side and, for half precision, a sum."""
        count, out_features, in_features = self.base.shape
        shapes = [(count, rank, in_features), (count, rank, out_features)]
        if self.base.dtype != torch.float32:
            shapes.append((1, out_features, in_features))
        views = [scratch.view(index, *shape) for index, shape in enumerate(shapes)]
        return [*views[:2], *(view[0] for view in views[2:])]

    def swap(self) -> None:
        """Put `standby` into use: the two are exchanged, or `live` becomes a copy where it is fixed."""
        if self.standby is not self.live and self.is_fixed:
            self.live.copy_(self.standby, non_blocking=True)
            return
        self.live, self.standby = self.standby, self.live
        self._bind(self.live)

    def restore(self, live: Tensor, terms: Sequence[tuple[LayerStack, float]], scratch: Scratch) -> None:
        """Undo `fuse` and `swap`, however far they came.

        Args:
            live: What `live` was before.
            terms: What it was fused from.
            scratch: See `fuse`.
        """
        if self.live is not live:
            self.live, self.standby = live, self.live
        elif self.standby is self.live or self.is_fixed:
            self.fuse(terms, scratch)
            if self.standby is not self.live:
                self.live.copy_(self.standby)
        self._bind(self.live)

    def add_standby(self) -> None:
        """Have a standby copy from now on; nothing changes where there is no memory for one."""
        if self.standby is self.live:
            standby = self.base.clone()
            self._views[id(standby)] = self._shaped_views(standby)
            self.standby = standby

    def drop_standby(self) -> None:
        """Free the standby copy: from now on `fuse` writes into `live`, within a commit. Not for shadowed slabs."""
        if self.standby is not self.live:
            del self._views[id(self.standby)]
            self.standby = self.live

    def use_base(self) -> None:
        """Put the base weights into use until the next `swap`; on a CPU this writes and allocates nothing."""
        if self.is_fixed:
            self.live.copy_(self.base)
        else:
            self._bind(self.base)

    def _bind(self, source: Tensor) -> None:
        for parameter, view in zip(self._parameters, self._views[id(source)], strict=True):
            parameter.data = view
        if self._shadow_parameters:
            for parameter, view in zip(self._shadow_parameters, self._views[id(self.standby)], strict=True):
                parameter.data = view

    def _shaped_views(self, slab: Tensor) -> list[Tensor]:
        return [row.view(parameter.shape) for row, parameter in zip(slab, self._parameters, strict=True)]

    @property
    def is_fixed(self) -> bool:
        """Whether `live` must stay where it is, since captured graphs read it: on a GPU."""
        return self.live.is_cuda

    @property
    def is_shadowed(self) -> bool:
        """Whether a second model reads `standby`."""
        return bool(self._shadow_parameters)

    @property
    def num_bytes(self) -> int:
        """Memory of base, live and standby weights."""
        return sum(slab.nbytes for slab in {id(slab): slab for slab in (self.base, self.live, self.standby)}.values())


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight
