"""A made-up drive: stripes of classes, a base model that errs in the dark, a mix that follows the scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from made_generations import generation

from semla_ros.lab.demo.frame_store import FrameStore
from semla_ros.lab.demo.recording import Recording
from semla_ros.lab.demo.score import DriveScore, compare_masks, score_drive
from semla_ros.lab.report.pictures import colourise
from semla_ros.results import BASE_MODEL

NAMES = ("road", "sidewalk", "car", "sky")
PALETTE = np.array([[128, 64, 128], [244, 35, 232], [0, 0, 142], [70, 130, 180]], np.uint8)
ADAPTERS = {name: name for name in ("night", "fog", "rain")}
SEGMENTS = ("clear", "clear to night", "night", "night to fog", "fog")
FRAMES_PER_SEGMENT = 6
RATE_HZ = 4.0
START_NS = 5_000_000_000
SHAPE = (48, 64)


@dataclass
class MadeUpDrive:
    recording: Recording
    score: DriveScore


def truth_of(index: int) -> np.ndarray:
    truth = np.zeros(SHAPE, np.uint8)
    truth[:16] = 3
    truth[16:28] = 1
    truth[24:40, 8 + index % 30 : 24 + index % 30] = 2
    truth[-2:] = 255
    return truth


def spoil(mask: np.ndarray, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(mask.shape) < share, rng.integers(0, 4, mask.shape), mask).astype(np.uint8)


def record_drive(store: FrameStore) -> Recording:
    recording = Recording(store)
    recording.class_names = NAMES
    number = 0
    for index in range(len(SEGMENTS) * FRAMES_PER_SEGMENT):
        segment = SEGMENTS[index // FRAMES_PER_SEGMENT]
        stamp = START_NS + round(index / RATE_HZ * 1e9)
        if index % FRAMES_PER_SEGMENT == 0:
            number += 1
            name = segment.split(" to ")[-1]
            shares = {BASE_MODEL: 1.0} if name == "clear" else {name: 0.7, "rain": 0.2, BASE_MODEL: 0.1}
            recording.add_generation(generation(number, shares, scene_stamp_ns=stamp))
        truth = truth_of(index)
        recording.add_image(stamp, "camera", colourise(truth, PALETTE), now_s=stamp / 1e9)
        recording.add_truth(stamp, truth)
        recording.add_segment(stamp, segment)
        recording.add_mask(stamp, "camera", spoil(truth, 0.1, index), now_s=stamp / 1e9 + 0.08)
    recording.frames_sent = len(SEGMENTS) * FRAMES_PER_SEGMENT
    return recording


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[MadeUpDrive]:
    with FrameStore(tmp_path / "frames.bin") as store:
        recording = record_drive(store)

        def base_mask(image: np.ndarray, stamp_ns: int) -> np.ndarray:
            index = round((stamp_ns - START_NS) / 1e9 * RATE_HZ)
            return spoil(truth_of(index), 0.1 if index < FRAMES_PER_SEGMENT else 0.5, 1000 + index)

        scores = compare_masks(recording, base_mask, NAMES, NAMES)
        yield MadeUpDrive(recording, score_drive(scores, ADAPTERS))
