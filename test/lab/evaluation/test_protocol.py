import json
import math
from types import SimpleNamespace

import numpy as np
import published_benchmark
import pytest
from toy_world import ADAPTED, CLASSES, HEIGHT, WIDTH, ToyBenchmark, ToyRetriever, ToySpec, ToySubject

from semla_ros.errors import ConfigError, DatasetError
from semla_ros.lab.evaluation.aggregate import Evaluation, as_json, harmonic_mean
from semla_ros.lab.evaluation.protocol import Job, Plan, run, run_job
from semla_ros.lab.evaluation.sources import WorldBenchmark
from semla_ros.lab.evaluation.variants import EXTRA_VARIANTS, PAPER_VARIANTS, VARIANTS, choose_variants, shares
from semla_ros.lab.world.domains import BENCHMARK, UNSEEN
from semla_ros.results import AdapterMix


def toy_plan(**changes: object) -> Plan:
    benchmark = ToyBenchmark()
    settings: dict = {
        "benchmark": benchmark,
        "variants": choose_variants(["paper", "extra"]),
        "domains": benchmark.domain_names,
        "unseen": benchmark.unseen_names,
        "sources": benchmark.source_names,
        "seeds": (0, 1),
        "images": 7,
    }
    return Plan(**{**settings, **changes})


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    plan = toy_plan()
    return Evaluation.collect(plan, run(plan, ToySpec()))


@pytest.fixture(scope="module")
def results(evaluation: Evaluation) -> dict:
    return as_json(evaluation)


def wanted(name: str, own: str | None = "a-fog") -> tuple:
    embedding = np.zeros(2, np.float32)
    retriever = ToyRetriever(ToySubject.recommended)
    return shares(VARIANTS[name], own=own, adapter_names=ADAPTED, retriever=retriever, embedding=embedding)


def test_leaving_one_out_never_uses_the_targets_own_adapter() -> None:
    for variant in (*PAPER_VARIANTS, *EXTRA_VARIANTS):
        if variant.without_own:
            used = {name for share in wanted(variant.name) for name in share.mix.names}
            assert "a-fog" not in used, variant.name
            assert used, variant.name


def test_the_oracle_is_the_own_adapter_alone_and_zero_shot_the_base_model() -> None:
    (oracle,) = wanted("oracle")
    assert oracle.mix.as_dict() == {"a-fog": 1.0}
    (zero_shot,) = wanted("zero_shot")
    assert zero_shot.mix.names == ()
    assert zero_shot.mix.base_weight == 1.0


def test_uniform_weighs_every_adapter_alike() -> None:
    (everyone,), (others,) = wanted("uniform"), wanted("uniform_without_own")
    assert everyone.mix.as_dict() == dict.fromkeys(ADAPTED, 0.2)
    assert others.mix.as_dict() == dict.fromkeys([name for name in ADAPTED if name != "a-fog"], 0.25)


def test_late_fusion_asks_for_each_adapter_alone_with_the_weights_of_the_fused_mix() -> None:
    (fused,) = wanted("semla_without_own")
    parts = wanted("late_fusion_without_own")
    assert all(share.mix.weights.tolist() == [1.0] for share in parts)
    heavy = {name: weight for name, weight in fused.mix.as_dict().items() if weight >= 0.01}
    assert {share.mix.names[0] for share in parts} == set(heavy)
    assert {share.mix.names[0]: share.weight for share in parts} == pytest.approx(
        {name: weight / sum(heavy.values()) for name, weight in heavy.items()}
    )
    assert sum(share.weight for share in parts) == pytest.approx(1)


def test_late_fusion_gives_what_the_mix_leaves_to_the_base_model_to_the_base_model() -> None:
    mix = AdapterMix(names=("a-fog",), weights=np.array([0.75]), distances=np.array([1.0]), base_weight=0.25)
    retriever = SimpleNamespace(retrieve=lambda embedding, exclude=(): mix)
    parts = shares(VARIANTS["late_fusion"], own=None, adapter_names=ADAPTED, retriever=retriever, embedding=np.zeros(2))
    assert [(share.mix.names, share.weight) for share in parts] == [(("a-fog",), 0.75), ((), 0.25)]


def test_unknown_variants_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown variant 'semlaa'; did you mean 'semla'"):
        choose_variants(["semlaa"])


def test_variants_are_chosen_in_order_and_once() -> None:
    names = [variant.name for variant in choose_variants(["semla", "zero_shot", "semla"])]
    assert names == ["semla", "zero_shot"]
    everything = [name for name, variant in VARIANTS.items() if not variant.as_published]
    assert [variant.name for variant in choose_variants(["all"])] == everything


def test_each_distinct_model_is_fused_once_per_job() -> None:
    subject, benchmark = ToySubject(), ToyBenchmark()
    variants = choose_variants(["zero_shot", "uniform", "uniform_without_own", "oracle"])
    result = run_job(subject, benchmark, Job(domain="a-fog", seed=0, indices=(0, 1, 2)), variants)
    assert len(subject.fused) == result.fusions == 4
    assert result.forward_passes == 12


