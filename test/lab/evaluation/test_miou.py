import numpy as np
import pytest

from semla_ros.errors import DatasetError
from semla_ros.lab.evaluation.miou import MiouMeter, confusion_matrix, iou_per_class, mean_iou


def random_mask(seed: int, classes: int = 4, shape: tuple[int, int] = (12, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)


def test_a_perfect_mask_scores_one() -> None:
    truth = random_mask(0)
    assert mean_iou(confusion_matrix(truth, truth, 4)) == 1.0


def test_iou_equals_intersection_over_union_of_sets() -> None:
    truth, predicted = random_mask(1), random_mask(2)
    values = iou_per_class(confusion_matrix(truth, predicted, 4))
    for index in range(4):
        intersection = ((truth == index) & (predicted == index)).sum()
        union = ((truth == index) | (predicted == index)).sum()
        assert values[index] == pytest.approx(intersection / union)


def test_ignored_truth_takes_no_part_whatever_was_predicted() -> None:
    truth, predicted = random_mask(3), random_mask(4)
    truth[:6] = 255
    whole = confusion_matrix(truth, predicted, 4)
    np.testing.assert_array_equal(whole, confusion_matrix(truth[6:], predicted[6:], 4))


def test_a_pixel_predicted_as_no_class_is_an_error_and_not_left_out() -> None:
    truth = np.zeros((2, 2), np.uint8)
    predicted = np.array([[0, 0], [0, 255]], np.uint8)
    counts = confusion_matrix(truth, predicted, 3)
    assert counts[0, 3] == 1
    assert iou_per_class(counts)[0] == pytest.approx(0.75)


def test_classes_absent_from_the_truth_do_not_count_in_the_mean() -> None:
    truth = np.zeros((4, 4), np.uint8)
    predicted = truth.copy()
    predicted[0] = 2  # a false class costs the true one, and gets no IoU of its own
    values = iou_per_class(confusion_matrix(truth, predicted, 5))
    assert np.isnan(values[1:]).all()
    assert mean_iou(confusion_matrix(truth, predicted, 5)) == pytest.approx(0.75)


def test_counts_add_up_over_frames_in_any_order() -> None:
    pairs = [(random_mask(seed), random_mask(seed + 50)) for seed in range(6)]
    forward, backward = MiouMeter(4), MiouMeter(4)
    for truth, predicted in pairs:
        forward.add(truth, predicted)
    for truth, predicted in reversed(pairs):
        backward.add_counts(confusion_matrix(truth, predicted, 4))
    assert forward.frames == backward.frames == 6
    assert forward.mean == backward.mean
    at_once = confusion_matrix(np.vstack([p[0] for p in pairs]), np.vstack([p[1] for p in pairs]), 4)
    assert forward.mean == mean_iou(at_once)
    np.testing.assert_array_equal(forward.per_class, iou_per_class(at_once))


def test_sixteen_bit_masks_are_compared_with_their_own_ignored_value() -> None:
    truth = np.array([[300, 65535], [2, 300]], np.uint16)
    predicted = np.array([[300, 7], [65535, 300]], np.uint16)
    counts = confusion_matrix(truth, predicted, 301, ignore=65535)
    assert counts.sum() == 3
    assert iou_per_class(counts)[300] == 1.0
    assert iou_per_class(counts)[2] == 0.0


def test_nothing_to_compare_gives_nan_and_no_warning() -> None:
    empty = confusion_matrix(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 3)
    assert np.isnan(mean_iou(empty))


@pytest.mark.parametrize(
    ("truth", "predicted", "classes", "named"),
    [
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 3, "shape"),
        (np.full((2, 2), 7, np.uint8), np.zeros((2, 2), np.uint8), 3, "value 7"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), 0, "at least 1 class"),
    ],
)
def test_masks_that_cannot_be_compared_are_named(truth, predicted, classes, named) -> None:
    with pytest.raises(DatasetError, match=named):
        confusion_matrix(truth, predicted, classes)
