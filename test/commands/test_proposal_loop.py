"""Propose, train, propose: each run finds what is still out of the library, and what was trained no more."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from semla_ros.cli import main
from semla_ros.lab.bags.writer import BagWriter
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.domains import BENCHMARK, split_seed
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.resources import share_folder

START_NS = 1_700_000_000_000_000_000
STRETCH, STEP_S = 10, 0.5
FILTERS = (None, (0.1, 1.0, 0.1), None, (0.1, 0.1, 1.0))  # in front of the lens, one after the other
RECIPE = """
clip: {loop: {steps: 1}}
scene_encoder: {loop: {steps: 1}}
segmenter: {loop: {steps: 1}}
adapter: {loop: {steps: 1, batch_size: 1, learning_rate: 0.001, warmup_steps: 1, bfloat16: false}}
"""


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    """A street that the library knows, behind a green filter for a while, and behind a blue one."""
    path = tmp_path / "drive"
    with BagWriter(path) as bag:
        classes = [{"id": index, "name": name} for index, name in enumerate(CLASS_NAMES)]
        bag.string("/labels", json.dumps({"classes": classes}), START_NS)
        for index in range(STRETCH * len(FILTERS)):
            scene = BENCHMARK["suburb-clear"].scene(split_seed("train", 7000 + index % STRETCH)).render()
            colours = FILTERS[index // STRETCH] or (1.0, 1.0, 1.0)
            stamp_ns = START_NS + int(index * STEP_S * 1e9)
            bag.image("/front/image", (scene.image * colours).astype(np.uint8), stamp_ns, "front")
            bag.image("/front/label", scene.mask, stamp_ns, "front")
    return path


def propose(bag: Path, library: Path, out: Path) -> list[dict]:
    options = ["--compare", "semla", "--no-bag", "--no-report", "--propose-adapter"]
    assert main(["replay", str(bag), "--out", str(out), "--library", str(library), *options]) == 0
    stretches: list[dict] = json.loads((out / "worklist.json").read_text(encoding="utf-8"))["stretches"]
    return sorted(stretches, key=lambda stretch: stretch["start_s"])


def filters_in(stretches: list[dict]) -> set[int]:
    """Which stretches of the bag the worklist speaks of, by the middle of each of its entries."""
    return {int((item["start_s"] + item["end_s"]) / 2 / (STRETCH * STEP_S)) for item in stretches}


def test_each_round_finds_what_is_still_out_of_the_library(bag: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    shutil.copytree(share_folder() / "adapters" / "semla-tiny", library)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    first = propose(bag, library, tmp_path / "first")
    assert filters_in(first) == {1, 3}
    for number, (filtered, left) in enumerate(((1, {3}), (3, set()))):
        start, end = filtered * STRETCH * STEP_S, (filtered + 1) * STRETCH * STEP_S - STEP_S
        worklist = tmp_path / "worklist.json"
        worklist.write_text(
            json.dumps(
                {"stretches": [item for item in first if start <= item["start_s"] and item["end_s"] <= end + 5]}
            ),
            encoding="utf-8",
        )
        options = ["--recipe", str(recipe), "--device", "cpu", "--worklist", str(worklist)]
        name = f"filter-{number}"
        assert (
            main(["train", "adapter", "--name", name, "--from-bag", str(bag), "--library", str(library), *options]) == 0
        )
        assert AdapterLibrary.load(library).spread_source == "measured"
        assert filters_in(propose(bag, library, tmp_path / name)) == left
