"""A mix is written and read in one place."""

import dataclasses
import math

import numpy as np
import pytest

from semla_ros.library.manifest import is_plain_name
from semla_ros.results import BASE_MODEL, AdapterMix, Generation, Level, MaskInfo


def generation(seed: int, count: int, *, is_faded: bool) -> Generation:
    rng = np.random.default_rng(seed)
    parts = rng.random(count + 1)
    if count and not is_faded:
        parts = np.append(np.sort(parts[:count])[::-1], 0.0)
    parts = parts / parts.sum()
    distances = rng.random(count)
    distances[: count // 2] = np.nan
    mix = AdapterMix(
        names=tuple(f"adapter {index}" for index in range(count)),
        weights=parts[:count],
        distances=distances,
        base_weight=float(parts[count]),
        is_out_of_library=is_faded,
    )
    stamp = None if seed % 3 == 0 else int(rng.integers(0, 2**62))
    return Generation(
        number=seed, mix=mix, class_names=("road",), vocabulary_version=3, scene_stamp_ns=stamp, reason="drift"
    )


@pytest.mark.parametrize("seed", range(20))
def test_statuses_read_back_are_the_generation_to_the_last_bit(seed: int) -> None:
    written = generation(seed, seed % 6, is_faded=bool(seed % 2))
    read = Generation.from_statuses(written.statuses(), ("road",), 3)
    for field in ("number", "class_names", "vocabulary_version", "scene_stamp_ns", "reason"):
        assert getattr(read, field) == getattr(written, field)
    assert read.mix.names == written.mix.names
    assert np.array_equal(read.mix.weights, written.mix.weights)
    assert np.array_equal(read.mix.distances, written.mix.distances, equal_nan=True)
    assert read.mix.base_weight == written.mix.base_weight
    assert read.mix.is_out_of_library == written.mix.is_out_of_library


def test_the_base_models_part_has_one_name_and_no_adapter_may_take_it() -> None:
    faded = generation(1, 2, is_faded=True)
    *_, base = faded.statuses()
    assert (base.name, base.level) == (BASE_MODEL, Level.WARN)
    assert list(faded.mix.shares()) == ["adapter 0", "adapter 1", BASE_MODEL]
    assert sum(faded.mix.shares().values()) == pytest.approx(1.0)
    assert not is_plain_name(BASE_MODEL)


def test_what_weighs_most_may_be_the_base_model() -> None:
    mix = AdapterMix(names=("fog",), weights=np.array([0.3]), distances=np.array([np.nan]), base_weight=0.7)
    assert mix.heaviest == BASE_MODEL
    assert str(mix) == "fog 30.0%, base model 70.0%"
    assert AdapterMix().heaviest == BASE_MODEL
    assert str(AdapterMix()) == "base model 100.0%"


@pytest.mark.parametrize(
    ("names", "weights", "base_weight", "words"),
    [
        (("fog",), [1.5], -0.5, "base_weight must be >= 0"),
        (("fog", "day"), [-0.5, 0.5], 1.0, "must be >= 0"),
        (("fog", "fog"), [0.5, 0.5], 0.0, "a name of its own"),
        (("fog", "base model"), [0.5, 0.5], 0.0, "not 'base model'"),
        (("fog",), [math.nan], 0.5, "sum to 1"),
        ((), [], math.nan, "sum to 1"),
    ],
)
def test_a_mix_that_adds_up_by_mistake_is_none(names: tuple, weights: list, base_weight: float, words: str) -> None:
    numbers = np.array(weights, np.float64)
    with pytest.raises(ValueError, match=words):
        AdapterMix(names=names, weights=numbers, distances=np.zeros(len(names)), base_weight=base_weight)


def test_statuses_that_are_no_mix_are_refused() -> None:
    statuses = generation(4, 2, is_faded=True).statuses()
    with pytest.raises(ValueError, match="one status named 'base model', got adapter 0, adapter 1"):
        Generation.from_statuses(statuses[:-1])
    without_weight = dataclasses.replace(statuses[-1], values={"generation": "1", "scene_stamp_ns": "", "reason": "x"})
    with pytest.raises(ValueError, match="lacks 'weight'"):
        Generation.from_statuses([*statuses[:-1], without_weight])


def test_a_mixes_id_depends_on_names_and_weights_alone() -> None:
    def mix(names: tuple[str, ...], weights: list[float], distance: float = 1.0) -> AdapterMix:
        distances = np.full(len(names), distance)
        return AdapterMix(names=names, weights=np.array(weights), distances=distances, base_weight=0.25)

    one = mix(("fog", "night"), [0.5, 0.25])
    assert one.id == mix(("night", "fog"), [0.25, 0.5], distance=9.0).id == one.id
    others = {mix(("fog", "night"), [0.25, 0.5]).id, mix(("fog", "snow"), [0.5, 0.25]).id, AdapterMix().id, one.id}
    assert len(others) == 4
    assert AdapterMix().id == "b0b2496c"  # in every process


def test_what_is_told_of_a_mask_is_read_back() -> None:
    told = MaskInfo(
        camera="front", generation=3, vocabulary_version=2, mix_id="0123abcd", engine="openvino bf16 (encoder)",
        precision="bf16", latency_ms=12.345,
    )  # fmt: skip
    assert MaskInfo.from_status(told.status()) == told
    assert told.status().name == "mask of front"
    with pytest.raises(ValueError, match="lacks 'camera'"):
        MaskInfo.from_status(dataclasses.replace(told.status(), values={"generation": "3"}))


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("", {"base model": 1.0}),
        ("fog", {"fog": 1.0, "base model": 0.0}),
        ("fog 70%, night 20%", {"fog": 0.7, "night": 0.2, "base model": 0.1}),
        ("night 20.0%, base model 10.0%, fog 70.0%", {"fog": 0.7, "night": 0.2, "base model": 0.1}),
        ("a 33.3%, b 33.3%, c 33.3%", {"a": 0.333, "b": 0.333, "c": 0.333, "base model": 0.001}),
    ],
)
def test_a_mix_is_read_as_it_is_written(text: str, shares: dict[str, float]) -> None:
    mix = AdapterMix.parse(text)
    assert mix.shares() == pytest.approx(shares)
    assert list(mix.weights) == sorted(mix.weights, reverse=True)
    again = AdapterMix.parse(str(mix)).shares()
    assert all(again.get(name, 0.0) == pytest.approx(share, abs=0.006) for name, share in shares.items())


@pytest.mark.parametrize(
    "text", ["fog 70%, fog 30%", "fog 70%, night 40%", "fog -5%", "fog nan%", "50%", "fog %", "fog x%", "%"]
)
def test_what_is_no_mix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        AdapterMix.parse(text)
