import dataclasses
from itertools import pairwise

import cv2
import numpy as np
import pytest

from semla_ros.errors import ConfigError
from semla_ros.lab.world.caption import caption
from semla_ros.lab.world.cities import CITIES
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.conditions import Conditions
from semla_ros.lab.world.domains import BENCHMARK, SOURCE, UNSEEN, domain_named, split_seed
from semla_ros.lab.world.drive import SEGMENT_FAMILIES, Drive, demo_drive, drive_through
from semla_ros.lab.world.render import render
from semla_ros.labels import palette_of

WEATHERS = ("night", "dusk", "glare", "fog", "rain", "snow")
CAR, SKY, ROAD, BUILDING = (CLASS_NAMES.index(name) for name in ("car", "sky", "road", "building"))


def scene(conditions=None, *, city="old-town", seed=5, **options):
    return render(city=city, seed=seed, conditions=conditions or Conditions(), width=128, height=96, **options)


@pytest.mark.parametrize("city", CITIES)
def test_the_same_arguments_give_the_same_bytes(city):
    everything = Conditions(night=0.4, dusk=0.3, glare=0.5, fog=0.3, rain=0.6, snow=0.4)
    first, second = scene(everything, city=city), scene(everything, city=city)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.mask.tobytes() == second.mask.tobytes()
    assert first.depth_m.tobytes() == second.depth_m.tobytes()


def test_the_number_of_threads_changes_nothing():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = scene(Conditions(rain=0.8, night=0.7)).image
        cv2.setNumThreads(4)
        four = scene(Conditions(rain=0.8, night=0.7)).image
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(one, four)


def test_another_seed_is_another_street():
    assert (scene(seed=1).mask != scene(seed=2).mask).mean() > 0.05


def test_every_class_shows_up_over_a_few_streets_of_the_source_cities():
    share = np.zeros(len(CLASS_NAMES))
    frames = [SOURCE["clear"].scene(split_seed("val", index)).render(128, 96) for index in range(30)]
    for frame in frames:
        share += (np.bincount(frame.mask.ravel(), minlength=len(CLASS_NAMES)) > 15)[: len(CLASS_NAMES)]
        assert frame.mask.max() < len(CLASS_NAMES)
    assert (share / len(frames) > 0.2).all(), dict(zip(CLASS_NAMES, share / len(frames), strict=True))


@pytest.mark.parametrize("city", CITIES)
@pytest.mark.parametrize("weather", WEATHERS)
def test_weather_leaves_mask_and_depth_alone(city, weather):
    clear, severe = scene(city=city), scene(Conditions(**{weather: 1.0}), city=city)
    np.testing.assert_array_equal(clear.mask, severe.mask)
    np.testing.assert_array_equal(clear.depth_m, severe.depth_m)


@pytest.mark.parametrize("weather", WEATHERS)
def test_the_picture_moves_away_from_clear_as_severity_grows(weather):
    clear = scene().image.astype(float)
    change = [np.abs(scene(Conditions(**{weather: s})).image - clear).mean() for s in (0.0, 0.3, 0.6, 1.0)]
    assert change[0] == 0
    assert all(a < b for a, b in pairwise(change)), change
    assert change[-1] > 12


def test_a_vanishing_severity_is_almost_clear():
    clear = scene().image.astype(float)
    for weather in WEATHERS:
        assert np.abs(scene(Conditions(**{weather: 0.01})).image - clear).mean() < 6, weather


def test_fog_takes_contrast_from_far_things_first():
    clear, foggy = scene(city="boulevard", seed=3), scene(Conditions(fog=0.7), city="boulevard", seed=3)

    def kept(low, high):
        where = (clear.depth_m > low) & (clear.depth_m < high)
        return foggy.image[where].std() / clear.image[where].std()

    assert kept(2, 8) > kept(15, 30) > kept(50, 150)


def test_night_is_dark_and_noisy_and_snow_is_bright():
    clear, night, snow = scene().image, scene(Conditions(night=0.9)).image, scene(Conditions(snow=0.9)).image
    assert night.mean() < 0.5 * clear.mean()
    assert snow.mean() > 1.1 * clear.mean()


