from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from semla_ros.adaptation.drift_gate import DriftGate, GateDecision
from semla_ros.config import DriftConfig
from semla_ros.errors import ImageError

SECOND = 1_000_000_000
DAY = np.array([10.0, 0, 0, 0, 0, 0, 0, 0])
NIGHT = np.array([4.0, 8, 0, 0, 0, 0, 0, 0])


def drive(
    gate: DriftGate, scene: Callable[[float], np.ndarray], seconds: Iterable[float]
) -> list[tuple[float, GateDecision]]:
    """Run a gate as the pipeline does; returns the decisions of the frames that were embedded."""
    decisions = []
    for second in seconds:
        stamp_ns = int(second * SECOND)
        if not gate.should_embed(stamp_ns):
            continue
        decision = gate.update(scene(second), stamp_ns)
        decisions.append((second, decision))
        if decision.has_drifted:
            gate.accept(stamp_ns)
    return decisions


def times(duration_s: float, rate_hz: float = 10.0, start_s: float = 100.0) -> np.ndarray:
    return start_s + np.arange(int(duration_s * rate_hz)) / rate_hz


def fusions(decisions: list[tuple[float, GateDecision]]) -> list[float]:
    return [second for second, decision in decisions if decision.has_drifted]


def test_the_first_scene_always_counts_as_changed() -> None:
    gate = DriftGate()
    assert gate.should_embed(5 * SECOND)
    decision = gate.update(DAY, 5 * SECOND)
    assert decision.has_drifted
    assert decision.drift is None
    np.testing.assert_array_equal(decision.smoothed, DAY)


def test_until_a_mix_is_accepted_every_scene_counts_as_changed() -> None:
    gate = DriftGate()
    for second in (1, 2, 3):
        assert gate.update(DAY, second * SECOND).has_drifted


@pytest.mark.parametrize("camera_hz", [4.0, 10.0, 30.0, 60.0])
def test_scenes_are_embedded_at_most_at_the_configured_rate_of_image_time(camera_hz: float) -> None:
    gate = DriftGate(DriftConfig(retrieval_rate_hz=2.0))
    rng = np.random.default_rng(0)
    stamps = ((times(60, camera_hz) + rng.normal(0, 0.001, int(60 * camera_hz))) * SECOND).astype(np.int64)
    taken = [int(stamp) for stamp in stamps if gate.should_embed(int(stamp))]
    gaps_s = np.diff(taken) / SECOND
    assert gaps_s.min() > 0.48
    assert 110 <= len(taken) <= 122


def test_a_static_scene_is_retrieved_for_once() -> None:
    decisions = drive(DriftGate(), lambda _: DAY, times(20))
    assert fusions(decisions) == [100.0]
    assert all(decision.drift == 0.0 for _, decision in decisions[1:])


@pytest.mark.parametrize("seed", range(5))
def test_a_static_noisy_scene_does_not_flap(seed: int) -> None:
    """Noise of 15 % of the embedding's length: single values differ by about the threshold."""
    rng = np.random.default_rng(seed)
    scenes = [DAY + rng.normal(0, 1.5 / np.sqrt(8), 8) for _ in range(2000)]
    gate = DriftGate(DriftConfig(smoothing_s=2.0, drift_threshold=0.25))
    decisions = drive(gate, lambda second: scenes[round((second - 100) * 10)], times(200))
    settling_s = 4 * gate.config.smoothing_s + 1 / gate.config.retrieval_rate_hz
    assert [second for second in fusions(decisions) if second > 100 + settling_s] == []


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_step_settles_to_the_new_scene_in_bounded_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = DriftConfig()
    gate = DriftGate(config)

    def scene(second: float) -> np.ndarray:
        return (NIGHT if second >= 110 else DAY) + rng.normal(0, 0.03 * 10 / np.sqrt(8), 8)

    decisions = drive(gate, scene, times(60))
    after = [second for second in fusions(decisions) if second >= 110]
    assert after[0] <= 111.1  # noticed within two turns
    assert after[-1] <= 110 + 4 * config.smoothing_s + 3 / config.retrieval_rate_hz
    last = next(decision for second, decision in reversed(decisions) if decision.has_drifted)
    assert np.linalg.norm(last.smoothed - NIGHT) < config.drift_threshold * np.linalg.norm(NIGHT)