def test_variants_that_ask_for_the_same_model_share_its_answers() -> None:
    subject, benchmark = ToySubject(), ToyBenchmark()
    variants = choose_variants(["oracle", "late_fusion", "semla_nearest"])
    result = run_job(subject, benchmark, Job(domain="c-indoor", seed=0, indices=(0, 1)), variants)
    assert (result.counts["oracle"] == result.counts["semla_nearest"]).all()
    singles = {share.mix.names for share in wanted_by(subject, benchmark, "c-indoor", "late_fusion", range(2))}
    assert result.fusions == len(singles | {("c-indoor",)})


def wanted_by(subject: ToySubject, benchmark: ToyBenchmark, domain: str, variant: str, indices: range) -> list:
    source = benchmark.open(domain)
    return [
        share
        for index in indices
        for share in shares(
            VARIANTS[variant],
            own=domain,
            adapter_names=ADAPTED,
            retriever=ToyRetriever(subject.recommended),
            embedding=subject.embed(source.read(0, index).scene),
        )
    ]


def test_late_fusion_averages_probabilities_not_masks() -> None:
    subject, benchmark = ToySubject(), ToyBenchmark()
    image = benchmark.open("d-fog").read(0, 0)
    result = run_job(subject, benchmark, Job(domain="d-fog", seed=0, indices=(0,)), choose_variants(["late_fusion"]))
    total = np.zeros((len(CLASSES), HEIGHT, WIDTH), np.float32)
    for share in wanted_by(subject, benchmark, "d-fog", "late_fusion", range(1)):
        subject.use(share.mix)
        total += share.weight * subject.probabilities(image.image, (HEIGHT, WIDTH))
    scored = image.labels != 255
    hits = (total.argmax(axis=0) == image.labels)[scored].sum()
    assert np.trace(result.counts["late_fusion"]) == hits
    assert result.counts["late_fusion"].sum() == scored.sum()


def test_workers_and_one_process_agree_to_the_last_pixel() -> None:
    plan = toy_plan(variants=choose_variants(["paper"]), images=4, seeds=(0,))
    progress: list[int] = []
    alone = Evaluation.collect(plan, run(plan, ToySpec()))
    shared = Evaluation.collect(plan, run(plan, ToySpec(), jobs=2, on_progress=progress.append))
    assert as_json(alone) == as_json(shared)
    assert sum(progress) == 4 * len(plan.all_domains)


def test_seeds_and_chunks_add_up_to_all_images(evaluation: Evaluation) -> None:
    assert all(len(traces) == 14 for traces in evaluation.traces.values())
    assert all(len(embeddings) == 14 for embeddings in evaluation.embeddings.values())
    pixels = 7 * (HEIGHT * WIDTH - 1)
    assert {int(counts.sum()) for counts in evaluation.counts.values()} == {pixels}


def test_the_results_have_the_documented_form(results: dict) -> None:
    assert results["seeds"] == [0, 1]
    assert set(results["domains"]) == set(ADAPTED)
    paper = {variant.name for variant in PAPER_VARIANTS}
    for scores in results["domains"].values():
        assert paper <= set(scores)
        assert all(0 <= value <= 1 for value in scores.values())
    assert set(results["h_mean"]) == set(results["domains"]["a-fog"])
    for scores in results["unseen"].values():
        assert {"zero_shot", "uniform", "semla", "late_fusion"} <= set(scores)
        assert not any(name.endswith("_without_own") or name == "oracle" for name in scores)
    json.dumps(results, allow_nan=False)


def test_the_h_mean_is_the_harmonic_mean_of_the_domains(results: dict) -> None:
    for variant, value in results["h_mean"].items():
        values = [scores[variant] for scores in results["domains"].values()]
        assert value == pytest.approx(len(values) / sum(1 / item for item in values), abs=1e-4)


def test_a_domain_of_no_value_makes_the_h_mean_zero() -> None:
    assert harmonic_mean([0.5, 0.0]) == 0.0
    assert math.isnan(harmonic_mean([]))


def test_spread_needs_more_than_one_seed() -> None:
    plan = toy_plan(seeds=(0,), images=2, variants=choose_variants(["zero_shot"]))
    single = as_json(Evaluation.collect(plan, run(plan, ToySpec())))
    assert single["spread"]["h_mean"]["zero_shot"] is None


def test_spread_is_the_deviation_of_the_seeds(results: dict) -> None:
    values = results["per_seed"]["domains"]["a-fog"]["zero_shot"]
    assert results["spread"]["domains"]["a-fog"]["zero_shot"] == pytest.approx(np.std(values, ddof=1), abs=2e-5)
    assert results["domains"]["a-fog"]["zero_shot"] == pytest.approx(np.mean(values), abs=2e-5)


