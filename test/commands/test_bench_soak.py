"""The soak at some hundred images: the code of the long run, and that it notices what a node does not hold."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import decode, decode_compressed

from bench.soak import COUNTS, LOOK_SETTINGS, RIGHT_CHANGES, failures, growth, measure, total
from bench.soak_images import COMPRESSED_FAULTS, FAULTS, FORMATS, Picture, Stamps, broken, encode, make_pictures
from bench.soak_library import ChangingLibrary
from semla_ros.cli import main
from semla_ros.errors import ConfigError, ImageError
from semla_ros.image_codec import ENCODINGS
from semla_ros.lab.world.drive import demo_drive
from semla_ros.resources import model_library
from semla_ros.serving.parameters import SPECS, Settings

ROOT = Path(__file__).resolve().parents[2]


def decoded(picture: Picture) -> np.ndarray:
    if picture.is_compressed:
        return decode_compressed(picture.data, picture.encoding)
    fields = ("encoding", "width", "height", "step", "data", "is_bigendian")
    return decode(**{name: getattr(picture, name) for name in fields})


@pytest.mark.parametrize("values", [LOOK_SETTINGS, *RIGHT_CHANGES], ids=lambda values: "-".join(values))
def test_the_node_has_every_setting_that_the_soak_asks_it_to_take(values: dict[str, Any]) -> None:
    assert all(SPECS[name].is_live for name in values)
    Settings.make(values)


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


def test_every_compressed_fault_is_refused_but_for_those_inside_which_may_pass() -> None:
    for good in make_pictures(len(FORMATS), seed=1, is_compressed=True):
        assert decoded(good).shape == (good.height, good.width, 3)
        for fault in COMPRESSED_FAULTS:
            damaged = broken(good, fault)
            try:
                decoded(damaged)
            except ImageError:
                continue
            assert not damaged.must_be_refused, (good.encoding, fault)


def test_stamps_are_of_all_kinds_and_what_a_message_can_hold() -> None:
    stamps = Stamps(np.random.default_rng(0))
    drawn = [stamps.next() for _ in range(500)]
    assert (0, 0) in drawn
    assert any(before == after for before, after in itertools.pairwise(drawn))
    assert min(drawn)[0] == -(2**31)
    assert max(drawn)[0] == 2**31 - 1
    assert all(0 <= nanoseconds < 2**32 for _, nanoseconds in drawn)


def test_the_library_is_what_it_was_after_a_round_of_changes(tmp_path: Path) -> None:
    source = model_library("semla-tiny")
    changing = ChangingLibrary(source, tmp_path / "library")
    counts = []
    for round_ in range(5):  # each kind of damage once
        for _ in range(7):
            changing.change()
            counts.append(sum(path.is_dir() for path in changing.folder.iterdir()))
            if len(counts) == 7 * round_ + 6:
                assert any(
                    (changing.folder / path.relative_to(source)).read_bytes() != path.read_bytes()
                    for path in source.rglob("adapter_*")
                )
    full = sum(path.is_dir() for path in source.iterdir())
    assert counts == [full, full + 1, full, full - 1, full, full, full] * 5
    for path in source.rglob("*"):
        if path.is_file():
            assert (changing.folder / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_the_real_node_accounts_for_every_image_in_a_run_that_is_interrupted_and_resumed(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy")
    # A process of its own: the benchmark sets the ROS environment of its process.
    command = [sys.executable, "-m", "semla_ros.cli", "bench", "soak", "--out", str(tmp_path)]
    command += ["--frames", "200", "--part", "100"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    record = tmp_path / "soak.json"
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as first:
        while not record.is_file() and first.poll() is None:
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)  # in the second part
        output, _ = first.communicate()
    assert first.returncode != 0, output
    parts = json.loads(record.read_text())["parts"]
    assert [part["transport"] for part in parts] == ["raw"]

    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    figures: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())["soak"]
    assert figures["parts"] == json.loads(record.read_text())["parts"]
    assert figures["parts"][0] == parts[0]  # what was done is not done again
    assert [part["transport"] for part in figures["parts"]] == ["raw", "compressed"]
    assert figures["passed"]
    assert figures["failures"] == []
    assert figures["sent"] == 200
    assert figures["unaccounted"] == figures["wrong_masks"] == figures["crashes"] == 0
    # How many of them are overtaken is up to the machine's speed.
    assert 0 < figures["masks"] <= figures["answered"]
    assert 0 < figures["dropped"]["broken image"] <= figures["sent_broken"]
    assert figures["changes_refused"] > 0
    assert figures["changes"] > figures["changes_refused"]
    assert figures["transitions"] >= 6
    assert set(HELD) <= set(figures["parts"][0])


HELD: dict[str, Any] = {
    "sent": 200, "sent_broken": 20, "received": 200, "answered": 150, "masks": 150,
    "dropped": {"broken image": 18, "overtaken": 32}, "masks_of_broken": 0, "wrong_masks": 0, "unasked_masks": 0,
    "changes_unanswered": 0, "changes_misjudged": 0, "refusals_without_reason": 0, "reloads_unanswered": 0,
    "sent_around_changes": 0, "masks_of_damaged": 0, "transitions_unanswered": 0, "transitions_misjudged": 0,
    "crashes": 0, "crash": "", "reloads_failed": 0, "tracebacks": 0, "exit_status": 0, "memory_growth": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", ["soak", "start", "node"])
def test_a_library_of_another_model_is_refused_before_a_node_is_waited_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "library.yaml").write_text(f"format: 1\nbase: {{sha256: {'f' * 64}}}\n", encoding="utf-8")
    assert main(["bench", name, "--library", str(library), "--repeats", "1", "--out", str(tmp_path / "out")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "made for the base model with SHA-256 'ffff" in said
    assert "LibraryError" not in said


def test_a_short_run_that_holds_has_no_failures_whatever_its_memory() -> None:
    assert failures(HELD) == []


def test_what_is_lost_between_two_subscriptions_is_excused_and_no_more() -> None:
    lost = {**HELD, "received": 190, "answered": 140, "masks": 138}
    assert failures({**lost, "sent_around_changes": 10}) == []
    assert len(failures({**lost, "sent_around_changes": 9})) == 1
    assert len(failures({**lost, "sent_around_changes": 1})) == 2


def test_parts_are_added_up_and_memory_is_judged_in_long_ones_alone() -> None:
    part = {**dict.fromkeys(COUNTS, 1), **HELD, "failures": []}
    failed = {**part, "sent": 2000, "memory_growth": 0.03, "failures": ["memory grew"]}
    sums = total([part, failed])
    assert sums["sent"] == 2200
    assert sums["dropped"] == {"broken image": 36, "overtaken": 64}
    assert sums["memory_growth"] == 0.03
    assert sums["failures"] == ["part 2: memory grew"]
    assert not sums["passed"]
    assert total([part])["memory_growth"] is None


def test_memory_grows_from_the_first_look_to_the_last_at_work_or_at_rest() -> None:
    memory = [(0, 300.0), (10, 700.0), (20, 500.0)]
    assert growth(memory, [(500.0, 400.0), (600.0, 500.0), (505.0, 412.0)])["memory_growth"] == pytest.approx(0.03)
    figures = growth(memory, [])
    assert (figures["memory_growth"], figures["memory_max_mb"]) == (0.0, 700.0)


@pytest.mark.parametrize(
    "record", ["", "{", "[]", '{"settings": {"frames": 10, "part": 5, "seed": 3}, "parts": [{}]}'], ids=str
)
def test_a_record_of_another_run_is_not_overwritten(tmp_path: Path, record: str) -> None:
    path = tmp_path / "soak.json"
    path.write_text(record)
    with pytest.raises(ConfigError, match="another --out"):
        measure(frames=10, part=5, out=tmp_path)
    assert path.read_text() == record


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
        ({"transitions_misjudged": 1}, "life-cycle transitions that failed"),
        ({"crashes": 1, "crash": "it ended\nlog"}, "crashed or hung: it ended"),
        ({"reloads_failed": 1}, "reloads that failed"),
        ({"tracebacks": 1}, "unexpected errors"),
        ({"exit_status": -11}, "status -11"),
        ({"sent": 10000, "received": 10000, "memory_growth": 0.03}, "memory grew by 3.0%"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_a_node_does_not_hold_is_told(changes: dict[str, Any], words: str) -> None:
    assert any(words in sentence for sentence in failures({**HELD, **changes}))
