from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest
import torch
from tiny_parts import RANKS, tiny_adapter, tiny_model
from torch import Tensor

from semla_ros.adaptation.fusion import Fuser
from semla_ros.adaptation.weight_slabs import WeightSlab
from semla_ros.errors import AdapterError
from semla_ros.results import AdapterMix
from semla_ros.segmentation.model import CatSeg

TOKENS = torch.tensor([[38, 3, 39, 0, 0], [38, 4, 5, 39, 0], [38, 6, 39, 0, 0]])


@dataclass
class FakeAdapter:
    layers: dict[str, tuple[Tensor, Tensor]]
    scaling: float = 2.0


@dataclass
class FakeLibrary:
    adapters: dict[str, FakeAdapter]
    reads: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.adapters)

    def adapter(self, name: str) -> FakeAdapter:
        self.reads.append(name)
        if name not in self.adapters:
            raise AdapterError(f"adapter '{name}' is not in the library")
        return self.adapters[name]


def make_library(model: CatSeg) -> FakeLibrary:
    ranks = enumerate(RANKS.items())
    return FakeLibrary({name: FakeAdapter(tiny_adapter(model, rank, seed)) for seed, (name, rank) in ranks})


def mix_of(base_weight: float = 0.0, **weights: float) -> AdapterMix:
    ordered = sorted(weights, key=lambda name: -weights[name])
    return AdapterMix(
        names=tuple(ordered),
        weights=np.array([weights[name] for name in ordered]),
        distances=np.full(len(ordered), np.nan),
        base_weight=base_weight,
    )


def make_fuser(model: CatSeg, library: FakeLibrary, **settings: object) -> Fuser:
    return Fuser(model, library, TOKENS, **settings)  # type: ignore[arg-type]


def weights_of(model: CatSeg) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def put(fuser: Fuser, mix: AdapterMix) -> Tensor:
    prepared = fuser.prepare(mix)
    fuser.commit(prepared)
    return prepared.text_features


@pytest.mark.parametrize("memory", ["double", "single"])
def test_every_fused_weight_is_the_float64_sum_to_a_millionth(memory: str) -> None:
    model = tiny_model()
    base, library = weights_of(model), make_library(model)
    fuser = make_fuser(model, library, memory=memory)
    put(fuser, mix_of(day=0.5, snow=0.3, fog=0.2))
    for name, fused in weights_of(model).items():
        expected = base[name].double()
        path = name.removesuffix(".weight")
        for adapter, weight in (("day", 0.5), ("snow", 0.3), ("fog", 0.2)):
            if path in library.adapters[adapter].layers and name.endswith(".weight"):
                a, b = library.adapters[adapter].layers[path]
                expected = expected + weight * 2.0 * b.double() @ a.double()
        assert (fused.double() - expected).abs().max() <= 1e-6 * expected.abs().max(), name


@pytest.mark.parametrize("memory", ["double", "single"])
def test_class_embeddings_are_those_of_the_fused_text_tower(memory: str) -> None:
    model = tiny_model()
    fuser = make_fuser(model, make_library(model), memory=memory)
    base_text = model.encode_text(TOKENS)
    text = put(fuser, mix_of(fog=1.0))
    assert torch.allclose(text, model.encode_text(TOKENS), atol=1e-6)
    assert (text - base_text).abs().max() > 0.01


@pytest.mark.parametrize("memory", ["double", "single"])
def test_preparing_leaves_the_model_in_use_alone(memory: str) -> None:
    model = tiny_model()
    fuser = make_fuser(model, make_library(model), memory=memory)
    put(fuser, mix_of(day=1.0))
    before = weights_of(model)
    fuser.prepare(mix_of(night=1.0))
    after = weights_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_returning_to_an_earlier_mix_gives_the_same_bits_after_many_fusions() -> None:
    model = tiny_model()
    fuser = make_fuser(model, make_library(model))
    first = mix_of(day=0.4, fog=0.3, night=0.2, base_weight=0.1)
    text = put(fuser, first)
    before = weights_of(model)
    rng = np.random.default_rng(0)
    process = psutil.Process()
    sizes = []
    for turn in range(1000):
        weights = rng.dirichlet(np.ones(4))
        put(fuser, mix_of(**dict(zip(RANKS, weights, strict=True))))
        if turn in (200, 999):
            gc.collect()
            sizes.append(process.memory_info().rss)
    assert torch.equal(put(fuser, first), text)
    after = weights_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sizes[1] - sizes[0] < 4 << 20


