from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from semla_ros.adaptation.weight_slabs import Scratch, WeightSlab
from semla_ros.errors import AdapterError, CheckpointError

IN, OUT = 6, 5


def make_modules(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {f"block.{index}": nn.Linear(IN, OUT).to(dtype) for index in range(count)}


def make_layers(paths: list[str], rank: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        path: (torch.randn(rank, IN, generator=generator), torch.randn(OUT, rank, generator=generator))
        for path in paths
    }


def reference(base: Tensor, terms: list[tuple[float, float, tuple[Tensor, Tensor]]]) -> Tensor:
    return base.double() + sum(weight * scaling * (b.double() @ a.double()) for weight, scaling, (a, b) in terms)


def test_a_module_weight_becomes_a_view_of_the_slab_with_its_values_kept() -> None:
    modules = make_modules(3)
    before = {path: module.weight.detach().clone() for path, module in modules.items()}
    slab = WeightSlab(modules, {}, has_standby=True)
    for row, (path, module) in enumerate(modules.items()):
        assert torch.equal(module.weight, before[path])
        assert module.weight.data_ptr() == slab.live[row].data_ptr()


def test_adapters_of_different_rank_and_reach_add_up_to_the_exact_sum() -> None:
    modules = make_modules(3)
    slab = WeightSlab(modules, {}, has_standby=True)
    wide = make_layers(list(modules), rank=4, seed=1)
    narrow = make_layers(["block.1"], rank=2, seed=2)
    terms = [(slab.stack(wide, 2.0, "wide"), 0.7), (slab.stack(narrow, 0.5, "narrow"), 0.3)]
    slab.fuse(terms, Scratch(torch.device("cpu")))  # type: ignore[arg-type]
    slab.swap()
    for row, path in enumerate(modules):
        parts = [(0.7, 2.0, wide[path])] + ([(0.3, 0.5, narrow[path])] if path in narrow else [])
        expected = reference(slab.base[row], parts)
        assert (modules[path].weight.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_layers_of_one_adapter_may_differ_in_rank() -> None:
    modules = make_modules(2)
    slab = WeightSlab(modules, {}, has_standby=False)
    layers = make_layers(["block.0"], rank=3, seed=3) | make_layers(["block.1"], rank=1, seed=4)
    slab.fuse([(slab.stack(layers, 1.0, "mixed"), 1.0)], Scratch(torch.device("cpu")))  # type: ignore[list-item]
    for row, path in enumerate(modules):
        expected = reference(slab.base[row], [(1.0, 1.0, layers[path])])
        assert torch.allclose(modules[path].weight.double(), expected, atol=1e-6)


def test_the_weights_in_use_change_only_at_the_swap() -> None:
    modules = make_modules(1)
    slab = WeightSlab(modules, {}, has_standby=True)
    before = modules["block.0"].weight.detach().clone()
    slab.fuse([(slab.stack(make_layers(["block.0"], 2, 5), 1.0, "a"), 1.0)], Scratch(torch.device("cpu")))  # type: ignore[list-item]
    assert torch.equal(modules["block.0"].weight, before)
    slab.swap()
    assert not torch.equal(modules["block.0"].weight, before)


def test_no_terms_give_the_base_weights_bit_for_bit() -> None:
    modules = make_modules(2)
    slab = WeightSlab(modules, {}, has_standby=True)
    scratch = Scratch(torch.device("cpu"))
    slab.fuse([(slab.stack(make_layers(list(modules), 2, 6), 1.0, "a"), 1.0)], scratch)  # type: ignore[list-item]
    slab.swap()
    slab.fuse([], scratch)
    slab.swap()
    assert torch.equal(slab.live, slab.base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_the_float_sum_rounded_once(dtype: torch.dtype) -> None:
    modules = make_modules(2, dtype=dtype)
    slab = WeightSlab(modules, {}, has_standby=True)
    layers = make_layers(list(modules), 3, 7)
    slab.fuse([(slab.stack(layers, 1.0, "a"), 0.6)], Scratch(torch.device("cpu")))  # type: ignore[list-item]
    for row, path in enumerate(modules):
        expected = reference(slab.base[row], [(0.6, 1.0, layers[path])])
        error = (slab.standby[row].double() - expected).abs()
        assert (error <= 0.51 * torch.finfo(dtype).eps * expected.abs() + 1e-6).all()


def test_a_shadow_module_reads_the_standby_weights() -> None:
    modules, shadows = make_modules(1), make_modules(1)
    slab = WeightSlab(modules, shadows, has_standby=True)
    slab.fuse([(slab.stack(make_layers(["block.0"], 2, 8), 1.0, "a"), 1.0)], Scratch(torch.device("cpu")))  # type: ignore[list-item]
    fused = slab.standby[0].clone()
    assert torch.equal(shadows["block.0"].weight, fused)
    slab.swap()
    assert torch.equal(modules["block.0"].weight, fused)
    assert torch.equal(shadows["block.0"].weight, slab.base[0])


def test_convolutions_are_fused_like_matrices() -> None:
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {"conv": nn.Conv2d(3, 4, 3)}
    slab = WeightSlab(modules, {}, has_standby=True)
    a, b = torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1)
    expected = slab.base[0].view(4, 3, 3, 3) + torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    slab.fuse([(slab.stack({"conv": (a, b)}, 1.0, "a"), 1.0)], Scratch(torch.device("cpu")))  # type: ignore[list-item]
    slab.swap()
    assert torch.allclose(modules["conv"].weight, expected, atol=1e-5)


def test_a_matrix_of_the_wrong_shape_is_named() -> None:
    slab = WeightSlab(make_modules(1), {}, has_standby=True)
    with pytest.raises(AdapterError, match=r"adapter 'fog': layer 'block.0'"):
        slab.stack({"block.0": (torch.zeros(2, IN + 1), torch.zeros(OUT, 2))}, 1.0, "fog")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    slab = WeightSlab(make_modules(1), {}, has_standby=True)
    layers = {"block.0": (torch.full((2, IN), value), torch.ones(OUT, 2))}
    with pytest.raises(AdapterError, match="'fog'"):
        slab.stack(layers, 1.0, "fog")
    modules = make_modules(1)
    nn.init.constant_(modules["block.0"].weight, value)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"block\.0"):
        WeightSlab(modules, {}, has_standby=True)


@pytest.mark.parametrize("size", [1e30, 10.0])
def test_finite_matrices_whose_product_is_out_of_proportion_are_refused(size: float) -> None:
    slab = WeightSlab(make_modules(1), {}, has_standby=True)
    with pytest.raises(AdapterError, match=r"'huge': layer 'block.0'.*32 times"):
        slab.stack({"block.0": (torch.full((2, IN), size), torch.full((OUT, 2), size))}, 1.0, "huge")


def test_base_weights_of_zero_bound_nothing() -> None:
    modules = make_modules(1)
    nn.init.zeros_(modules["block.0"].weight)  # type: ignore[arg-type]
    assert WeightSlab(modules, {}, has_standby=True).stack(make_layers(["block.0"], 2, 1), 1.0, "a") is not None
