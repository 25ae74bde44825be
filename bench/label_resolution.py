"""What masks of the shipped world an answer at 1/2, 1/4 or 1/8 of the image can express at best.

Run with `python -m bench.label_resolution`. Truth is reduced by area and stretched back bilinearly, then arg-max.
"""

from __future__ import annotations

import cv2
import numpy as np

from semla_ros.lab.evaluation.miou import confusion_matrix, iou_per_class
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.domains import SOURCE, split_seed

SCENES = 40
WIDTH, HEIGHT = 256, 192


def measure(scenes: int = SCENES) -> dict[int, dict[str, float]]:
    """Best IoU per class, and their mean under "mIoU", by the factor of the answer; on validation scenes of `clear`."""
    count = len(CLASS_NAMES)
    total = {factor: np.zeros((count, count + 1), np.int64) for factor in (2, 4, 8)}
    for index in range(scenes):
        mask = SOURCE["clear"].scene(split_seed("val", index)).render(WIDTH, HEIGHT).mask
        shares = np.eye(count, dtype=np.float32)[mask]  # (H, W, K)
        for factor, counts in total.items():
            small = cv2.resize(shares, (WIDTH // factor, HEIGHT // factor), interpolation=cv2.INTER_AREA)
            best = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR).argmax(-1)
            counts += confusion_matrix(mask, best.astype(np.uint8), count)
    rows = {}
    for factor, counts in total.items():
        ious = dict(zip(CLASS_NAMES, map(float, iou_per_class(counts)), strict=True))
        rows[factor] = {"mIoU": float(np.nanmean(list(ious.values()))), **ious}
    return rows


if __name__ == "__main__":
    for factor, row in measure().items():
        print(f"1/{factor}  " + "  ".join(f"{name} {value:.2f}" for name, value in row.items()))
