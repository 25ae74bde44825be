from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from centroid_library import library_of, library_with

from semla_ros.adaptation import strangeness
from semla_ros.adaptation.retrieval import Retriever, fusion_weights
from semla_ros.config import RetrievalConfig
from semla_ros.errors import ImageError, LibraryError
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.centroids import statistics_of
from semla_ros.library.domain_statistics import DomainStatistics


def config(**settings: object) -> RetrievalConfig:
    return RetrievalConfig(**settings)  # type: ignore[arg-type]


LINE = np.array([[0.0, 0], [1, 0], [2, 0], [4, 0], [8, 0]])


def test_examples_are_compared_for_the_first_scene_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[AdapterLibrary] = []
    made_of, library = strangeness.Strangeness, library_of(LINE)
    monkeypatch.setattr(strangeness, "Strangeness", lambda library: made.append(library) or made_of(library))
    retriever = Retriever(library)
    assert made == []
    for _ in range(2):
        retriever.retrieve(LINE[1])
    assert made == [library]


def test_nearest_centroid_gets_the_largest_weight() -> None:
    weights = fusion_weights(np.array([0.4, 0.1, 0.9], np.float32), temperature=0.05)
    assert weights.argmax() == 1
    assert weights.sum() == pytest.approx(1.0)


def test_weights_are_a_softmax_over_inverse_distance() -> None:
    distances = np.array([2.0, 4.0, 5.0])
    expected = np.exp(1 / distances / 0.3)
    np.testing.assert_allclose(fusion_weights(distances, 0.3), expected / expected.sum())


@pytest.mark.parametrize("temperature", [1e-300, 1e-12, 1e-6, 0.05, 1e6])
@pytest.mark.parametrize("nearest", [0.0, 1e-320, 1e-30, 1e-6, 1.0])
def test_weights_are_numbers_at_any_distance_and_temperature(temperature: float, nearest: float) -> None:
    weights = fusion_weights(np.array([nearest, 2.0, 3.0]), temperature)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0)
    assert weights[0] == weights.max()


def test_adapters_at_distance_zero_share_all_weight() -> None:
    np.testing.assert_array_equal(fusion_weights(np.array([0.0, 1.0, 0.0]), 0.05), [0.5, 0.0, 0.5])


def test_a_mix_holds_the_nearest_adapters_heaviest_first() -> None:
    mix = Retriever(library_of(LINE), config(top_k=3, temperature=1.0)).retrieve(np.array([1.9, 0.5]))
    assert mix.names == ("a2", "a1", "a0")
    np.testing.assert_allclose(mix.distances, np.hypot([0.1, 0.9, 1.9], 0.5), rtol=1e-6)
    assert mix.weights.sum() + mix.base_weight == pytest.approx(1.0)
    assert mix.base_weight == 0.0


def test_top_k_above_the_size_of_the_library_takes_all() -> None:
    mix = Retriever(library_of(LINE), config(top_k=50, temperature=10.0)).retrieve(np.array([1.9, 0.5]))
    assert set(mix.names) == {"a0", "a1", "a2", "a3", "a4"}


@pytest.mark.parametrize("count", [8, 400])
def test_ties_keep_library_order(count: int) -> None:
    centroids = np.zeros((count, 4))
    centroids[np.arange(count), np.arange(count) % 4] = 1.0  # all equally far from the origin's diagonal
    mix = Retriever(library_of(centroids), config(top_k=3)).retrieve(np.ones(4))
    assert mix.names == ("a0", "a1", "a2")


def test_excluded_adapters_are_ignored_as_if_they_were_not_there() -> None:
    library, scene = library_of(LINE), np.array([1.9, 0.5])
    settings = config(top_k=2, temperature=1.0)
    without = Retriever(library, settings).retrieve(scene, exclude=("a2", "unknown"))
    alone = Retriever(library_of(np.delete(LINE, 2, axis=0)), settings).retrieve(scene)
    assert without.as_dict() == alone.as_dict()
    assert without.names == ("a1", "a0")


def test_an_adapter_that_turned_out_damaged_is_passed_over() -> None:
    library = library_of(LINE)
    retriever = Retriever(library, config(top_k=1))
    assert retriever.retrieve(np.array([1.9, 0.5])).names == ("a2",)
    library.problems["a2"] = "damaged"
    assert retriever.retrieve(np.array([1.9, 0.5])).names == ("a1",)


