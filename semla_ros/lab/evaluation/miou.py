"""Mean intersection over union from a confusion matrix, which adds up over frames, segments and data sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import DatasetError
from semla_ros.results import UNLABELLED, FloatArray, MaskArray

Counts = NDArray[np.int64]


def confusion_matrix(
    truth: MaskArray, predicted: MaskArray, class_count: int, *, ignore: int | tuple[int, ...] = UNLABELLED
) -> Counts:
    """Count pixels by true and predicted class.

    Args:
        truth: True class index per pixel, shape (H, W).
        predicted: Predicted class index per pixel, shape (H, W).
        class_count: Number of classes K, >= 1.
        ignore: Truth value or values that take no part, whatever was predicted there.

    Returns:
        Counts, shape (K, K + 1), int64: row = true class, column = predicted class. The last column holds what was
        predicted as none of the K classes (unlabelled or out of range), which is an error like any other.

    Raises:
        DatasetError: The shapes differ, or the truth holds a value that is neither a class nor ignored.
    """
    if truth.shape != predicted.shape:
        raise DatasetError(f"truth of shape {truth.shape} and prediction of shape {predicted.shape} must be the same")
    if class_count < 1:
        raise DatasetError(f"expected at least 1 class to compare masks, got {class_count}")
    rows = truth.ravel().astype(np.int64)
    columns = np.minimum(predicted.ravel().astype(np.int64), class_count)
    counted = ~np.isin(rows, ignore)
    rows, columns = rows[counted], columns[counted]
    if rows.size and rows.max() >= class_count:
        raise DatasetError(
            f"truth holds the value {rows.max()}, expected classes 0 to {class_count - 1} or the ignored {ignore}"
        )
    flat = np.bincount(rows * (class_count + 1) + columns, minlength=class_count * (class_count + 1))
    return flat.reshape(class_count, class_count + 1)


def iou_per_class(counts: Counts) -> FloatArray:
    """Intersection over union of each class.

    Args:
        counts: Confusion matrix (K, K + 1) from `confusion_matrix`, or a sum of several.

    Returns:
        IoU, shape (K,), float64, 0..1; NaN for classes that the truth does not contain.
    """
    return _iou(overlaps(counts))


def overlaps(counts: Counts) -> Counts:
    """Pixels per class, shape (3, K): right, in the truth, predicted. All that IoU needs, and they add up.

    Args:
        counts: Confusion matrix, shape (K, K + 1).
    """
    return np.stack([np.diagonal(counts), counts.sum(axis=1), counts[:, : counts.shape[0]].sum(axis=0)])


def _iou(sums: NDArray[np.int64] | NDArray[np.float64]) -> FloatArray:
    hits, in_truth, predicted = sums.astype(np.float64)
    return np.where(in_truth > 0, hits / np.maximum(in_truth + predicted - hits, 1), np.nan)


def mean_iou(counts: Counts) -> float:
    """Mean IoU over the classes that the truth contains, 0..1; NaN where it contains none."""
    return mean_iou_of(overlaps(counts))


def mean_iou_of(sums: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """The same of sums of `overlaps`."""
    values = _iou(sums)
    present = ~np.isnan(values)
    return float(values[present].mean()) if present.any() else float("nan")


class MiouMeter:
    """Adds frames up and answers with their common mIoU.

    Attributes:
        counts: Confusion matrix so far, shape (K, K + 1), int64.
        frames: Number of frames added.
    """

    def __init__(self, class_count: int, *, ignore: int | tuple[int, ...] = UNLABELLED) -> None:
        self.counts: Counts = np.zeros((class_count, class_count + 1), np.int64)
        self.frames = 0
        self._ignore = ignore

    def add(self, truth: MaskArray, predicted: MaskArray) -> None:
        """Add one frame; see `confusion_matrix`."""
        self.add_counts(confusion_matrix(truth, predicted, self.counts.shape[0], ignore=self._ignore))

    def add_counts(self, counts: Counts) -> None:
        """Add one frame by a confusion matrix that was counted elsewhere."""
        self.counts += counts
        self.frames += 1

    @property
    def per_class(self) -> FloatArray:
        """IoU of each class, shape (K,); NaN where the truth has not contained it."""
        return iou_per_class(self.counts)

    @property
    def mean(self) -> float:
        """Mean IoU over the classes seen in the truth; NaN before the first frame."""
        return mean_iou(self.counts)