def test_each_image_has_a_trace_of_its_weights(results: dict) -> None:
    traces = results["weights"]["a-fog"]
    assert len(traces) == 14
    assert {(trace["seed"], trace["image"]) for trace in traces} == {(s, f"{s}/{i}") for s in (0, 1) for i in range(7)}
    for trace in traces:
        assert sum(trace["semla"].values()) == pytest.approx(1, abs=1e-3)
        assert "a-fog" not in trace["semla_without_own"]


def test_what_fades_out_is_traced_as_the_base_model(results: dict) -> None:
    assert results["retrieval"]["d-desert"]["semla_fade"]["heaviest"] == {"base model": 1.0}
    assert "base model" not in results["retrieval"]["d-desert"]["semla_no_fade"]["heaviest"]
    assert results["unseen"]["d-desert"]["semla_fade"] == results["unseen"]["d-desert"]["zero_shot"]


def test_the_family_share_counts_relatives_only(evaluation: Evaluation, results: dict) -> None:
    assert evaluation.family_share("semla_without_own", ["a-fog", "b-fog", "a-night", "b-night"]) == 1.0
    assert results["retrieval"]["c-indoor"]["semla_without_own"]["right_family"] == 0.0


def test_the_world_has_twenty_domains_beside_unseen_ones_and_the_base_models_own() -> None:
    world = WorldBenchmark()
    assert world.domain_names == tuple(BENCHMARK)
    assert world.unseen_names == tuple(UNSEEN)
    assert world.source_names == ("clear",)
    assert world.family("base model") == world.family("suburb-clear") == "clear"
    assert world.family("somebody's own") == "somebody's own"


def test_a_domain_of_two_conditions_has_relatives_in_both() -> None:
    world = WorldBenchmark()
    assert world.are_relatives("boulevard-snow-night", "old-town-snow")
    assert world.are_relatives("old-town-night", "boulevard-snow-night")
    assert not world.are_relatives("old-town-night", "old-town-snow")
    assert world.are_relatives("suburb-clear", "base model")
    assert not world.are_relatives("somebody's own", "base model")


def test_world_images_depend_on_seed_and_index_alone() -> None:
    source = WorldBenchmark(width=48, height=36).open("boulevard-fog-day")
    first, again, other = source.read(1, 2), source.read(1, 2), source.read(2, 2)
    assert (first.image == again.image).all()
    assert (first.labels == again.labels).all()
    assert (first.image != other.image).any()
    assert first.image.shape == (36, 48, 3)
    assert first.labels.max() < len(source.class_names)


def test_validation_and_test_scenes_differ() -> None:
    images = [
        WorldBenchmark(split=split, width=48, height=36).open("boulevard-fog-day").read(0, 0).image
        for split in ("val", "test")
    ]
    assert (images[0] != images[1]).any()


@pytest.mark.parametrize(("seed", "count"), [(0, 0), (0, 10_001), (-1, 5), (100, 5)])
def test_scenes_beyond_the_splits_range_are_refused(seed: int, count: int) -> None:
    with pytest.raises(ConfigError):
        WorldBenchmark().open("boulevard-fog-day").indices(seed, count)


def test_published_domains_have_families_of_their_own() -> None:
    benchmark = published_benchmark.BENCHMARK
    assert {benchmark.family(name) for name in benchmark.domain_names} == {
        "rain", "fog", "snow", "night", "street", "photos", "indoor",
    }  # fmt: skip
    assert benchmark.family("muses-rain-night") == "night"


class UnusableDomain:
    """As a domain is whose label files are all of another encoding."""

    class_names = CLASSES

    def indices(self, seed: int, count: int) -> list[int]:
        return list(range(count))

    def read(self, seed: int, index: int) -> object:
        raise DatasetError(f"label file {index}.png holds 77")


class PartlyUnusable(ToyBenchmark):
    def open(self, domain: str) -> object:
        return UnusableDomain() if domain == self.broken else super().open(domain)


def test_a_domain_without_a_usable_image_has_no_figures_and_takes_none_from_the_others(results: dict) -> None:
    plan = toy_plan(benchmark=PartlyUnusable(broken="b-fog"))
    found = as_json(Evaluation.collect(plan, run(plan, ToySpec())))
    assert set(found["domains"].pop("b-fog").values()) == {None}
    assert found["domains"] == {name: scores for name, scores in results["domains"].items() if name != "b-fog"}
    assert set(found["h_mean"].values()) == {None}
    assert found["left_out"] == {"b-fog": [f"label file {index}.png holds 77" for index in range(7)]}
    assert results["left_out"] == {}
    json.dumps(found, allow_nan=False)


def test_without_a_single_usable_image_there_is_nothing_to_report() -> None:
    plan = toy_plan(benchmark=PartlyUnusable(broken="a-fog"), domains=("a-fog",), unseen=(), sources=(), seeds=(0,))
    with pytest.raises(DatasetError, match=r"no image of 7 can be used; the first: label file 0\.png holds 77"):
        Evaluation.collect(plan, run(plan, ToySpec()))
