"""An adapter can be trained from the labelled stretches of a bag."""

import json
from pathlib import Path

import numpy as np
import pytest

from semla_ros.cli import main
from semla_ros.errors import BagError, ConfigError, DatasetError
from semla_ros.lab.bags.frames import FrameOptions
from semla_ros.lab.bags.writer import BagWriter
from semla_ros.lab.training.bag_samples import BagSamples, Stretch, alike, bag_class_names, read_worklist

CLASSES = ("road", "sky", "car")
START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
RECIPE = """
clip: {loop: {steps: 1}}
scene_encoder: {loop: {steps: 1}}
segmenter: {loop: {steps: 1}}
adapter: {loop: {steps: 1, batch_size: 1, learning_rate: 0.01, warmup_steps: 1, bfloat16: false}}
"""


def image_at(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def mask_at(index: int) -> np.ndarray:
    mask = np.zeros((64, 96), np.uint8)
    mask[:30] = 1
    mask[40:50, index : index + 20] = 2
    return mask


def write_bag(path: Path, *, labelled: int = 8, frames: int = 8) -> Path:
    """The label message comes one second before the first image; the first `labelled` frames have truth."""
    classes = [{"id": index, "name": name} for index, name in enumerate(CLASSES)]
    with BagWriter(path) as bag:
        bag.string("/labels", json.dumps({"classes": classes}), START_NS - 1_000_000_000)
        for index in range(frames):
            stamp_ns = START_NS + index * STEP_NS
            bag.image("/front/image", image_at(index), stamp_ns, "front")
            if index < labelled:
                bag.image("/front/label", mask_at(index), stamp_ns, "front")
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(tmp_path_factory.mktemp("bag") / "drive", labelled=6)


def train(bag: Path, library: Path, *more: str) -> int:
    return main(["train", "adapter", "--name", "dusk", "--from-bag", str(bag), "--library", str(library),
                 "--device", "cpu", *more])  # fmt: skip


def test_frames_with_truth_come_back_as_they_were_recorded(bag: Path) -> None:
    with BagSamples(bag, CLASSES, FrameOptions()) as samples:
        assert len(samples) == 6
        for index in range(6):
            assert np.array_equal(samples.image(index), image_at(index))
            assert np.array_equal(samples.mask(index), mask_at(index))


def test_a_stretch_counts_from_the_first_image_and_not_from_the_first_message(bag: Path) -> None:
    with BagSamples(bag, CLASSES, FrameOptions(), [Stretch.parse("0.15:0.35")]) as samples:
        assert len(samples) == 2
        assert np.array_equal(samples.image(0), image_at(2))


def test_the_truth_is_brought_to_the_vocabulary_by_name(bag: Path) -> None:
    assert bag_class_names(bag) == CLASSES
    with BagSamples(bag, ("sky", "road"), FrameOptions()) as samples:
        assert samples.mask(0)[0, 0] == 0
        assert samples.mask(0)[63, 95] == 1
        assert samples.mask(0)[45, 5] == 255


def test_a_worklist_is_taken_by_stamps_and_only_for_this_bag(bag: Path, tmp_path: Path) -> None:
    item = {"start_stamp_ns": START_NS + STEP_NS, "end_stamp_ns": START_NS + 3 * STEP_NS}
    worklist = tmp_path / "worklist.json"
    worklist.write_text(json.dumps({"stretches": [item | {"bag": str(bag)}, item | {"bag": "other"}]}))
    stretches = read_worklist(worklist, bag)
    assert len(stretches) == 1
    with BagSamples(bag, CLASSES, FrameOptions(), stretches) as samples:
        assert len(samples) == 3
        assert np.array_equal(samples.image(0), image_at(1))


def test_the_files_are_gone_afterwards(bag: Path) -> None:
    with BagSamples(bag, CLASSES, FrameOptions()) as samples:
        pass
    with pytest.raises(DatasetError, match="cannot be read again"):
        samples.image(0)


def test_a_stretch_without_truth_is_refused_with_the_topics_there_are(bag: Path) -> None:
    with pytest.raises(DatasetError, match=r"2 of 8 images there.*/front/image"):
        BagSamples(bag, CLASSES, FrameOptions(), [Stretch.parse("0.6:")])


def test_a_bag_without_truth_is_refused_with_the_topics_there_are(tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"no ground truth.*/front/image"):
        BagSamples(write_bag(tmp_path / "bare", labelled=0), CLASSES, FrameOptions())


@pytest.mark.parametrize("text", ["5", "a:b", "5:2", "-1:2", "nan:3"])
def test_a_stretch_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="START:END"):
        Stretch.parse(text)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--stretch", "0.6:"], "no frame with ground truth"),
        (["--stretch", "2"], "START:END"),
        (["--topic", "/rear/image"], "/rear/image"),
        (["--worklist", "missing.json"], "missing.json"),
        (["--images", "x"], "instead of --images"),
    ],
)
def test_bad_input_ends_with_2_and_writes_nothing(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert train(bag, tmp_path / "library", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "library").exists()


def worklist_of(bag: Path, path: Path, spans: list[tuple[int, int]]) -> Path:
    stretches = [
        {"bag": str(bag), "start_s": start * 0.1, "end_s": end * 0.1,
         "start_stamp_ns": START_NS + start * STEP_NS, "end_stamp_ns": START_NS + end * STEP_NS}
        for start, end in spans
    ]  # fmt: skip
    path.write_text(json.dumps({"stretches": stretches}))
    return path


def test_stretches_are_alike_where_an_adapter_of_one_would_be_used_in_the_other() -> None:
    rng = np.random.default_rng(0)
    near, far = rng.normal(0, 1, (30, 8)), rng.normal(0, 1, (30, 8)) + 9
    rows = [part.astype(np.float32) for part in (near[:10], far[:10], near[10:20], far[10:12], near[20:])]
    assert alike(rows) == [[0, 2, 4], [1, 3]]
    assert alike(rows, least_spread=30.0) == [[0, 1, 2, 3, 4]]
    chain = [np.float32([[step, 0], [step + 1, 0]]) for step in (0.0, 1.2, 0.6)]  # the last joins the others
    assert alike(chain) == [[0, 1, 2]]


def test_a_worklist_of_unlike_stretches_is_refused_with_the_groups_to_choose_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = tmp_path / "drive"
    classes = [{"id": index, "name": name} for index, name in enumerate(CLASSES)]
    with BagWriter(bag) as writer:
        writer.string("/labels", json.dumps({"classes": classes}), START_NS)
        for index in range(12):  # four green frames, four blue ones, four green ones
            tint = np.array([0.1, 0.1, 1.0] if 4 <= index < 8 else [0.1, 1.0, 0.1])
            stamp_ns = START_NS + index * STEP_NS
            writer.image("/front/image", (image_at(index) * tint).astype(np.uint8), stamp_ns, "front")
            writer.image("/front/label", mask_at(index % 8), stamp_ns, "front")
    worklist = worklist_of(bag, tmp_path / "worklist.json", [(0, 3), (4, 7), (8, 11)])
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    options = ["--worklist", str(worklist), "--recipe", str(tmp_path / "recipe.yaml")]
    assert train(bag, tmp_path / "library", *options) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "3 stretches with ground truth, of 2 kinds of scene" in line
    assert "--group (1: 0..0.3 s, 0.8..1.1 s; 2: 0.4..0.7 s)" in line
    assert train(bag, tmp_path / "library", *options, "--group", "3") == 2
    assert train(bag, tmp_path / "library", *options, "--group", "1") == 0
    assert "centroid of 8 images" in capsys.readouterr().out


def test_without_a_bag_the_folders_are_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "adapter", "--name", "dusk", "--library", str(tmp_path / "library")]) == 2
    assert "--from-bag" in capsys.readouterr().err


def test_the_command_trains_an_adapter_from_a_stretch(bag: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    assert train(bag, tmp_path / "library", "--stretch", "0:0.35", "--recipe", str(recipe)) == 0
    assert (tmp_path / "library" / "dusk" / "adapter_model.safetensors").is_file()