def test_nothing_left_to_retrieve_is_an_error() -> None:
    retriever = Retriever(library_of(LINE[:2]))
    with pytest.raises(LibraryError, match="no adapter is left"):
        retriever.retrieve(np.zeros(2), exclude=("a0", "a1"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_an_error(value: float) -> None:
    with pytest.raises(ImageError, match="not finite"):
        Retriever(library_of(LINE)).retrieve(np.array([value, 0.0]))


def test_an_embedding_of_another_length_names_both_lengths() -> None:
    with pytest.raises(LibraryError, match=r"3 values.* 2"):
        Retriever(library_of(LINE)).retrieve(np.zeros(3))


# Cosine


def test_cosine_compares_directions_only() -> None:
    retriever = Retriever(
        library_of(np.array([[10.0, 0], [0, 0.1], [3, 3]])),
        config(distance="cosine", top_k=2, fade_out_of_library=False),
    )
    mix = retriever.retrieve(np.array([0.1, 50.0]))
    assert mix.names[0] == "a1"
    scene = np.array([2.0, 1.0])
    expected = 1 - np.array([2, 1, 3 / np.sqrt(2)]) / np.sqrt(5)
    np.testing.assert_allclose(retriever.distances(scene), expected, atol=1e-6)


def test_a_zero_embedding_has_no_direction() -> None:
    with pytest.raises(ImageError, match="no direction"):
        Retriever(library_of(LINE), config(distance="cosine")).retrieve(np.zeros(2))


# Past the paper


def test_outside_its_domain_an_adapter_gives_its_weight_to_the_base_model() -> None:
    retriever = Retriever(library_of(LINE[:1], spread=[1.0]), config(fade_start=1.0, fade_end=3.0))
    base_weights = []
    for height in (0.5, 1.0, 1.9, 2.1, 2.9, 3.0, 30.0):
        mix = retriever.retrieve(np.array([0.0, height]))
        base_weights.append(mix.base_weight)
        assert mix.is_out_of_library == (height > 2.0)
        assert mix.weights.sum() + mix.base_weight == pytest.approx(1.0)
    np.testing.assert_allclose(base_weights, [0, 0, 0.45, 0.55, 0.95, 1, 1], atol=1e-6)
    assert retriever.retrieve(np.array([0.0, 30.0])).names == ()


def test_each_adapter_is_vouched_for_by_its_own_spread_alone() -> None:
    """Both are equally far; the wide one keeps its weight, that of the tight one goes to the base model."""
    library = library_of(np.array([[-1.0, 0], [1, 0]]), spread=[0.6, 1.2])
    mix = Retriever(library, config(top_k=2, fade_start=1.0, fade_end=1.5)).retrieve(np.zeros(2))
    assert mix.as_dict() == pytest.approx({"a1": 0.5})
    assert mix.base_weight == pytest.approx(0.5)


def test_a_domain_of_everything_does_not_vouch_for_anything() -> None:
    library = library_of(np.vstack([LINE, [[4, 3]]]), spread=[1.0] * 5 + [100.0])
    mix = Retriever(library, config(temperature=1.0)).retrieve(np.array([4.0, 9.0]))
    assert mix.is_out_of_library
    assert mix.base_weight == 1.0


def test_fading_can_be_switched_off_and_is_still_told() -> None:
    off = Retriever(library_of(LINE, spread=[1.0] * 5), config(fade_out_of_library=False)).retrieve(np.array([0, 99.0]))
    assert off.base_weight == 0.0
    assert off.is_out_of_library


def test_an_adapter_without_a_spread_blinds_the_others_for_nothing() -> None:
    library = library_of(np.vstack([LINE, [[0, 1]]]), spread=[1.0] * 5)
    assert library.spread_source == "estimated"
    mix = Retriever(library, config()).retrieve(np.array([0.0, 100.0]))
    assert mix.is_out_of_library
    assert mix.base_weight == 1.0


def test_centroids_alone_never_fade_among_themselves_and_do_far_from_all() -> None:
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(12, 32))
    retriever = Retriever(library_of(centroids), config())
    for scene in rng.dirichlet(np.ones(12), 50) @ centroids:
        assert retriever.retrieve(scene).base_weight == 0.0
    assert retriever.retrieve(100 * centroids[0]).base_weight == 1.0


def test_one_centroid_alone_can_tell_nothing() -> None:
    library = library_of(LINE[:1])
    assert library.spread_source == "unknown"
    mix = Retriever(library, config()).retrieve(np.array([0.0, 100.0]))
    assert (mix.base_weight, mix.is_out_of_library) == (0.0, False)


# Known and strange scenes


def cloud(centre: list[float], seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(scale=0.3, size=(200, len(centre))) + centre).astype(np.float32)


def two_clouds(strange: list[list[float]]) -> AdapterLibrary:
    """Domains about (0, 0, 0) and (4, 0, 0), and what both are held against."""
    against = np.array(strange, np.float32)
    return library_with([statistics_of(cloud([4.0 * index, 0, 0], index), against) for index in range(2)])


def test_beside_a_strange_image_the_base_model_serves_even_within_a_spread() -> None:
    scene = np.array([0.45, 0.45, 0.3])
    far, near = two_clouds([[0, 0, 9]]), two_clouds([[0, 0, 9], [0.6, 0.6, 0.5]])
    assert np.linalg.norm(scene - far.centroids[0]) < far.spread[0]
    assert Retriever(far, config()).retrieve(scene).base_weight < 0.1
    mix = Retriever(near, config()).retrieve(scene + np.array([0.1, 0.1, 0.15]))
    assert mix.is_out_of_library
    assert mix.base_weight > 0.9


def test_a_scene_between_domains_keeps_its_adapters_where_nothing_strange_is_near() -> None:
    library = two_clouds([[0, 0, 9], [0, 9, 0]])
    mix = Retriever(library, config(temperature=1.0)).retrieve(np.array([2.0, 0, 0]))
    assert (library.spread < 1.0).all()
    assert not mix.is_out_of_library
    assert set(mix.names) == {"a0", "a1"}


def test_an_adapter_without_examples_goes_by_its_spread_beside_others_that_have_some() -> None:
    known = [statistics_of(cloud([0, 0, 0], 1), np.array([[0, 0, 9]], np.float32))]
    library = library_with([*known, statistics_of(cloud([0, 9, 0], 2))])
    mix = Retriever(library, config()).retrieve(np.array([0, 9.1, 0.1]))
    assert mix.names[0] == "a1"
    assert mix.base_weight < 0.05


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_small_move_of_the_scene_is_a_small_change_of_the_mix(count: int, metric: str) -> None:
    """Along lines through and past the domains, with fewer adapters than `top_k` and the base model among them."""
    rng = np.random.default_rng(count)
    centres = rng.normal(scale=3, size=(count + 1, 6))
    strange = rng.normal(scale=6, size=(20, 6)).astype(np.float32)
    made = [statistics_of(cloud(list(centre), index), strange) for index, centre in enumerate(centres)]
    retriever = Retriever(library_with(made[:-1], home=made[-1]), config(temperature=1.0, distance=metric))
    for _ in range(2):
        start, end = rng.normal(scale=8, size=(2, 6))
        shares = [retriever.retrieve(start + (end - start) * step).shares() for step in np.linspace(0, 1, 600)]
        moves = [
            sum(abs(one.get(name, 0) - two.get(name, 0)) for name in {*one, *two}) / 2
            for one, two in itertools.pairwise(shares)
        ]
        assert max(moves) < 0.15


def test_small_weights_are_dropped_and_the_rest_shares_theirs() -> None:
    scene, library = np.array([0.9, 0.3]), library_of(LINE)
    full = Retriever(library, config(temperature=1.0)).retrieve(scene)
    sparse = Retriever(library, config(temperature=1.0, min_weight=0.2)).retrieve(scene)
    kept = [name for name, weight in full.as_dict().items() if weight >= 0.2]
    assert list(sparse.names) == kept
    assert 0 < len(kept) < len(full.names)
    assert sparse.weights.sum() == pytest.approx(1.0)
    ratio = full.weights[: len(kept)] / full.weights[: len(kept)].sum()
    np.testing.assert_allclose(sparse.weights, ratio)


def test_the_heaviest_adapter_stays_whatever_the_smallest_weight() -> None:
    mix = Retriever(library_of(LINE), config(temperature=100.0, min_weight=0.9)).retrieve(np.array([0.9, 0.3]))
    assert mix.names[0] == "a1"
    assert mix.weights.sum() == pytest.approx(1.0)


# Many adapters


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_of_many_adapters_are_those_of_a_sort_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, 64))
    rows = (centres[rng.integers(40, size=3000)] + 0.3 * rng.normal(size=(3000, 64))).astype(np.float32)
    rows[100] = rows[7]
    retriever = Retriever(library_of(rows), config(temperature=1.0))
    for query in (rows[5] + np.float32(0.01), rows[7], rng.normal(size=64).astype(np.float32)):
        exact = np.sqrt(((rows.astype(np.float64) - query) ** 2).sum(1))
        for left_out in ([], [3, int(exact.argmin())]):
            expected = exact.copy()
            expected[left_out] = np.inf
            chosen, distances = retriever._nearest(query, left_out, 5)
            np.testing.assert_array_equal(chosen, np.argsort(expected, kind="stable")[:5])
            np.testing.assert_allclose(distances, np.sort(expected)[:5], rtol=1e-5)