def test_a_change_under_way_is_followed_below_the_threshold_that_began_it() -> None:
    config = DriftConfig(drift_threshold=0.3, release_threshold=0.05, smoothing_s=1.0)
    decisions = drive(DriftGate(config), lambda second: NIGHT if second >= 110 else DAY, times(40))
    drifts = [decision.drift for second, decision in decisions if decision.has_drifted and second >= 110]
    assert drifts[0] > 0.3
    assert any(0.05 < drift <= 0.3 for drift in drifts)
    final = decisions[-1][1]
    assert final.drift is not None
    assert final.drift <= 2 * config.release_threshold


def test_a_small_move_that_stays_does_not_begin_a_change() -> None:
    decisions = drive(DriftGate(), lambda second: DAY * (1.1 if second >= 110 else 1.0), times(40))
    assert fusions(decisions) == [100.0]


def test_a_slow_drift_is_followed_step_by_step() -> None:
    config = DriftConfig()

    def scene(second: float) -> np.ndarray:
        share = np.clip((second - 110) / 60, 0, 1)
        return DAY + share * (NIGHT - DAY)

    decisions = drive(DriftGate(config), scene, times(90))
    assert 3 <= len(fusions(decisions)) <= 60
    last = next(decision for _, decision in reversed(decisions) if decision.has_drifted)
    assert np.linalg.norm(last.smoothed - NIGHT) <= config.drift_threshold * np.linalg.norm(NIGHT)


def test_a_young_mix_is_kept_for_its_shortest_life() -> None:
    config = DriftConfig(min_dwell_s=3.0, retrieval_rate_hz=5.0, smoothing_s=0.0)
    decisions = drive(DriftGate(config), lambda second: DAY if int(second) % 2 else NIGHT, times(30))
    gaps = np.diff(fusions(decisions))
    assert gaps.min() >= 2.9
    dwelling = [decision for _, decision in decisions if decision.is_dwelling]
    assert len(dwelling) > 0
    assert not any(decision.has_drifted for decision in dwelling)


def test_smoothing_depends_on_time_and_not_on_the_number_of_frames() -> None:
    ends = []
    for rate_hz in (2.0, 8.0):
        gate = DriftGate(DriftConfig(retrieval_rate_hz=rate_hz, smoothing_s=1.0))
        decisions = drive(gate, lambda second: NIGHT if second > 100 else DAY, times(1.7, rate_hz=8.0))
        assert decisions[-1][0] == 101.5
        ends.append(decisions[-1][1].smoothed)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5)
    np.testing.assert_allclose(ends[0], DAY + (1 - np.exp(-1.5)) * (NIGHT - DAY), rtol=1e-5)


def test_without_smoothing_the_embedding_itself_counts() -> None:
    gate = DriftGate(DriftConfig(smoothing_s=0.0))
    gate.update(DAY, 0)
    np.testing.assert_array_equal(gate.update(NIGHT, SECOND).smoothed, NIGHT)


def test_a_stamp_that_jumps_back_starts_over() -> None:
    gate = DriftGate()
    drive(gate, lambda _: DAY, times(5))
    assert gate.should_embed(3 * SECOND)
    decision = gate.update(NIGHT, 3 * SECOND)
    assert decision.has_drifted
    np.testing.assert_array_equal(decision.smoothed, NIGHT)


def test_frames_of_several_cameras_out_of_order_do_not_start_over() -> None:
    gate = DriftGate()
    drive(gate, lambda _: DAY, times(5))
    assert not gate.should_embed(int(104.4 * SECOND))
    assert gate.update(DAY, int(104.4 * SECOND)).drift == 0.0


def test_reset_forgets_the_scene_and_the_rate() -> None:
    gate = DriftGate()
    gate.should_embed(SECOND)
    gate.update(DAY, SECOND)
    gate.accept(SECOND)
    gate.reset()
    assert gate.should_embed(SECOND)
    assert gate.update(DAY, SECOND).has_drifted


def test_an_embedding_that_is_not_finite_leaves_the_gate_as_it_was() -> None:
    gate = DriftGate()
    drive(gate, lambda _: DAY, times(5))
    with pytest.raises(ImageError, match="not finite"):
        gate.update(DAY * np.nan, 110 * SECOND)
    assert gate.update(DAY, 111 * SECOND).drift == 0.0


def test_a_mix_that_was_not_accepted_is_asked_for_again() -> None:
    gate = DriftGate(DriftConfig(smoothing_s=0.0))
    gate.update(DAY, 0)
    gate.accept(0)
    assert gate.update(NIGHT, SECOND).has_drifted
    assert gate.update(NIGHT, 2 * SECOND).has_drifted
    gate.accept(2 * SECOND)
    assert not gate.update(NIGHT, 3 * SECOND).has_drifted
