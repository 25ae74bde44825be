"""Whether a class list names the labels in their order: held against what the base model sees in the images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semla_ros.errors import DatasetError
from semla_ros.lab.evaluation.miou import Counts, confusion_matrix
from semla_ros.lab.training.samples import SampleSource
from semla_ros.segmentation.one_image import segment_probabilities
from semla_ros.segmentation.protocol import SegmentationModel

LOOKED_AT = 16  # images, spread evenly
LEAST_IOU, LEAST_RATIO = 0.35, 3.0  # of a class that is misplaced with what is seen in its place; over its own
LEAST_CLASSES = 2  # that are misplaced


def check_label_order(
    model: SegmentationModel,
    source: SampleSource,
    class_tokens: Tensor,
    class_names: Sequence[str],
    device: torch.device,
) -> None:
    """Refuse labels that another order of the class list explains far better than the given one.

    A base model need not be good for that: it is enough that it tells some classes apart. Where it tells none, nothing
    is refused.

    Args:
        model: The base model, in evaluation mode.
        source: Images with masks.
        class_tokens: Token rows of the class prompts, for `model.encode_text`.
        class_names: The class list.
        device: Where to run.

    Raises:
        DatasetError: The classes are in another order; the message names the two that are the most out of place.
    """
    counts = _counts(model.to(device), source, class_tokens.to(device), len(class_names))
    if words := wrong_order(counts, class_names):
        raise DatasetError(f"{words}, or go on as it is with --trust-labels")


def wrong_order(counts: Counts, class_names: Sequence[str]) -> str:
    """What `misplaced` finds as a clause of a message; empty where the order is plausible.

    Args:
        counts: Pixels by labelled class and by what the base model sees, shape (K, K + 1).
        class_names: The class list.
    """
    found = misplaced(counts)
    if found is None:
        return ""
    index, seen, overlap, own = found
    return (
        f"the labels of class {index}, '{class_names[index]}', lie where the base model sees '{class_names[seen]}' "
        f"(IoU {overlap:.2f}, with '{class_names[index]}' {own:.2f}), and it is not the only one: put the class list "
        "into the order of the label values"
    )


def misplaced(counts: Counts) -> tuple[int, int, float, float] | None:
    """The class that is the most out of place, where another assignment of classes explains the labels far better.

    That a weak model sees one class in the place of another is common: dusk's sky as a building. That two classes at
    once lie where it sees others, and hardly where it sees them, is not.

    Args:
        counts: Pixels by labelled and predicted class, shape (K, K + 1).

    Returns:
        The class, what the model sees in its place, their IoU, and the class's IoU with itself; None where the order
        is plausible.

    Source: the assignment of labels to predictions with the largest summed IoU (Kuhn, 1955), as for clusters.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = pairwise_iou(counts)
    seen = linear_sum_assignment(overlap, maximize=True)[1]
    assigned, own = overlap[np.arange(len(seen)), seen], np.diagonal(overlap)
    is_misplaced = (assigned >= LEAST_IOU) & (assigned > LEAST_RATIO * own) & (assigned > LEAST_RATIO * own[seen])
    if np.count_nonzero(is_misplaced) < LEAST_CLASSES:
        return None
    index = int(np.where(is_misplaced, assigned, 0).argmax())
    return index, int(seen[index]), float(assigned[index]), float(own[index])


def pairwise_iou(counts: Counts) -> NDArray[np.float64]:
    """IoU of the labels of each class (row) with the prediction of each class (column), shape (K, K)."""
    both = counts[:, :-1].astype(np.float64)
    either = counts.sum(axis=1)[:, None] + both.sum(axis=0)[None] - both
    return np.asarray(both / np.maximum(either, 1))


def _counts(model: SegmentationModel, source: SampleSource, class_tokens: Tensor, class_count: int) -> Counts:
    size = model.config.working_resolution
    counts: Counts = np.zeros((class_count, class_count + 1), np.int64)
    with torch.inference_mode():
        text = model.encode_text(class_tokens)
        for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), LOOKED_AT)).round().astype(int)):
            image = torch.from_numpy(np.ascontiguousarray(source.image(int(index)))).to(class_tokens.device)
            maps = segment_probabilities(model, image.permute(2, 0, 1), text, size, "whole")
            mask = cv2.resize(source.mask(int(index)), size[::-1], interpolation=cv2.INTER_NEAREST)
            counts += confusion_matrix(np.asarray(mask), maps.argmax(dim=0).to(torch.uint8).cpu().numpy(), class_count)
    return counts