@pytest.mark.parametrize("shape", ["random", "offset", "constant", "scaled", "one hot"])
def test_near_centroids_keep_their_order_and_precision(shape: str) -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(2000, 96))
    if shape == "offset":  # a large common part, as raw image features have
        rows = 40.0 + 0.1 * rows
    elif shape == "constant":
        rows[:] = 3.0
        rows[1234] += 1e-3
    elif shape == "scaled":
        rows *= 10.0 ** rng.uniform(-4, 4, (2000, 1))
    elif shape == "one hot":
        rows = np.eye(96)[rng.integers(96, size=2000)]
    rows = rows.astype(np.float32)
    retriever = Retriever(library_of(rows), config(temperature=1.0))
    for query in (rows[7], rows[1234] * np.float32(1.001), rows.mean(0), np.zeros(96, np.float32)):
        chosen, distances = retriever._nearest(query, [], 6)
        everything = np.linalg.norm(rows.astype(np.float64) - query, axis=1)
        np.testing.assert_allclose(distances, np.sort(everything)[:6], rtol=1e-5)
        np.testing.assert_allclose(everything[chosen], np.sort(everything)[:6], rtol=1e-5)


def test_retrieval_from_ten_thousand_adapters_stays_within_a_frame() -> None:
    rows = np.random.default_rng(0).normal(size=(10_000, 128)).astype(np.float32)
    retriever = Retriever(library_of(rows))
    times = []
    for query in rows[:20] + np.float32(0.1):
        start = time.perf_counter()
        retriever.retrieve(query)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02  # a loose bound for a busy machine; bench/ measures it


