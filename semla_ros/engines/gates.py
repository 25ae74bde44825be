"""What another runtime must show before it serves: the same answer as torch, and sooner."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from semla_ros.errors import first_line

if TYPE_CHECKING:
    from semla_ros.segmentation.fixed_component import FixedComponent, Forward

COSINE = 0.999  # smallest cosine similarity of each probe's output with torch's
DEVIATION = 0.05  # largest RMS difference from torch, as a share of the standard deviation of torch's output
LARGEST_TIME_RATIO = 0.97  # time / torch's time; a tie within the timer's noise is not worth a second runtime
_RUNS = 5

Measure = Callable[[Callable[[], object]], float]  # a call -> milliseconds


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a component may be served by another runtime.

    Attributes:
        name: The component.
        passed: It may.
        reason: Why not, or the figures that let it pass.
        cosine: Smallest over the probe batch; NaN where it could not be measured.
        deviation: Largest over the probe batch, see `largest_deviation`; NaN where it could not be measured.
        torch_ms: Shortest time in torch.
        engine_ms: Shortest time in the other runtime.
        runtime: The other runtime.
    """

    name: str
    passed: bool
    reason: str
    cosine: float = float("nan")
    deviation: float = float("nan")
    torch_ms: float = float("nan")
    engine_ms: float = float("nan")
    runtime: str = ""

    @property
    def time_ratio(self) -> float:
        """Time in the other runtime / time in torch; both were measured in turns."""
        return self.engine_ms / self.torch_ms


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within it a CUDA device is the current one; of any other device there is none."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def make_current(index: int) -> None:
    """A GPU is the current one of this thread from here on."""
    torch.cuda.set_device(index)
    torch.cuda.synchronize(index)  # makes its context now, which is what other copies of the CUDA runtime look at


def smallest_cosine(given: Tensor, expected: Tensor) -> float:
    """Smallest cosine similarity over the leading axis, in double precision; -1 where it is not a number."""
    if given.shape != expected.shape:
        return -1.0
    a, b = (item.detach().double().cpu().reshape(len(item), -1) for item in (given, expected))
    lengths = (a.norm(dim=1) * b.norm(dim=1)).clamp_min(torch.finfo(torch.float64).tiny)
    cosine = float(((a * b).sum(dim=1) / lengths).min())
    return cosine if np.isfinite(cosine) else -1.0


def largest_deviation(given: Tensor, expected: Tensor) -> float:
    """Largest RMS difference of an item, as a share of how far the expected values spread.

    Cosine similarity is measured from zero: where a layer's output lies far from it, a bias that is missing hardly
    turns the vector. Here an offset counts against what the values tell apart.

    Args:
        given: Shape (B, ...).
        expected: The same shape.

    Returns:
        RMS of the difference over one item, the largest of B, divided by the standard deviation of all of `expected`
        about its mean; >= 0. Infinite where the shapes differ, a value is not finite, or `expected` is constant and
        `given` is not the same.
    """
    if given.shape != expected.shape:
        return float("inf")
    a, b = (item.detach().double().cpu().reshape(len(item), -1) for item in (given, expected))
    difference = float((a - b).square().mean(dim=1).sqrt().max())
    if difference == 0.0:
        return 0.0
    spread = float(b.std(correction=0))
    deviation = difference / spread if spread > 0.0 else float("inf")
    return deviation if np.isfinite(deviation) else float("inf")


def parity_problem(cosine: float, deviation: float) -> str:
    """Why an answer counts as another one than torch's; empty where it does not.

    Args:
        cosine: See `smallest_cosine`.
        deviation: See `largest_deviation`.
    """
    if not cosine >= COSINE:
        return f"cosine {cosine:.5f} with torch, below {COSINE}"
    if not deviation <= DEVIATION:
        return f"differs from torch by {deviation:.1%} of the output's spread, above {DEVIATION:.0%}"
    return ""


def one_run_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call, waiting for the current device."""
    is_cuda = torch.cuda.is_available()
    if is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def judge(
    component: FixedComponent,
    runner: Forward,
    *,
    measure: Measure = one_run_ms,
    serving: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Verdict:
    """Compare a runner with torch on the component's probe.

    Both run in turns, so that other load on the machine meets both; the shortest run of each counts.

    Args:
        component: Not mounted.
        runner: Must give torch's answer in fp32.
        measure: Times a call.
        serving: Within it torch computes in the precision that serves, which the runner has to be faster than.
    """
    name = component.name
    cosine = deviation = float("nan")
    torch_ms = engine_ms = float("inf")
    try:
        # `measure` waits for the current device.
        with current(component.inputs[0].device), torch.inference_mode():
            given, expected = runner(*component.inputs), component.original(*component.inputs)
            cosine, deviation = smallest_cosine(given, expected), largest_deviation(given, expected)
            if problem := parity_problem(cosine, deviation):
                return Verdict(name=name, passed=False, reason=f"{name}: {problem}", cosine=cosine, deviation=deviation)
            # One item is what a frame has; the decoder's items are the classes.
            single = component.inputs if len(component.inputs) > 1 else (component.inputs[0][:1],)
            runner(*single)
            for _ in range(_RUNS):
                with serving():
                    torch_ms = min(torch_ms, measure(lambda: component.original(*single)))
                engine_ms = min(engine_ms, measure(lambda: runner(*single)))
    except Exception as error:  # a runtime can fail in any way, and torch always works
        return Verdict(name=name, passed=False, reason=f"{name}: does not run ({first_line(error)})")
    is_faster = engine_ms <= LARGEST_TIME_RATIO * torch_ms
    figures = f"{engine_ms:.2f} ms, torch {torch_ms:.2f} ms"
    parity = f"cosine {cosine:.6f}, deviation {deviation:.2%}"
    return Verdict(
        name=name,
        passed=is_faster,
        reason=f"{name}: {figures}, {parity}" if is_faster else f"{name}: not faster ({figures})",
        cosine=cosine,
        deviation=deviation,
        torch_ms=torch_ms,
        engine_ms=engine_ms,
    )