def test_the_base_mix_restores_the_base_weights_bit_for_bit() -> None:
    model = tiny_model()
    before = weights_of(model)
    fuser = make_fuser(model, make_library(model))
    put(fuser, mix_of(day=0.5, fog=0.5))
    put(fuser, AdapterMix())
    after = weights_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_mix_of_base_weight_alone_and_a_partial_one_fade_towards_the_base_model() -> None:
    model = tiny_model()
    path = next(iter(make_library(model).adapters["day"].layers))
    base = model.get_submodule(path).weight.clone()
    fuser = make_fuser(model, make_library(model))
    put(fuser, mix_of(day=1.0))
    whole = model.get_submodule(path).weight - base
    put(fuser, mix_of(day=0.25, base_weight=0.75))
    assert torch.allclose(model.get_submodule(path).weight - base, 0.25 * whole, atol=1e-6)


def test_an_adapter_that_lacks_modules_leaves_them_at_the_base() -> None:
    model = tiny_model()
    library = make_library(model)
    kept, *missing = library.adapters["day"].layers
    library.adapters["day"].layers = {kept: library.adapters["day"].layers[kept]}
    before = weights_of(model)
    fuser = make_fuser(model, library)
    put(fuser, mix_of(day=1.0))
    after = weights_of(model)
    assert not torch.equal(after[f"{kept}.weight"], before[f"{kept}.weight"])
    assert all(torch.equal(after[f"{path}.weight"], before[f"{path}.weight"]) for path in missing)


def test_only_adapters_of_the_mix_and_of_the_one_that_stands_by_stay_in_memory() -> None:
    model = tiny_model()
    library = make_library(model)
    fuser = make_fuser(model, library)
    put(fuser, mix_of(day=0.5, fog=0.5))
    put(fuser, mix_of(day=0.6, night=0.4))
    assert set(fuser.resident_adapters) == {"day", "fog", "night"}
    put(fuser, mix_of(day=0.7, night=0.3))
    assert set(fuser.resident_adapters) == {"day", "night"}
    assert library.reads.count("day") == 1


def test_what_served_before_comes_back_with_the_same_bits_as_often_as_it_is_wanted() -> None:
    model = tiny_model()
    fuser = make_fuser(model, make_library(model))
    expected = {}
    for name in ("fog", "day"):
        expected[name] = put(fuser, mix_of(**{name: 1.0})), weights_of(model)
    for turn in range(6):
        name = ("fog", "day")[turn % 2]
        texts: list[Tensor] = []
        assert fuser.stands_by is not None
        fuser.commit(fuser.stands_by, texts.append)
        assert fuser.in_use is not None
        assert fuser.in_use.mix.names == (name,)
        assert torch.equal(texts[0], expected[name][0])
        after = weights_of(model)
        assert all(torch.equal(after[key], value) for key, value in expected[name][1].items())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda fuser: fuser.prepare(mix_of(night=1.0)),
        lambda fuser: fuser.set_tokens(TOKENS[:2]),
        lambda fuser: fuser.set_library(fuser._library),
        lambda fuser: fuser.use_base(lambda _: None),
    ],
    ids=["another preparation", "another vocabulary", "another library", "the base model instead"],
)
def test_nothing_stands_by_after(spoil: Callable[[Fuser], object]) -> None:
    model = tiny_model()
    fuser = make_fuser(model, make_library(model))
    assert fuser.stands_by is None
    put(fuser, mix_of(day=1.0))
    put(fuser, mix_of(fog=1.0))
    stale = fuser.stands_by
    assert stale is not None
    spoil(fuser)
    assert fuser.stands_by is None
    with pytest.raises(ValueError, match="void"):
        fuser.commit(stale)