def test_headlights_light_the_road_ahead_at_night():
    frame = scene(Conditions(night=1.0), city="suburb", seed=9)
    road = frame.mask == ROAD
    near, far = road & (frame.depth_m > 4) & (frame.depth_m < 9), road & (frame.depth_m > 50)
    assert frame.image[near].mean() > frame.image[far].mean()


def test_depth_on_the_road_follows_from_the_camera_height():
    frame = scene(city="suburb")
    style = CITIES["suburb"]
    row = 90
    focal = style.focal * 128
    expected = focal * style.camera_height_m / (row + 0.5 - (48 - focal * np.tan(np.radians(style.pitch_deg))))
    assert np.median(frame.depth_m[row][frame.mask[row] == ROAD]) == pytest.approx(expected, rel=0.02)


def test_sky_lies_above_the_horizon_and_is_farthest():
    frame = scene(city="boulevard")
    rows = np.nonzero(frame.mask == SKY)[0]
    assert rows.size
    assert rows.max() < 60
    assert (frame.depth_m[frame.mask == SKY] == 1000).all()


def test_tunnel_and_garage_have_no_sky():
    assert not (scene(Conditions(tunnel=0.8)).mask == SKY).any()
    assert not (scene(city="garage").mask == SKY).any()
    assert (scene(Conditions(tunnel=0.8)).mask == BUILDING).mean() > 0.3


def test_the_tunnel_comes_nearer_with_its_severity():
    building = [(scene(Conditions(tunnel=s)).mask == BUILDING).sum() for s in (0.2, 0.35, 0.5)]
    assert building == sorted(building)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (97, 51), (640, 360)])
def test_any_size_can_be_rendered(width, height):
    frame = render(
        city="downtown",
        seed=1,
        conditions=Conditions(rain=0.7, night=0.5, snow=0.3, glare=0.2),
        width=width,
        height=height,
    )
    assert frame.image.shape == (height, width, 3)
    assert frame.mask.shape == frame.depth_m.shape == (height, width)
    assert frame.image.dtype == frame.mask.dtype == np.uint8
    assert frame.depth_m.dtype == np.float32
    assert np.isfinite(frame.depth_m).all()


def test_two_sizes_show_the_same_scene():
    small = scene().mask
    large = render(city="old-town", seed=5, conditions=Conditions(), width=256, height=192).mask
    assert (large[1::2, 1::2] == small).mean() > 0.93


def test_a_drive_moves_on_without_jumps():
    drive = demo_drive(3)
    a, b, c = (drive.render(t, 128, 96).mask for t in (2.0, 2.05, 4.5))
    assert (a != b).mean() < 0.12
    assert (a != c).mean() > (a != b).mean()


def test_the_demo_drive_holds_each_segment_for_seconds_and_names_it():
    drive = demo_drive()
    names = [drive.segment_name(t / 10) for t in range(0, 901)]
    assert drive.duration_s == pytest.approx(90)
    assert set(names) - {""} == set(SEGMENT_FAMILIES)
    assert names[0] == names[-1] == "clear"
    assert min(names.count(name) for name in SEGMENT_FAMILIES) >= 40
    changes = [t for t, (x, y) in enumerate(pairwise(names)) if x != y]
    assert all(names[t] == "" or names[t + 1] == "" for t in changes)


def test_severities_are_constant_in_a_segment_and_between_in_a_transition():
    night = Conditions(night=0.8)
    drive = drive_through([("clear", Conditions()), ("night", night)], city="suburb", seed=1, pure_s=4, transition_s=2)
    assert drive.conditions(-1) == drive.conditions(3.9) == Conditions()
    assert drive.conditions(6) == drive.conditions(99) == night
    assert drive.conditions(5).night == pytest.approx(0.4)
    assert [drive.segment_name(t) for t in (0, 4, 5, 6, 10, 11)] == ["clear", "clear", "", "night", "night", "night"]


