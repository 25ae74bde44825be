"""The goals of the shipped world, on the figures of the toy world."""

import pytest
from toy_world import ToyBenchmark, ToySpec, family_of

from bench.goals import check_goals, family_share, markdown_table
from semla_ros.lab.evaluation.aggregate import Evaluation, as_json
from semla_ros.lab.evaluation.protocol import Plan, run
from semla_ros.lab.evaluation.variants import choose_variants


@pytest.fixture(scope="module")
def results() -> dict:
    benchmark = ToyBenchmark()
    plan = Plan(
        benchmark=benchmark,
        variants=choose_variants(["paper", "extra"]),
        domains=benchmark.domain_names,
        unseen=benchmark.unseen_names,
        sources=benchmark.source_names,
        seeds=(0, 1),
        images=7,
    )
    return as_json(Evaluation.collect(plan, run(plan, ToySpec())))


def test_only_domains_with_relatives_count_for_the_right_family(results: dict) -> None:
    assert results["retrieval"]["c-indoor"]["semla_without_own"]["right_family"] == 0.0
    assert family_share(results, ToyBenchmark().are_relatives) == 1.0
    assert family_share(results, lambda one, other: family_of(one) != family_of(other)) < 1.0


def test_goals_are_decided_by_the_figures(results: dict) -> None:
    goals = {goal.claim: goal for goal in check_goals(results, 1.0)}
    assert goals["own adapter is found"].is_met
    assert goals["right relatives are retrieved"].is_met
    assert not goals["relatives help everywhere"].is_met
    assert "c-indoor" in goals["relatives help everywhere"].found
    assert goals["no harm out of the library"].is_met
    assert {goal.claim for goal in check_goals(results, float("nan"))} == set(goals) - {"right relatives are retrieved"}


def test_a_loss_out_of_the_library_misses_its_goal(results: dict) -> None:
    worse = {**results, "unseen": {"d-desert": {"zero_shot": 0.30, "semla": 0.28}}}
    goal = next(goal for goal in check_goals(worse, 1.0) if goal.claim == "no harm out of the library")
    assert not goal.is_met
    assert goal.found == "worst -2.0 points on d-desert"


def test_the_table_has_a_line_per_goal(results: dict) -> None:
    lines = markdown_table(check_goals(results, 1.0)).splitlines()
    assert lines[0] == "| claim | wanted | found | |"
    assert len(lines) == 2 + len(check_goals(results, 1.0))
    assert any(line.endswith("| missed |") for line in lines)