def test_nothing_stands_by_where_there_is_one_set_of_weights() -> None:
    model = tiny_model()
    fuser = make_fuser(model, make_library(model), memory="single")
    put(fuser, mix_of(day=1.0))
    put(fuser, mix_of(fog=1.0))
    assert fuser.stands_by is None


def test_where_weights_stay_in_place_a_commit_is_a_copy_and_nothing_stands_by(monkeypatch) -> None:
    model, moved = tiny_model(), tiny_model()
    expected = make_fuser(moved, make_library(moved))
    monkeypatch.setattr(WeightSlab, "is_fixed", True)  # as on a GPU, whose captured graphs read them there
    fuser = make_fuser(model, make_library(model))
    places = [slab.live.data_ptr() for slab in fuser.slabs]
    for mix in (mix_of(day=1.0), mix_of(fog=1.0)):
        put(fuser, mix)
        put(expected, mix)
        assert [slab.live.data_ptr() for slab in fuser.slabs] == places
        assert all(torch.equal(weights_of(model)[key], value) for key, value in weights_of(moved).items())
    assert fuser.stands_by is None


def test_a_base_model_that_served_from_no_slab_does_not_stand_by() -> None:
    model = tiny_model()
    fuser = make_fuser(model, make_library(model))
    put(fuser, mix_of(day=1.0))
    fuser.use_base(lambda _: None)
    put(fuser, mix_of(fog=1.0))
    assert fuser.stands_by is None


@pytest.mark.parametrize("memory", ["double", "single"])
def test_a_broken_adapter_is_refused_and_the_model_in_use_stays(memory: str) -> None:
    model = tiny_model()
    library = make_library(model)
    path = next(iter(library.adapters["fog"].layers))
    a, b = library.adapters["fog"].layers[path]
    library.adapters["fog"].layers[path] = (a * torch.nan, b)
    fuser = make_fuser(model, library, memory=memory)
    put(fuser, mix_of(day=1.0))
    before = weights_of(model)
    with pytest.raises(AdapterError, match="'fog'"):
        fuser.prepare(mix_of(day=0.5, fog=0.5))
    after = weights_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    put(fuser, mix_of(night=1.0))


def test_a_void_preparation_cannot_be_committed() -> None:
    model = tiny_model()
    fuser = make_fuser(model, make_library(model))
    stale = fuser.prepare(mix_of(day=1.0))
    latest = fuser.prepare(mix_of(fog=1.0))
    with pytest.raises(ValueError, match="void"):
        fuser.commit(stale)
    fuser.commit(latest)
    with pytest.raises(ValueError, match="void"):
        fuser.commit(latest)


def test_an_adapter_removed_while_in_use_stays_usable_until_it_leaves_the_mix() -> None:
    model = tiny_model()
    library = make_library(model)
    fuser = make_fuser(model, library)
    mix = mix_of(day=0.5, fog=0.5)
    put(fuser, mix)
    before = weights_of(model)
    fuser.set_library(FakeLibrary({name: item for name, item in library.adapters.items() if name != "fog"}))  # type: ignore[arg-type]
    put(fuser, mix)
    after = weights_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    put(fuser, mix_of(day=1.0))
    with pytest.raises(AdapterError, match="fog"):
        fuser.prepare(mix)


def test_single_memory_saves_most_of_the_standby_copy() -> None:
    sizes = {}
    for memory in ("double", "single"):
        model = tiny_model()
        sizes[memory] = make_fuser(model, make_library(model), memory=memory).num_bytes
    assert sizes["single"] < sizes["double"]


