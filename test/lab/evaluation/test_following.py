"""What a drive is, and what following it is worth, on looks and mixes that are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from semla_ros.config import DriftConfig
from semla_ros.errors import ConfigError
from semla_ros.lab.evaluation.drives import CALM_S, FLICKER_PERIODS_S, KINDS, GateDrive, made_drive, make_drives
from semla_ros.lab.evaluation.following import WAYS, Followed, Look, follow, oracle_mix, scores, summary, weight_of
from semla_ros.lab.evaluation.variants import equal_mix
from semla_ros.results import AdapterMix

FOG, NIGHT = equal_mix(["old-town-fog"]), equal_mix(["old-town-night"])
CENTROIDS = {"old-town-fog": np.array([9.0, 0, 0]), "old-town-night": np.array([0, 9.0, 0])}


def fog_then_night(**changes) -> GateDrive:
    values = {
        "name": "fog then night",
        "kind": "tunnel",
        "drive": made_drive("old-town", 1, [("fog", 9.9), ("night", 10.1)]),
        "duration_s": 20.0,
        "events_s": (9.9,),
    }
    return GateDrive(**(values | changes))


def nearest(embedding: np.ndarray) -> AdapterMix:
    return equal_mix([min(CENTROIDS, key=lambda name: float(np.linalg.norm(embedding - CENTROIDS[name])))])


def looks_of(drive: GateDrive, noise: float = 0.1) -> list[Look]:
    rng = np.random.default_rng(0)
    looks = []
    for time in drive.times_s():
        scene = CENTROIDS["old-town-fog" if "fog" in drive.weathers(time) else "old-town-night"]
        embedding = scene + rng.normal(0, noise, 3)
        looks.append(Look(stamp_ns=round(time * 1e9), embedding=embedding, mix=nearest(embedding)))
    return looks


def test_every_seed_has_drives_of_every_kind_and_chooses_others() -> None:
    one, again, other = make_drives(1), make_drives(1), make_drives(2)
    assert one == again
    assert one != other
    assert {drive.kind for drive in one} == set(KINDS)
    steady = [drive for drive in one if drive.kind == "steady"]
    assert len(steady) == 10
    assert all(len(drive.times_s()) == 240 for drive in steady)
    (slow,) = (drive for drive in one if drive.kind == "slow")
    assert (len(slow.times_s()), slow.rate_hz) == (3600, 0.5)
    flicker = [drive for drive in one if drive.kind == "flicker"]
    assert len(flicker) == len(FLICKER_PERIODS_S)
    for drive, period_s in zip(flicker, FLICKER_PERIODS_S, strict=True):
        names = [drive.weathers(time)[-1] for time in np.arange(CALM_S, 80, 0.01)]
        changes = sum(a != b for a, b in itertools.pairwise(names))
        assert changes == pytest.approx(60 / (period_s / 2), abs=1)
    assert make_drives(1, ["tunnel"]) == [drive for drive in one if drive.kind == "tunnel"]
    with pytest.raises(ConfigError, match="no drive named 'uphill'"):
        make_drives(1, ["uphill"])


def test_a_black_frame_is_one_frame_and_nothing_is_right_there() -> None:
    for seed in range(5):
        (drive,) = make_drives(seed, ["black-frame"])
        black = [time for time in drive.times_s() if drive.is_black(time)]
        assert len(black) == 1
        assert drive.families(black[0]) == frozenset()
        image, mask = drive.render(black[0])
        assert not image.any()
        assert mask.any()
        assert drive.render(black[0] + 0.5)[0].any()
    (drive,) = make_drives(0, ["black-5s"])
    assert sum(map(drive.is_black, drive.times_s())) == 10


def test_the_weather_of_a_transition_is_that_of_both_ends() -> None:
    (slow,) = make_drives(0, ["slow"])
    assert slow.weathers(0.0) == ("clear",)
    assert slow.weathers(1800.0) == ("clear", "dusk")
    assert slow.families(5000.0) == {"low-sun", "night"}
    assert slow.weathers(7199.0) == ("night",)


def test_the_oracle_takes_the_adapters_of_the_weather_and_the_citys_own_first() -> None:
    drive = fog_then_night()
    assert oracle_mix(drive, 1.0).names == ("old-town-fog",)
    assert oracle_mix(drive, 15.0).names == ("old-town-night",)
    alpine = fog_then_night(drive=made_drive("alpine", 1, [("night-rain", 9.0)]), events_s=())
    assert oracle_mix(alpine, 1.0).names == ("boulevard-rain-night",)
    glare = fog_then_night(drive=made_drive("alpine", 1, [("tunnel", 9.0)]), events_s=())
    assert oracle_mix(glare, 1.0).names == ("downtown-tunnel",)


def test_each_way_follows_as_its_name_says() -> None:
    drive = fog_then_night()
    looks = looks_of(drive)
    found = {way: follow(way, looks, DriftConfig(), nearest, drive) for way in WAYS}
    rows = {way: scores(drive, followed) for way, followed in found.items()}
    assert [rows[way]["fusions"] for way in ("base model", "oracle", "every look", "gate")] == [0, 1, 39, 1]
    assert rows["base model"]["wrong_family"] == 1.0
    assert rows["every look"]["wrong_family"] == rows["oracle"]["wrong_family"] == 0.0
    assert rows["gate"]["delay_s"] == pytest.approx(0.6)
    assert rows["gate"]["wrong_family"] == pytest.approx(1 / 40, abs=1e-4)
    assert rows["gate"]["event_fusions"] == 1
    assert rows["former gate"]["fusions"] >= 2
    assert found["gate"].mixes[-1].names == NIGHT.names


def test_scores_count_what_is_measured_alone() -> None:
    drive = fog_then_night(scored_from_s=5.0)
    times = np.array(drive.times_s())
    followed = Followed(
        mixes=[FOG if time < 12 else NIGHT for time in times], fused=[time in (0.0, 3.0, 12.0) for time in times]
    )
    row = scores(drive, followed)
    assert (row["minutes"], row["fusions"], row["most_in_a_minute"]) == (0.25, 1, 1)
    assert row["fusions_per_min"] == 4.0
    assert row["delay_s"] == pytest.approx(2.1)
    assert row["wrong_family"] == pytest.approx(4 / 30, abs=1e-4)
    assert row["right_weight"] == pytest.approx(26 / 30, abs=1e-4)


def test_a_mix_that_is_never_right_is_late_until_the_end() -> None:
    drive = fog_then_night()
    followed = Followed(mixes=[FOG] * 40, fused=[True] + [False] * 39)
    assert scores(drive, followed)["delay_s"] == pytest.approx(9.6)
    half = AdapterMix(
        names=("old-town-fog", "boulevard-fog-night"), weights=np.array([0.5, 0.25]), distances=np.zeros(2),
        base_weight=0.25,
    )  # fmt: skip
    assert weight_of(half, frozenset({"night"})) == 0.25
    assert weight_of(half, frozenset({"clear"})) == 0.25


def test_a_summary_has_means_and_the_worst_of_what_is_promised_of_each_drive() -> None:
    drive = fog_then_night()
    rows = {
        way: {**scores(drive, follow(way, looks_of(drive), DriftConfig(), nearest, drive)), "miou": 0.5} for way in WAYS
    }
    calm = {
        way: {**row, "fusions_per_min": 1.0, "fusions": 9, "delay_s": None, "miou": None} for way, row in rows.items()
    }
    joined = summary({"a": rows, "b": calm}, {"a": "tunnel", "b": "steady"})
    assert list(joined) == ["tunnel", "steady", "all"]
    row = joined["all"]["gate"]
    assert row["fusions_per_min"] == (rows["gate"]["fusions_per_min"] + 1.0) / 2
    assert (row["most_fusions"], row["delay_s"], row["miou"]) == (9, 0.6, 0.5)
    assert joined["steady"]["gate"]["miou"] is None
