"""The rules of the gate, on made streams of looks at rates from one in ten seconds to thirty in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from semla_ros.adaptation.drift_gate import LONGEST_RUN, DriftGate, GateDecision
from semla_ros.adaptation.retrieval import fusion_weights
from semla_ros.config import DriftConfig
from semla_ros.errors import ImageError
from semla_ros.results import AdapterMix

SECOND = 1_000_000_000
DIMENSIONS = 24
RATES_HZ = [0.1, 0.5, 2.0, 4.0, 10.0, 30.0]
NAMES = ("day", "fog", "night", "other day")
CENTROIDS = dict(zip(NAMES, np.random.default_rng(7).normal(0, 2.0, (len(NAMES), DIMENSIONS)), strict=True))
CENTROIDS["other day"] = CENTROIDS["day"] + np.random.default_rng(8).normal(0, 0.3, DIMENSIONS)

Scene = Callable[[float], np.ndarray]


def retrieve(look: np.ndarray, scale: float = 1.0) -> AdapterMix:
    distances = np.array([np.linalg.norm(look / scale - CENTROIDS[name]) for name in NAMES])
    order = np.argsort(distances, kind="stable")[:3]
    return AdapterMix(
        names=tuple(NAMES[index] for index in order),
        weights=fusion_weights(distances[order], 0.02),
        distances=distances[order],
        base_weight=0.0,
    )


class Stream:
    """A gate as the pipeline runs it: what it decides is put into use."""

    def __init__(self, rate_hz: float = 2.0, *, scale: float = 1.0, **settings: float) -> None:
        self.rate_hz, self.scale = rate_hz, scale
        self.gate = DriftGate(DriftConfig(retrieval_rate_hz=rate_hz, **settings))
        self.in_use = AdapterMix()
        self.stands_by: AdapterMix | None = None
        self.stamps_ns: list[int] = []
        self.decisions: list[GateDecision] = []
        self.fusions: list[int] = []  # number of the look
        self.recalls: list[int] = []

    def look(self, scene: np.ndarray) -> GateDecision:
        stamp_ns = round((100 + len(self.decisions) / self.rate_hz) * SECOND)
        embedding = (scene * self.scale).astype(np.float32)
        decision = self.gate.update(embedding, retrieve(embedding, self.scale), self.in_use, stamp_ns, self.stands_by)
        if decision.has_drifted:
            self.in_use, self.stands_by = decision.mix, self.in_use
            self.gate.accept(decision.mix, is_recall=decision.is_recall)
            (self.recalls if decision.is_recall else self.fusions).append(len(self.decisions))
        self.stamps_ns.append(stamp_ns)
        self.decisions.append(decision)
        return decision

    def looks(self, scenes: Sequence[np.ndarray]) -> Stream:
        for scene in scenes:
            self.look(scene)
        return self


def noisy(name: str, count: int, seed: int, noise: float = 0.4) -> list[np.ndarray]:
    return list(CENTROIDS[name] + np.random.default_rng(seed).normal(0, noise, (count, DIMENSIONS)))


def between(share: float) -> np.ndarray:
    return CENTROIDS["day"] + share * (CENTROIDS["night"] - CENTROIDS["day"])


def test_the_first_scene_is_fused_as_it_is_retrieved() -> None:
    stream = Stream()
    decision = stream.look(CENTROIDS["day"])
    assert (decision.has_drifted, decision.drift) == (True, None)
    assert decision.mix.id == retrieve(CENTROIDS["day"].astype(np.float32)).id
    np.testing.assert_array_equal(decision.scene, CENTROIDS["day"].astype(np.float32))


def test_a_mix_that_was_not_put_into_use_is_asked_for_again() -> None:
    gate = DriftGate()
    for second in range(4):
        assert gate.update(CENTROIDS["day"], retrieve(CENTROIDS["day"]), AdapterMix(), second * SECOND).has_drifted
    gate.accept(retrieve(CENTROIDS["day"]))
    decision = gate.update(CENTROIDS["day"], retrieve(CENTROIDS["day"]), retrieve(CENTROIDS["day"]), 4 * SECOND)
    assert (decision.has_drifted, decision.drift) == (False, 0.0)


@pytest.mark.parametrize("camera_hz", [4.0, 10.0, 30.0, 60.0])
def test_scenes_are_embedded_at_most_at_the_configured_rate_of_image_time(camera_hz: float) -> None:
    gate = DriftGate(DriftConfig(retrieval_rate_hz=2.0))
    rng = np.random.default_rng(0)
    seconds = 100 + np.arange(int(60 * camera_hz)) / camera_hz + rng.normal(0, 0.001, int(60 * camera_hz))
    taken = [int(stamp) for stamp in (seconds * SECOND).astype(np.int64) if gate.should_embed(int(stamp))]
    assert np.diff(taken).min() / SECOND > 0.48
    assert 110 <= len(taken) <= 122


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("seed", range(3))
def test_a_steady_noisy_scene_is_fused_for_at_most_once_more(rate_hz: float, seed: int) -> None:
    """Between two domains that differ little, single looks ask for either."""
    scene = (CENTROIDS["day"] + CENTROIDS["other day"]) / 2
    looks = scene + np.random.default_rng(seed).normal(0, 0.4, (max(60, int(120 * rate_hz)), DIMENSIONS))
    stream = Stream(rate_hz).looks(list(looks))
    assert len({retrieve(look).heaviest for look in looks}) == 2
    assert len(stream.fusions) <= 2
    assert np.mean([decision.is_dwelling for decision in stream.decisions]) < 0.5


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("seed", range(3))
def test_single_outliers_never_fuse(rate_hz: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    looks = noisy("day", 300, seed)
    at = np.cumsum(rng.integers(3, 9, 40))
    for index in at:
        looks[index] = rng.normal(0, 10.0 ** rng.uniform(0, 2), DIMENSIONS) if rng.random() < 0.5 else 0 * looks[index]
    assert Stream(rate_hz).looks(looks).fusions == [0]


@pytest.mark.parametrize("rate_hz", [0.1, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("history", [6, 40, 400])
@pytest.mark.parametrize("seed", range(3))
def test_another_scene_is_followed_at_its_second_look(rate_hz: float, history: int, seed: int) -> None:
    stream = Stream(rate_hz, max_fusions_per_min=60)
    for number, name in enumerate(("day", "fog", "night", "day", "fog")):
        before = len(stream.decisions)
        stream.looks(noisy(name, history, 10 * seed + number, noise=0.2))
        fusions = [index - before for index in stream.fusions if index >= before]
        assert fusions == ([1] if before else [0])
        assert stream.in_use.heaviest == name


@pytest.mark.parametrize("rate_hz", [10.0, 30.0])
def test_fast_looks_at_another_scene_must_last_a_fifth_of_a_second(rate_hz: float) -> None:
    stream = Stream(rate_hz).looks(noisy("day", 100, 0, noise=0.2))
    stream.looks(noisy("night", int(0.15 * rate_hz), 1, noise=0.2)).looks(noisy("day", 100, 2, noise=0.2))
    assert stream.fusions == [0]
    before = len(stream.decisions)
    stream.looks(noisy("night", 100, 3, noise=0.2))
    assert 0.2 <= (stream.fusions[1] - before) / rate_hz + 1e-9 < 0.2 + 2 / rate_hz
    assert len(stream.fusions) == 2


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("seed", range(3))
def test_the_scale_of_an_encoder_changes_nothing(scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    looks = [look for name in rng.choice(NAMES, 12) for look in noisy(name, int(rng.integers(1, 20)), seed, noise=0.5)]
    one, other = Stream(), Stream(scale=scale)
    one.looks(looks)
    other.looks(looks)
    assert one.fusions == other.fusions
    assert len(one.fusions) > 2
    assert [item.is_dwelling for item in one.decisions] == [item.is_dwelling for item in other.decisions]
    np.testing.assert_allclose(one.in_use.weights, other.in_use.weights, atol=1e-5)


@pytest.mark.parametrize("cap", [0.5, 1.0, 4.0, 12.0, 30.0])
@pytest.mark.parametrize("rate_hz", [0.5, 2.0, 10.0])
def test_no_minute_sees_more_fusions_than_the_cap(cap: float, rate_hz: float) -> None:
    rng = np.random.default_rng(3)
    stream = Stream(rate_hz, max_fusions_per_min=cap)
    while len(stream.decisions) < 300 * rate_hz:
        stream.looks(noisy(str(rng.choice(NAMES[:3])), int(rng.integers(1, 6)), len(stream.decisions)))
    at_s = np.array([stream.stamps_ns[index] for index in stream.fusions]) / SECOND
    busiest = max(int(((at_s >= start) & (at_s < start + 60 - 1e-6)).sum()) for start in at_s)
    assert busiest <= max(1, cap)
    assert len(at_s) > 1


@pytest.mark.parametrize("each_s", [0.5, 1.0, 2.0])
def test_what_flickers_between_three_scenes_faster_than_the_cap_allows_gets_a_blend(each_s: float) -> None:
    stream = Stream(max_fusions_per_min=6)
    for number in range(int(180 / each_s)):
        stream.looks(noisy(("day", "fog", "night")[number % 3], int(2 * each_s), number, noise=0.2))
    late = [index for index in stream.fusions if index > 180]
    assert len(late) <= 2
    shares = stream.in_use.shares()
    assert max(shares.values()) < 0.75
    assert sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("rate_hz", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("half", [1, 2, 5, 40])  # looks
@pytest.mark.parametrize("seed", range(3))
def test_what_flickers_between_two_scenes_is_recalled_at_each_first_look(rate_hz: float, half: int, seed: int) -> None:
    stream = Stream(rate_hz).looks(noisy("day", 40, seed, noise=0.2)).looks(noisy("night", 40, seed + 10, noise=0.2))
    known, wrong = len(stream.decisions), 0
    for number in range(30):
        name = ("day", "night")[number % 2]
        for look in noisy(name, half, 100 * seed + number, noise=0.2):
            stream.look(look)
            wrong += stream.in_use.heaviest not in (name, f"other {name}")
    assert wrong == 0
    assert len(stream.recalls) == 30
    assert all(index < known for index in stream.fusions)


def test_a_recall_takes_nothing_from_the_cap() -> None:
    stream = Stream(max_fusions_per_min=0.5).looks(noisy("day", 240, 0, noise=0.2))
    stream.looks(noisy("night", 240, 1, noise=0.2))
    fusions = len(stream.fusions)
    for number in range(20):
        stream.looks(noisy(("day", "night")[number % 2], 3, number, noise=0.2))
    assert len(stream.recalls) == 20
    assert len(stream.looks(noisy("fog", 3, 0, noise=0.2)).fusions) == fusions + 1


def test_where_no_mix_stands_by_the_second_look_fuses() -> None:
    """As under `memory: single`, or where another mix was fused meanwhile."""
    for stands_by in (None, retrieve(CENTROIDS["fog"])):
        stream = Stream().looks(noisy("day", 40, 0, noise=0.2)).looks(noisy("night", 40, 1, noise=0.2))
        for expected, look in zip((False, True), noisy("day", 2, 2, noise=0.2), strict=True):
            stream.stands_by = stands_by
            decision = stream.look(look)
            assert (decision.has_drifted, decision.is_recall) == (expected, False)


def test_a_correction_of_the_scene_takes_the_place_of_the_mix_before() -> None:
    stream = Stream().looks(noisy("day", 40, 0, noise=0.2)).looks(noisy("night", 40, 1, noise=0.2))
    stream.gate.accept(retrieve(CENTROIDS["night"]))  # once more for the same scene
    stream.in_use, stream.stands_by = retrieve(CENTROIDS["night"]), stream.in_use
    decisions = [stream.look(look) for look in noisy("day", 2, 2, noise=0.2)]
    assert [item.has_drifted for item in decisions] == [False, True]
    assert not decisions[1].is_recall


@pytest.mark.parametrize("seed", range(3))
def test_what_lies_outside_the_library_is_recalled_at_the_second_look_alone(seed: int) -> None:
    """So that one black image changes nothing, even where the camera has been black a moment ago."""
    gate, base = DriftGate(), AdapterMix(base_weight=1.0, is_out_of_library=True)
    in_use, stands_by, recalls = AdapterMix(), None, []
    blacks = [*range(40, 50), 80, 120, 121]
    for index, look in enumerate(noisy("day", 160, seed, noise=0.2)):
        is_black = index in blacks
        seen = np.zeros(DIMENSIONS) if is_black else look
        decision = gate.update(seen, base if is_black else retrieve(look), in_use, index * SECOND // 2, stands_by)
        if decision.has_drifted:
            in_use, stands_by = decision.mix, in_use
            gate.accept(in_use, is_recall=decision.is_recall)
            recalls += [index] * decision.is_recall
    assert recalls == [50, 121, 122]


def test_the_mix_of_another_scene_is_the_mean_of_the_looks_that_showed_it() -> None:
    """Of those that lie with the latest alone: what is seen on the way there does not count."""
    stream = Stream().looks(noisy("day", 40, 0, noise=0.2))
    for place, name in ((0.5, "fog"), (1.0, "fog"), (1.0, "night")):
        mix, stamp_ns = retrieve(CENTROIDS[name]), stream.stamps_ns[-1] + round((1 + place) * SECOND)
        decision = stream.gate.update(between(place), mix, stream.in_use, stamp_ns + (name == "night") * SECOND)
    assert decision.has_drifted
    shares = decision.mix.shares()
    assert (shares["fog"], shares["night"]) == pytest.approx((0.5, 0.5), abs=0.01)


@pytest.mark.parametrize("rate_hz", [2.0, 10.0, 30.0])
def test_what_the_first_look_got_wrong_is_corrected_once_the_scene_has_settled(rate_hz: float) -> None:
    gate, in_use, fused_s = DriftGate(), AdapterMix(), []
    truth = AdapterMix(names=("fog", "day"), weights=np.array([0.6, 0.4]), distances=np.ones(2), base_weight=0.0)
    for index, look in enumerate(noisy("day", int(30 * rate_hz), 0)):
        mix = truth if index else retrieve(CENTROIDS["day"])
        decision = gate.update(look, mix, in_use, round(index / rate_hz * SECOND))
        if decision.has_drifted:
            in_use = decision.mix
            gate.accept(in_use)
            fused_s.append(index / rate_hz)
    assert len(fused_s) == 2
    assert 2.4 <= fused_s[1] <= 4.0  # not each of the first looks counts, as the scene's spread is not known yet
    assert in_use.heaviest == "fog"


@pytest.mark.parametrize("seconds", [11, 14])
@pytest.mark.parametrize("rate_hz", [2.0, 10.0])
def test_one_scene_is_corrected_at_most_once_in_six_time_constants(seconds: int, rate_hz: float) -> None:
    """Whatever its looks ask for, as at the border of two domains."""
    gate, in_use, fused_s = DriftGate(DriftConfig(steady_s=2.0)), AdapterMix(), []
    for index, look in enumerate(noisy("fog", int(300 * rate_hz), 0)):
        mix = retrieve(CENTROIDS[("day", "night")[int(index / rate_hz / seconds) % 2]])
        decision = gate.update(look, mix, in_use, round(index / rate_hz * SECOND))
        if decision.has_drifted:
            in_use = decision.mix
            gate.accept(in_use)
            fused_s.append(index / rate_hz)
    assert len(fused_s) > 5
    assert min(np.diff(fused_s[1:])) >= 12


@pytest.mark.parametrize("minutes", [2, 20, 120])
def test_a_slow_change_is_followed_in_a_few_steps_however_slow_it_is(minutes: int) -> None:
    rng = np.random.default_rng(minutes)
    count = minutes * 30  # at half a look per second
    looks = [between(share) + rng.normal(0, 0.3, DIMENSIONS) for share in np.linspace(0, 1, count)]
    stream = Stream(0.5).looks(looks).looks(noisy("night", 30, 5, noise=0.3))
    assert stream.in_use.heaviest == "night"
    assert 2 <= len(stream.fusions) <= 6


def test_a_ramp_of_seconds_is_followed_and_ends_right() -> None:
    stream = Stream().looks(noisy("day", 20, 0, noise=0.2))
    ramp = [between(share) for share in np.linspace(0.2, 1, 5)]
    stream.looks(ramp).looks(noisy("night", 2, 1, noise=0.2))
    assert stream.in_use.heaviest == "night"
    assert len(stream.looks(noisy("night", 60, 2, noise=0.2)).fusions) <= 4


def test_looks_that_agree_on_nothing_but_stand_off_are_followed_in_the_end() -> None:
    stream = Stream().looks(noisy("day", 40, 0, noise=0.1))
    rng = np.random.default_rng(1)
    stream.looks([CENTROIDS["night"] + rng.normal(0, 1.5, DIMENSIONS) for _ in range(LONGEST_RUN)])
    assert stream.in_use.heaviest == "night"


def test_a_camera_that_is_black_for_seconds_is_right_again_at_the_second_look() -> None:
    stream = Stream().looks(noisy("day", 40, 0, noise=0.2)).looks([np.zeros(DIMENSIONS)] * 10)
    stream.looks(noisy("day", 2, 1, noise=0.2))
    assert stream.in_use.heaviest == "day"
    assert len(stream.looks(noisy("day", 60, 2, noise=0.2)).fusions) <= 4


def test_a_first_look_at_nothing_is_corrected_within_a_few_looks() -> None:
    stream = Stream().looks([0 * CENTROIDS["day"] + 50]).looks(noisy("night", 3, 0, noise=0.1))
    assert stream.in_use.heaviest == "night"


def test_a_steady_difference_is_waited_for_and_then_fused() -> None:
    stream = Stream(steady_s=5.0).looks(noisy("day", 30, 0))
    stream.in_use = retrieve(CENTROIDS["fog"])  # by hand
    decisions = [stream.look(look) for look in noisy("day", 12, 1)]
    waited = [item.has_drifted for item in decisions].index(True)
    assert waited == 8  # 0.6 x 5 s of what is beyond the threshold, at half a second each
    assert all(item.is_dwelling for item in decisions[:waited])
    assert decisions[0].drift is not None
    assert decisions[0].drift > 0.9
    assert not decisions[-1].is_dwelling


@pytest.mark.parametrize(("rate_hz", "looks"), [(1.0, 4), (2.0, 4), (10.0, 16)])
def test_a_recall_that_the_looks_after_it_do_not_ask_for_is_given_up(rate_hz: float, looks: int) -> None:
    """As where a street at night looks like dusk for a moment, and its looks then lie too near to stand off."""
    stream = Stream(rate_hz).looks(noisy("day", 60, 0)).looks(noisy("night", 60, 1))
    stream.look(CENTROIDS["day"])
    assert len(stream.recalls) == 1
    gate, stamp_ns = stream.gate, stream.stamps_ns[-1]
    for index, look in enumerate(noisy("day", 60, 2), start=1):
        decision = gate.update(
            look, retrieve(CENTROIDS["fog"]), stream.in_use, stamp_ns + round(index / rate_hz * SECOND)
        )
        if decision.has_drifted:
            break
    assert index == looks
    assert decision.mix.heaviest == "fog"
    assert not decision.is_recall


def test_a_recall_that_one_look_asks_for_is_no_longer_on_trial() -> None:
    stream = Stream().looks(noisy("day", 60, 0)).looks(noisy("night", 60, 1)).looks(noisy("day", 2, 2))
    assert len(stream.recalls) == 1
    stamp_ns = stream.stamps_ns[-1]
    for index, look in enumerate(noisy("day", 6, 3), start=1):
        mix = retrieve(CENTROIDS["fog"])
        decision = stream.gate.update(look, mix, stream.in_use, stamp_ns + round(index / 2 * SECOND))
        assert not decision.has_drifted


def test_two_looks_far_from_the_scene_need_not_lie_together_as_closely() -> None:
    """The first look into a bank of fog sees its edge."""
    near, far = (Stream().looks(noisy("day", 60, 0, noise=noise)) for noise in (1.0, 0.1))
    for stream in (near, far):
        stream.looks([between(0.7), between(1.0)])
    assert [stream.in_use.heaviest for stream in (near, far)] == ["day", "night"]
    assert retrieve(between(1.0)).difference(far.in_use) < 0.01  # that of the latest look alone


def test_mixes_of_before_count_no_longer_once_they_are_forgotten() -> None:
    stream = Stream().looks(noisy("day", 30, 0, noise=0.1))
    stream.gate.forget_mixes()
    mix = AdapterMix(names=("new",), weights=np.ones(1), distances=np.zeros(1), base_weight=0.0)
    decision = stream.gate.update(CENTROIDS["day"], mix, mix, stream.stamps_ns[-1] + SECOND)
    assert decision.mix is mix
    assert decision.drift == 0.0


def test_another_mix_than_the_one_decided_on_is_what_the_average_goes_on_from() -> None:
    stream = Stream().looks(noisy("day", 30, 0, noise=0.1))
    instead = retrieve(CENTROIDS["fog"])
    stream.gate.accept(instead)
    drift = stream.gate.update(
        CENTROIDS["day"], retrieve(CENTROIDS["day"]), instead, stream.stamps_ns[-1] + SECOND
    ).drift
    assert drift == pytest.approx(0.5, abs=0.05)


def test_a_blend_has_no_more_adapters_than_one_of_its_mixes_and_sums_to_one() -> None:
    stream = Stream(mix_threshold=0.0, steady_s=0.0, max_fusions_per_min=1e6)
    rng = np.random.default_rng(0)
    stream.looks([rng.normal(0, 2, DIMENSIONS) for _ in range(100)])
    assert len(stream.fusions) > 50
    for decision in stream.decisions:
        assert len(decision.mix.names) <= 3
        assert float(decision.mix.weights.sum()) + decision.mix.base_weight == pytest.approx(1.0)


def test_a_stamp_that_jumps_back_starts_over() -> None:
    stream = Stream().looks(noisy("day", 20, 0))
    assert stream.gate.should_embed(3 * SECOND)
    decision = stream.gate.update(CENTROIDS["night"], retrieve(CENTROIDS["night"]), stream.in_use, 3 * SECOND)
    assert decision.has_drifted
    np.testing.assert_array_equal(decision.scene, CENTROIDS["night"].astype(np.float32))


def test_frames_of_several_cameras_out_of_order_do_not_start_over() -> None:
    stream = Stream().looks([CENTROIDS["day"]] * 10)
    stream.gate.should_embed(stream.stamps_ns[-1])
    late_ns = stream.stamps_ns[-1] - SECOND // 10
    assert not stream.gate.should_embed(late_ns)
    assert stream.gate.update(CENTROIDS["day"], retrieve(CENTROIDS["day"]), stream.in_use, late_ns).drift == 0.0


def test_reset_forgets_the_scene_and_the_rate() -> None:
    stream = Stream().looks([CENTROIDS["day"]] * 3)
    stream.gate.should_embed(SECOND)
    stream.gate.reset()
    assert stream.gate.should_embed(SECOND)
    assert stream.look(CENTROIDS["day"]).has_drifted


def test_an_embedding_that_is_not_finite_leaves_the_gate_as_it_was() -> None:
    stream = Stream().looks([CENTROIDS["day"]] * 10)
    with pytest.raises(ImageError, match="not finite"):
        stream.gate.update(CENTROIDS["day"] * np.nan, retrieve(CENTROIDS["day"]), stream.in_use, 110 * SECOND)
    assert stream.look(CENTROIDS["day"]).drift == 0.0