@pytest.mark.parametrize("memory", ["double", "single", "recall"])
@pytest.mark.parametrize("is_lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("earlier", ["day", ""], ids=["from an adapter", "from the base model"])
def test_whatever_fails_in_a_commit_the_weights_are_those_of_what_is_in_use(
    memory: str, is_lasting: bool, earlier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write, product, allocation, swap and the hand-over of the text fail in turn."""
    model = tiny_model()
    expected = {"": weights_of(model)}
    fuser = make_fuser(model, make_library(model), memory="single" if memory == "single" else "double")
    for name in ("fog", "day"):
        put(fuser, mix_of(**{name: 1.0}))
        expected[name] = weights_of(model)
    texts: list[Tensor] = []
    count = limit = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == limit or (is_lasting and count > limit):
                raise (MemoryError, RuntimeError, KeyboardInterrupt)[limit % 3]("on purpose")
            return function(*arguments, **options)

        return run

    for limit in range(1, 1000):
        put(fuser, mix_of(fog=1.0))
        put(fuser, mix_of(**{earlier: 1.0}) if earlier else AdapterMix())
        before = fuser.in_use
        prepared = fuser.stands_by if memory == "recall" else fuser.prepare(mix_of(fog=1.0))
        assert prepared is not None
        count = 0
        with monkeypatch.context() as patch:
            for name in ("mul", "baddbmm", "addmm", "empty", "zeros"):
                patch.setattr(torch, name, counted(getattr(torch, name)))
            for owner, name in ((Tensor, "copy_"), (WeightSlab, "fuse"), (WeightSlab, "swap"), (WeightSlab, "restore")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                fuser.commit(prepared, counted(texts.append))  # type: ignore[arg-type]
            except (MemoryError, RuntimeError, KeyboardInterrupt):
                failed = True
            else:
                failed = False
        if fuser.in_use is None:  # nothing may serve before the base model does
            fuser.use_base(texts.append)
        assert fuser.in_use is not None
        if not failed:
            break
        assert fuser.stands_by is None
        in_use = fuser.in_use
        assert in_use is before or not in_use.mix.names
        assert is_lasting or in_use is before
        after = weights_of(model)
        wanted = expected[in_use.mix.names[0] if in_use.mix.names else ""]
        assert all(torch.equal(after[name], wanted[name]) for name in wanted), limit
    assert limit > len(fuser.slabs)
    assert all(torch.equal(weights_of(model)[name], value) for name, value in expected["fog"].items())


def test_the_model_gives_the_same_logits_as_one_with_the_sums_written_in() -> None:
    model, plain = tiny_model(), tiny_model()
    library = make_library(model)
    text = put(make_fuser(model, library), mix_of(day=0.7, snow=0.3))
    with torch.no_grad():
        for name, weight in (("day", 0.7), ("snow", 0.3)):
            for path, (a, b) in library.adapters[name].layers.items():
                plain.get_submodule(path).weight += weight * 2.0 * b @ a
        images = torch.randn(1, 3, *model.config.clip.working_resolution, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(model(images, text), plain(images, plain.encode_text(TOKENS)), atol=1e-4)


NO_MEMORY = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    OSError(12, "Cannot allocate memory"),
)


class ShortMemory:
    """Stands in for a method of slabs and raises at the first call that is for a standby copy, or at all from it on."""

    def __init__(self, function: Callable[..., object], error: Exception, *, is_lasting: bool = False) -> None:
        self.function, self.error, self.is_lasting, self.is_over = function, error, is_lasting, False

    def __get__(self, slab: WeightSlab, _: object) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            if not self.is_over and not slab.is_shadowed:
                self.is_over = not self.is_lasting
                raise self.error
            return self.function(slab, *arguments)

        return run


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["add_standby", "fuse", "buffers"])
def test_where_memory_is_short_for_a_standby_copy_single_serves_with_the_same_bits(
    error: Exception, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixes = [mix_of(day=0.5, fog=0.5), mix_of(snow=1.0), AdapterMix(), mix_of(day=0.5, fog=0.5)]
    model = tiny_model()
    double = make_fuser(model, make_library(model))
    expected = [(put(double, mix), weights_of(model)) for mix in mixes]
    single = make_fuser(tiny_model(), make_library(model), memory="single")

    model = tiny_model()
    if method == "add_standby":
        monkeypatch.setattr(WeightSlab, method, ShortMemory(WeightSlab.add_standby, error))
    fuser = make_fuser(model, make_library(model))
    if method != "add_standby":
        put(fuser, mix_of(night=1.0))
        before = weights_of(model)
        monkeypatch.setattr(WeightSlab, method, ShortMemory(getattr(WeightSlab, method), error))
        fuser.prepare(mixes[0])
        assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())
    for mix, (text, weights) in zip(mixes, expected, strict=True):
        assert torch.equal(put(fuser, mix), text)
        assert all(torch.equal(value, weights[name]) for name, value in weights_of(model).items())
    assert fuser.num_bytes == single.num_bytes < double.num_bytes
    (note,) = fuser.notes
    assert note.startswith("memory 'single' serves: out of memory (")
    assert single.notes == double.notes == []


def test_where_memory_is_short_for_single_too_what_serves_stays_and_a_later_turn_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    fuser = make_fuser(model, make_library(model))
    put(fuser, mix_of(night=1.0))
    before, in_use = weights_of(model), fuser.in_use
    with monkeypatch.context() as patch:
        patch.setattr(WeightSlab, "buffers", ShortMemory(WeightSlab.buffers, MemoryError("no"), is_lasting=True))
        for _ in range(3):
            with pytest.raises(MemoryError):
                fuser.prepare(mix_of(day=1.0))
    assert fuser.in_use is in_use
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())
    assert len(fuser.notes) == 1
    put(fuser, mix_of(day=1.0))
    put(fuser, mix_of(night=1.0))
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_an_adapter_that_is_to_blame_costs_no_standby_copy() -> None:
    model = tiny_model()
    fuser = make_fuser(model, make_library(model))
    size = fuser.num_bytes
    with pytest.raises(AdapterError, match="out of memory"):
        fuser.prepare(mix_of(**{"out of memory": 1.0}))
    assert (fuser.num_bytes, fuser.notes) == (size, [])


class Stream:
    """Stands for a stream of a GPU: knows whether it is the current one, and whether it was waited for."""

    def __init__(self) -> None:
        self.is_current, self.is_done = False, True

    def __enter__(self) -> None:
        self.is_current, self.is_done = True, False

    def __exit__(self, *_failure: object) -> None:
        self.is_current = False

    def synchronize(self) -> None:
        assert not self.is_current
        self.is_done = True


def test_on_a_gpu_weights_are_written_on_one_stream_and_nothing_else_is_waited_for(monkeypatch) -> None:
    model = tiny_model()
    fuser, stream = make_fuser(model, make_library(model)), Stream()
    fuser._stream = stream
    monkeypatch.setattr(torch.cuda, "stream", lambda given: given)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("waits for the whole device"))
    written: list[str] = []

    def on_stream(name: str) -> Callable[..., object]:
        plain = getattr(WeightSlab, name)

        def write(*given: object) -> object:
            assert stream.is_current, name
            written.append(name)
            return plain(*given)

        return write

    for name in ("fuse", "swap", "use_base", "restore"):
        monkeypatch.setattr(WeightSlab, name, on_stream(name))

    def take(_text: Tensor) -> None:
        assert stream.is_done, "class embeddings are taken over before the weights are there"

    def refuse(_text: Tensor) -> None:
        raise AdapterError("refused")

    fuser.commit(fuser.prepare(mix_of(day=0.6, fog=0.4)), take)
    with pytest.raises(AdapterError, match="refused"):
        fuser.commit(fuser.prepare(mix_of(night=1.0)), refuse)
    fuser.use_base(take)
    assert set(written) == {"fuse", "swap", "use_base", "restore"}
    assert stream.is_done
