"""The soak at some hundred images: the code of the long run, and that it notices what a node does not hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.soak import failures
from bench.soak_images import FAULTS, Picture, broken, encode, make_pictures
from bench.soak_library import ChangingLibrary
from semla_ros.errors import ImageError
from semla_ros.image_codec import ENCODINGS, decode
from semla_ros.lab.world.drive import demo_drive
from semla_ros.resources import shipped_library

ROOT = Path(__file__).resolve().parents[2]


def decoded(picture: Picture) -> np.ndarray:
    fields = ("encoding", "width", "height", "step", "data", "is_bigendian")
    return decode(**{name: getattr(picture, name) for name in fields})


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_each_encoding_shows_the_scene_that_was_put_in(encoding: str) -> None:
    scene = demo_drive(7).render(0.0).image
    for is_bigendian in (False, True):
        picture = decoded(encode(scene, encoding, padding=4, is_bigendian=is_bigendian)).astype(float)
        expected = scene.mean(axis=2, keepdims=True) if encoding.startswith("mono") else scene
        assert np.abs(picture - expected).mean() < 10  # colour is coarser than brightness in some


def test_every_fault_is_one_that_the_codec_refuses() -> None:
    for good in make_pictures(len(ENCODINGS), seed=1):
        assert decoded(good).shape == (good.height, good.width, 3)
        for fault in FAULTS:
            with pytest.raises(ImageError):
                decoded(broken(good, fault))


def test_the_library_is_what_it_was_after_a_round_of_changes(tmp_path: Path) -> None:
    source = shipped_library("semla-tiny")
    changing = ChangingLibrary(source, tmp_path / "library")
    counts = []
    for _ in range(10):
        changing.change()
        counts.append(sum(path.is_dir() for path in changing.folder.iterdir()))
    full = sum(path.is_dir() for path in source.iterdir())
    assert counts == [full, full + 1, full, full - 1, full] * 2
    for path in source.rglob("*"):
        if path.is_file():
            assert (changing.folder / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_the_real_node_answers_or_accounts_for_every_image(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy")
    # A process of its own: the benchmark sets the ROS environment of its process.
    command = [sys.executable, "-m", "semla_ros.cli", "bench", "soak", "--frames", "200", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    figures: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())["soak"]
    assert figures["passed"]
    assert figures["failures"] == []
    assert figures["sent"] == 200
    assert figures["unaccounted"] == 0
    assert figures["masks"] == figures["answered"] > 0  # how many of them are overtaken is up to the machine's speed
    assert 0 < figures["dropped"]["broken image"] <= figures["sent_broken"]
    assert figures["changes_refused"] > 0
    assert figures["changes"] > figures["changes_refused"]
    assert set(HELD) <= set(figures)


HELD: dict[str, Any] = {
    "sent": 200, "sent_broken": 20, "received": 200, "answered": 150, "masks": 150,
    "dropped": {"broken image": 18, "overtaken": 32}, "masks_of_broken": 0, "wrong_masks": 0, "unasked_masks": 0,
    "changes_unanswered": 0, "changes_misjudged": 0, "refusals_without_reason": 0, "reloads_unanswered": 0,
    "reloads_failed": 0, "tracebacks": 0, "exit_status": 0, "memory_growth": 0.5,
}  # fmt: skip


def test_a_short_run_that_holds_has_no_failures_whatever_its_memory() -> None:
    assert failures(HELD) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"received": 199}, "199 received"),
        ({"answered": 100, "masks": 100}, "neither answered nor dropped"),
        ({"masks": 3}, "3 heard"),
        ({"masks_of_broken": 1}, "1 masks of broken images"),
        ({"wrong_masks": 2}, "2 masks whose header"),
        ({"changes_unanswered": 1}, "1 parameter changes without an answer"),
        ({"changes_misjudged": 1}, "refused that are right"),
        ({"reloads_failed": 1}, "reloads that failed"),
        ({"tracebacks": 1}, "unexpected errors"),
        ({"exit_status": -11}, "status -11"),
        ({"sent": 10000, "received": 10000, "memory_growth": 0.03}, "memory grew by 3.0%"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_a_node_does_not_hold_is_told(changes: dict[str, Any], words: str) -> None:
    assert any(words in sentence for sentence in failures({**HELD, **changes}))
