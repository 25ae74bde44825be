import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from semla_ros.engines.export import HalfPrecision
from semla_ros.engines.gates import COSINE, judge, largest_deviation, parity_problem, smallest_cosine
from semla_ros.segmentation.fixed_component import FixedComponent


class FarFromZero(nn.Module):
    """A layer whose output lies about 100, as after a shift, and spreads by about 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 32)
        nn.init.normal_(self.layer.bias)
        nn.init.normal_(self.layer.weight, std=0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 100.0

    def without_bias(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight) + 100.0


@pytest.fixture
def component() -> FixedComponent:
    module = FarFromZero()
    return FixedComponent(
        name="far",
        module=module,
        inputs=(torch.randn(4, 16, generator=torch.Generator().manual_seed(1)),),
        input_names=("x",),
        max_batch=8,
        original=module.forward,
        shadow=(),
    )


def test_a_bias_that_is_missing_far_from_zero_is_seen_though_the_cosine_passes(component) -> None:
    with torch.inference_mode():
        given, expected = component.module.without_bias(*component.inputs), component.original(*component.inputs)
    assert smallest_cosine(given, expected) > COSINE
    verdict = judge(component, component.module.without_bias)
    assert not verdict.passed
    assert verdict.cosine > COSINE
    assert "of the output's spread, above 5%" in verdict.reason


def test_a_runner_agrees_with_fp32_and_competes_with_the_precision_that_serves(component) -> None:
    def serving():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def answer(x: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        return component.original(x)

    def measure(call) -> float:
        call()
        return 1.0 if torch.is_autocast_enabled("cpu") else 2.0

    verdict = judge(component, answer, measure=measure, serving=serving)
    assert (verdict.torch_ms, verdict.engine_ms, verdict.cosine) == (1.0, 2.0, pytest.approx(1))
    assert "not faster" in verdict.reason


def test_half_precision_of_every_healthy_component_passes_parity(world) -> None:
    for item in world.components:
        with torch.inference_mode():
            given, expected = HalfPrecision(item.module)(*item.inputs), item.original(*item.inputs)
        assert not parity_problem(smallest_cosine(given, expected), largest_deviation(given, expected)), item.name


def test_deviation_is_the_worst_items_rms_as_a_share_of_the_spread() -> None:
    expected = torch.tensor([[9.0, 11.0], [9.0, 11.0]])  # standard deviation 1 about 10
    given = expected + torch.tensor([[0.0], [0.5]])
    assert largest_deviation(given, expected) == pytest.approx(0.5)
    assert largest_deviation(expected, expected) == 0.0


def test_what_cannot_be_compared_deviates_without_bound() -> None:
    ones = torch.ones(2, 3)
    assert largest_deviation(ones[:1], ones) == float("inf")
    assert largest_deviation(ones * float("nan"), torch.arange(6.0).reshape(2, 3)) == float("inf")
    assert largest_deviation(ones * 1.001, ones) == float("inf")  # a constant tells nothing apart
    assert parity_problem(float("nan"), float("nan"))
    assert parity_problem(1.0, float("nan"))


def test_a_runner_that_fails_while_it_is_timed_is_refused(component) -> None:
    calls = []

    def failing_later(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) > 3:
            raise RuntimeError("an illegal memory access was encountered")
        return component.original(x)

    verdict = judge(component, failing_later)
    assert not verdict.passed
    assert verdict.reason == "far: does not run (an illegal memory access was encountered)"