def test_splits_do_not_share_seeds_and_domains_do_not_share_streets():
    assert split_seed("train", 999_999) < split_seed("val", 0) < split_seed("test", 0)
    streets = {domain.scene(split_seed("test", 3)).seed for domain in BENCHMARK.values()}
    assert len(streets) > len(BENCHMARK) // 2
    train = {BENCHMARK["old-town-fog"].scene(split_seed("train", index)).seed for index in range(50)}
    test = {BENCHMARK["old-town-fog"].scene(split_seed("test", index)).seed for index in range(50)}
    assert not train & test
    assert len(train) == 50


def test_domains_sample_what_they_say():
    plain = [domain for domain in (*SOURCE.values(), *BENCHMARK.values(), *UNSEEN.values()) if not domain.mixed]
    for domain in plain:
        for index in range(10):
            sample = domain.scene(index)
            active = {name for name, value in dataclasses.asdict(sample.conditions).items() if value > 0}
            assert active == set(domain.severities)
            assert sample.city in domain.cities
    snow = BENCHMARK["old-town-snow"]
    assert snow.scene(4) == snow.scene(4)


def test_the_benchmark_has_twenty_domains_with_relatives():
    assert len(BENCHMARK) == 20
    families = [domain.family for domain in BENCHMARK.values()]
    assert all(families.count(family) > 1 for family in set(families) - {"mixed"})
    assert not set(UNSEEN) & set(BENCHMARK)
    seen = {city for domain in (*SOURCE.values(), *BENCHMARK.values()) for city in domain.cities}
    assert "alpine" not in seen
    assert domain_named("alpine-snow-night") is UNSEEN["alpine-snow-night"]


def test_every_segment_of_the_demo_has_relatives_in_the_benchmark():
    families = {domain.family for domain in (*SOURCE.values(), *BENCHMARK.values())}
    assert set(SEGMENT_FAMILIES.values()) <= families
    assert SOURCE["clear"].cities == ("old-town", "downtown")


def test_captions_speak_of_weather_and_of_what_is_seen():
    rng = np.random.default_rng(0)
    frame = scene()
    texts = {caption("old-town", Conditions(fog=0.8), frame.mask, rng) for _ in range(60)}
    assert len(texts) > 40
    assert all(any(word in text for word in ("fog", "mist")) for text in texts)
    nothing = caption("old-town", Conditions(), np.full((8, 8), SKY, np.uint8), rng)
    assert "sky" in nothing
    assert not any(word in nothing for word in ("car", "bus", "person"))
    assert "garage" in caption("garage", Conditions(), frame.mask, rng)


def test_the_palette_names_one_colour_per_class():
    palette = palette_of(CLASS_NAMES)
    assert palette.shape == (len(CLASS_NAMES), 3)
    assert len({tuple(colour) for colour in palette.tolist()}) == len(CLASS_NAMES)


def test_blending_meets_both_ends():
    a, b = Conditions(fog=0.4), Conditions(night=1.0)
    assert a.blend(b, 0) == a
    assert a.blend(b, 2) == b
    assert a.blend(b, 0.5) == Conditions(fog=0.2, night=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"city": "atlantis"}, "unknown city 'atlantis'"),
        ({"width": -4}, "'width' must be"),
        ({"height": 0}, "'height' must be"),
        ({"seed": -1}, "'seed' must be"),
        ({"position_m": float("nan")}, "'position_m' must be finite"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        render(**({"city": "suburb", "seed": 1, "conditions": Conditions()} | options))


def test_bad_severities_domains_drives_and_splits_are_named():
    with pytest.raises(ConfigError, match=r"'fog' must be a number in 0\.\.1, got 1\.5"):
        Conditions(fog=1.5)
    with pytest.raises(ConfigError, match="unknown domain 'hail'"):
        domain_named("hail")
    with pytest.raises(ConfigError, match="unknown split"):
        split_seed("holdout", 0)
    with pytest.raises(ConfigError, match="scene index"):
        split_seed("val", 1_000_000)
    with pytest.raises(ConfigError, match="rising times"):
        Drive(city="suburb", seed=1, timeline=((1.0, Conditions()), (1.0, Conditions())))
    with pytest.raises(ConfigError, match="unknown city"):
        Drive(city="nowhere", seed=1, timeline=((0.0, Conditions()),))
