import numpy as np
import pytest
from made_generations import generation

from semla_ros.lab.demo.recording import FrameRecord
from semla_ros.lab.demo.score import (
    as_truth_classes,
    class_table,
    compare_masks,
    is_transition,
    leads_rightly,
    rolling_miou,
    score_drive,
    shares_over_time,
)
from semla_ros.lab.evaluation.miou import MiouMeter
from semla_ros.results import BASE_MODEL

NAMES = ("road", "sidewalk", "car", "sky")


def record(segment: str, **shares: float) -> FrameRecord:
    return FrameRecord(1, segment=segment, generation=generation(1, shares))


def test_masks_are_compared_by_class_name_and_not_by_index() -> None:
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    renumbered = as_truth_classes(mask, ("car", "unicorn", "road"), NAMES)
    np.testing.assert_array_equal(renumbered, [[2, 255], [0, 255]])


def test_segments_appear_in_order_with_their_own_figures(drive) -> None:
    names = [segment.name for segment in drive.score.segments]
    assert names == ["clear", "clear to night", "night", "night to fog", "fog"]
    assert [segment.frames for segment in drive.score.segments] == [6] * 5
    assert [segment.is_shifted for segment in drive.score.segments] == [False, False, True, False, True]
    night = drive.score.segments[2]
    meter = MiouMeter(4)
    for frame in drive.score.frames[12:18]:
        meter.add_counts(frame.adapted)
    assert night.adapted == meter.mean


def test_the_drives_figures_are_the_mean_over_the_shifted_segments(drive) -> None:
    shifted = [segment for segment in drive.score.segments if segment.name in ("night", "fog")]
    assert drive.score.base == pytest.approx(np.mean([segment.base for segment in shifted]))
    assert drive.score.adapted == pytest.approx(np.mean([segment.adapted for segment in shifted]))
    assert drive.score.gain > 0.2
    assert drive.score.base_all > drive.score.base  # the clear segment, which the base model knows, counts there


def test_the_right_adapter_is_the_one_named_like_the_segment() -> None:
    adapters = {"night": "", "night-rain": "", "fog": ""}
    assert leads_rightly(record("night", night=0.6, fog=0.4), adapters) is True
    assert leads_rightly(record("night", night=0.4, fog=0.6), adapters) is False
    assert leads_rightly(record("night-rain", night=0.9), adapters) is False
    assert leads_rightly(record("snow", night=0.9), adapters) is None
    assert leads_rightly(record("night to fog", night=0.9), adapters) is None


def test_adapters_of_the_segments_weather_family_are_right_too() -> None:
    adapters = {
        "old-town-night": "night",
        "boulevard-rain-night": "night",
        "old-town-rain": "rain",
        "glare-1": "low-sun",
    }
    assert leads_rightly(record("night-rain", **{"boulevard-rain-night": 0.6, "old-town-rain": 0.4}), adapters) is True
    assert leads_rightly(record("night-rain", **{"boulevard-rain-night": 0.4, "old-town-rain": 0.6}), adapters) is False
    assert leads_rightly(record("dusk", **{"glare-1": 1.0}), adapters) is True
    assert leads_rightly(record("tunnel", **{"glare-1": 1.0}), adapters) is None


def test_the_base_model_is_right_only_where_it_was_trained() -> None:
    shares = {BASE_MODEL: 0.8, "night": 0.2}
    assert leads_rightly(record("clear", **shares), {"night": "night"}) is True
    assert leads_rightly(record("clear", night=1.0), {"night": "night"}) is False
    assert leads_rightly(record("night", **shares), {"night": "night"}) is False
    assert leads_rightly(record("clear", clear=1.0), {"clear": "clear", "night": "night"}) is True


@pytest.mark.parametrize(
    ("name", "expected"), [("night", False), ("night-rain", False), ("fog to rain", True), ("", True)]
)
def test_transitions_are_told_by_their_name(name, expected) -> None:
    assert is_transition(name) is expected


def test_frames_without_truth_or_with_a_mask_for_another_camera_are_not_scored(drive) -> None:
    recording = drive.recording
    first, second = recording.frames()[:2]
    first.mask_frame_id = "elsewhere"
    recording.add_image(1, "camera", np.zeros((48, 64, 3), np.uint8), now_s=0.0)
    recording.add_mask(1, "camera", np.zeros((48, 64), np.uint8), now_s=0.1)  # no truth came for it
    scores = compare_masks(recording, lambda image, stamp: np.zeros((48, 64), np.uint8), NAMES, NAMES)
    assert scores[0].record.stamp_ns == second.stamp_ns
    assert len(scores) == 29


def test_base_masks_are_made_once(drive) -> None:
    def fail(image: np.ndarray, stamp_ns: int) -> np.ndarray:
        raise AssertionError("made twice")

    assert len(compare_masks(drive.recording, fail, NAMES, NAMES)) == 30


def test_rolling_figures_stop_at_the_borders_of_segments(drive) -> None:
    base, adapted = rolling_miou(drive.score.frames, window_s=1e6)
    for index, segment in enumerate(drive.score.segments):
        members = slice(index * 6, index * 6 + 6)
        np.testing.assert_allclose(base[members], segment.base)
        np.testing.assert_allclose(adapted[members], segment.adapted)


def test_shares_over_time_sum_to_one_with_the_base_model_last(drive) -> None:
    shares = shares_over_time(drive.score.frames)
    assert list(shares)[-1] == BASE_MODEL
    np.testing.assert_allclose(sum(shares.values()), 1.0)
    np.testing.assert_allclose(shares["night"][12:18], 0.7)


def test_a_class_table_leaves_out_what_never_occurs(drive) -> None:
    table = class_table(drive.score.frames, (*NAMES,))
    assert list(table) == list(NAMES)
    without, with_adaptation = table["sky"]
    assert 0 < without < with_adaptation <= 1


def test_no_frames_give_nan_and_no_error() -> None:
    score = score_drive([], {})
    assert np.isnan(score.gain)
    assert score.segments == ()