HOME = DomainStatistics(np.array([3.0, 0], np.float32), spread_p95=1.0)


def test_at_home_the_base_model_gets_the_largest_share() -> None:
    mix = Retriever(library_of(LINE, spread=[1.0] * 5, home=HOME), config(temperature=0.2)).retrieve(np.array([3.1, 0]))
    assert mix.base_weight > 0.9
    assert not mix.is_out_of_library
    np.testing.assert_allclose(mix.weights.sum() + mix.base_weight, 1.0)


def test_the_base_model_weighs_like_an_adapter_at_its_centroid() -> None:
    query = np.array([2.5, 0.5])
    with_home = Retriever(library_of(LINE, home=HOME), config(temperature=0.3)).retrieve(query)
    as_adapter = Retriever(library_of(np.vstack([LINE, HOME.centroid])), config(temperature=0.3, top_k=6)).retrieve(
        query
    )
    expected = as_adapter.as_dict()
    assert with_home.base_weight == pytest.approx(expected.pop("a5"))
    assert with_home.as_dict() == pytest.approx(expected)


def test_the_base_model_comes_in_without_a_jump_where_adapters_are_fewer_than_top_k() -> None:
    retriever = Retriever(library_of(LINE[:2], home=HOME), config(top_k=5, temperature=1.0))
    before, after = (retriever.retrieve(np.array([x, 0.4])).base_weight for x in (1.5 - 1e-4, 1.5 + 1e-4))
    assert 0 < before < after < before + 1e-3


def test_the_base_model_alone_answers_at_its_own_centroid() -> None:
    mix = Retriever(library_of(LINE, home=HOME), config(top_k=1)).retrieve(HOME.centroid)
    assert (mix.names, mix.base_weight) == ((), 1.0)


def test_the_base_model_is_no_candidate_where_that_is_switched_off() -> None:
    settings = config(base_is_candidate=False, fade_out_of_library=False)
    mix = Retriever(library_of(LINE, spread=[1.0] * 5, home=HOME), settings).retrieve(HOME.centroid)
    assert mix.base_weight == 0.0


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_base_model_is_a_candidate_under_every_metric(distance: str) -> None:
    home = DomainStatistics(np.array([1.0, 3.0], np.float32), spread_p95=0.5)
    library = library_of(np.add(LINE[1:], [0, 0.1]), spread=[1.0] * 4, home=home)
    retriever = Retriever(library, config(distance=distance, temperature=0.5, fade_out_of_library=False))
    near, far = retriever.retrieve(np.array([1.0, 2.9])), retriever.retrieve(np.array([4.0, 0.0]))
    assert near.base_weight > 0.5 > far.base_weight
