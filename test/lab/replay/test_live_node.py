"""A recording played to the real node, over real DDS: each mask is that of its image, and the newest image wins."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from replay_toys import CLASSES, START_NS, STEP_NS, ToyPipeline, toy_image, write_toy_bag

pytest.importorskip("rclpy", reason="needs ROS 2")

from sensor_msgs.msg import Image
from std_msgs.msg import Header

from semla_ros.cli import main
from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import EngineError, SemlaError
from semla_ros.lab.bags.frames import FrameOptions, FrameSource
from semla_ros.lab.bags.label_map import raw_mask
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import BagWriter
from semla_ros.lab.demo.demo_bag import DemoBagOptions, record_demo_bag
from semla_ros.lab.replay import live_node
from semla_ros.lab.replay.comparison import parse_variants
from semla_ros.lab.replay.live_node import LiveRunner, make_runner
from semla_ros.lab.replay.run import Replay, ReplayOptions
from semla_ros.nodes import messages
from semla_ros.results import Frame, Generation, Level, Status
from semla_ros.serving.model_bank import load_pipeline

pytestmark = pytest.mark.ros

HELPERS = Path(__file__).parents[2] / "helpers"


class CostlessRunner(LiveRunner):
    """Plays to the real node on a model that costs nothing, whose mask tells its image."""

    module = "costless_node"


def options(model: str, **others: object) -> ReplayOptions:
    return ReplayOptions(
        compare=parse_variants("base,semla"), config=SemlaConfig(model=model), rate="live", with_report=False, **others
    )


def play(bag: Path, out: Path, model: str = "costless", watch=None, begin=None, **others: object):
    """Replay a bag of the toy world to the costless node; `watch` sees each frame, `begin` the runner before."""
    runners: list[LiveRunner] = []
    chosen = options(model, **others)

    def make(variant, cameras, resources):
        if variant.kind != "semla":
            return None
        runners.append(CostlessRunner(bag, chosen, cameras, out / "node.log", resources))
        if begin is not None:
            begin(runners[0])
        return runners[0]

    def seen(item, seconds, outcomes, scores) -> None:
        if watch is not None:
            watch(runners[0], item)

    replay = Replay(bag, out, chosen, load=ToyPipeline, make_runner=make, watch=seen)
    return replay.run(), runners[0]


@pytest.fixture(autouse=True)
def _with_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS), prepend=":")


def images_of(bag: Path) -> dict[int, tuple[str, np.ndarray]]:
    """Stamp -> frame_id and image."""
    with BagReader(bag) as reader:
        frames = [item.frame for item in FrameSource(reader, FrameOptions(), CLASSES).frames()]
    return {frame.stamp_ns: (frame.frame_id, frame.image) for frame in frames}


def masks_of(out: Path, topic: str = "/perception/mask") -> dict[int, tuple[str, np.ndarray]]:
    with BagReader(out / "masks") as reader:
        contents = [reader.deserialize(message) for message in reader.messages([topic])]
    return {
        content.header.stamp.sec * 10**9 + content.header.stamp.nanosec: (content.header.frame_id, raw_mask(content))
        for content in contents
    }


def test_every_image_is_answered_by_its_own_mask_under_its_own_header(tmp_path: Path) -> None:
    bag = write_toy_bag(tmp_path / "bag", frames=16, step_ns=200_000_000)
    summary, _ = play(bag, tmp_path / "out")
    entry = summary["variants"]["semla"]
    assert (entry["frames"], entry["sent"], entry["dropped"]) == (16, 16, 0)
    assert (entry["received_by_node"], entry["dropped_by_node"], entry["masks_of_no_image"]) == (16, {}, 0)
    images, masks = images_of(bag), masks_of(tmp_path / "out")
    assert list(masks) == list(images)
    for stamp_ns, (frame_id, image) in images.items():
        assert masks[stamp_ns][0] == frame_id == "front_optical"
        np.testing.assert_array_equal(masks[stamp_ns][1], image[..., 0] % 3)
    assert summary["variants"]["base"]["frames"] == 16


@pytest.mark.parametrize("scope", ["vehicle", "camera"])
def test_each_of_several_cameras_is_answered_by_its_own_masks(tmp_path: Path, scope: str) -> None:
    bag = write_toy_bag(tmp_path / "bag", frames=8, step_ns=300_000_000, cameras=("front", "rear"))
    summary, _ = play(bag, tmp_path / "out", scope=scope)
    entry = summary["variants"]["semla"]
    assert (entry["sent"], entry["dropped"], entry["masks_of_no_image"]) == (16, 0, 0)
    with BagReader(bag) as reader:
        frames = [item.frame for item in FrameSource(reader, FrameOptions(), CLASSES).frames()]
    assert {frame.camera for frame in frames} == {"front", "rear"}
    for frame in frames:
        frame_id, mask = masks_of(tmp_path / "out", f"/perception/{frame.camera}/mask")[frame.stamp_ns]
        assert frame_id == f"{frame.camera}_optical"
        np.testing.assert_array_equal(mask, frame.image[..., 0] % 3)


def test_each_mask_is_told_with_the_mix_that_made_it(tmp_path: Path) -> None:
    play(write_toy_bag(tmp_path / "bag", frames=30), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "trace.jsonl").read_text().splitlines()]
    semla = [line for line in lines if line["variant"] == "semla"]
    assert len({line["generation"] for line in semla}) > 1
    for line in semla:
        shares = {item["name"]: item["weight"] for item in line["adapters"]}
        assert shares == ({"night": 0.6, "fog": 0.3} if line["generation"] else {})
        assert line["base_weight"] == pytest.approx(1 - sum(shares.values()))


def test_of_images_that_come_too_fast_the_newest_wins_and_both_variants_are_judged_on_the_same(tmp_path: Path) -> None:
    bag = write_toy_bag(tmp_path / "bag", frames=40, step_ns=25_000_000)
    summary, _ = play(bag, tmp_path / "out", model="slow")
    base, entry = summary["variants"]["base"], summary["variants"]["semla"]
    assert 5 < entry["dropped"] < 35
    assert entry["frames"] + entry["dropped"] == entry["sent"] == 40
    lost = entry["sent"] - entry["received_by_node"]
    assert sum(entry["dropped_by_node"].values()) + lost == entry["dropped"]
    assert set(entry["dropped_by_node"]) == {"overtaken"}
    images, masks = images_of(bag), masks_of(tmp_path / "out")
    assert max(masks) == max(images)
    for stamp_ns, (_, mask) in masks.items():
        np.testing.assert_array_equal(mask, images[stamp_ns][1][..., 0] % 3)
    assert base["frames_with_truth"] == entry["frames_with_truth"] == entry["frames"] == summary["frames"]


def test_a_recording_that_loops_is_answered_after_its_stamps_have_jumped_back(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for index in range(12):
            stamp_ns = START_NS + (index % 6) * STEP_NS + index // 6 * 1000  # no two are the same
            writer.image("/image", toy_image(index, "fog"), stamp_ns, "front", log_ns=START_NS + index * 300_000_000)
    summary, _ = play(tmp_path / "bag", tmp_path / "out")
    entry = summary["variants"]["semla"]
    assert (entry["sent"], entry["frames"], entry["dropped"]) == (12, 12, 0)
    images, masks = images_of(tmp_path / "bag"), masks_of(tmp_path / "out")
    assert list(masks) == list(images)
    for stamp_ns, (_, image) in images.items():
        np.testing.assert_array_equal(masks[stamp_ns][1], image[..., 0] % 3)


def test_the_images_are_sent_at_their_rate_times_the_speed(tmp_path: Path) -> None:
    bag = write_toy_bag(tmp_path / "bag", frames=21, step_ns=200_000_000)
    seen_s: list[float] = []
    summary, _ = play(bag, tmp_path / "out", watch=lambda *_: seen_s.append(time.monotonic()), speed=4.0)
    assert summary["variants"]["semla"]["sent"] == 21
    assert seen_s[-1] - seen_s[0] == pytest.approx(1.0, abs=0.4)  # 4 s of recording


def test_a_mask_of_no_image_that_was_sent_is_counted_and_not_taken(tmp_path: Path) -> None:
    bag = write_toy_bag(tmp_path / "bag", frames=16, step_ns=200_000_000)

    def forge(runner: LiveRunner, item) -> None:
        """Once the 5th image is answered: a mask of it again, and of the 7th before it under another frame_id."""
        if item.index == 5:
            for index, frame_id in ((5, "front_optical"), (7, "elsewhere")):
                stamp = messages.to_stamp(item.frame.stamp_ns + (index - 5) * 200_000_000)
                message = messages.image_message(Header(stamp=stamp, frame_id=frame_id), np.full((24, 32), 2, np.uint8))
                publisher.publish(message)

    def begin(runner: LiveRunner) -> None:
        nonlocal publisher
        publisher = runner._node.create_publisher(Image, "/perception/mask", live_node.QOS)

    publisher = None
    summary, _ = play(bag, tmp_path / "out", watch=forge, begin=begin)
    entry = summary["variants"]["semla"]
    assert (entry["frames"], entry["dropped"], entry["masks_of_no_image"]) == (16, 0, 2)
    images, masks = images_of(bag), masks_of(tmp_path / "out")
    for stamp_ns, (_, image) in images.items():
        np.testing.assert_array_equal(masks[stamp_ns][1], image[..., 0] % 3)


def test_a_node_that_ends_during_the_drive_is_an_error_and_what_was_done_is_kept(tmp_path: Path) -> None:
    bag = write_toy_bag(tmp_path / "bag", frames=40)

    def end(runner: LiveRunner, item) -> None:
        if item.index == 9:
            runner._child.stop()

    with pytest.raises(EngineError, match="the perception node has ended"):
        play(bag, tmp_path / "out", watch=end)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not summary["complete"]
    assert 10 <= summary["frames"] < 40


def test_a_node_that_goes_silent_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_node, "SILENCE_S", 1.5)
    bag = write_toy_bag(tmp_path / "bag", frames=40)

    def stop_listening(runner: LiveRunner, item) -> None:
        if item.index == 9:
            runner._executor.shutdown()

    with pytest.raises(EngineError, match="did not answer within 2 s the image"):
        play(bag, tmp_path / "out", watch=stop_listening)


def test_without_the_variant_that_follows_the_scene_there_is_nothing_to_play_to() -> None:
    with pytest.raises(SemlaError, match="needs the variant 'semla'"):
        make_runner(Path("bag"), ReplayOptions(compare=parse_variants("base,uniform"), rate="live"), Path("out"))


def test_live_masks_are_those_of_the_pipeline_with_the_same_mix(tmp_path: Path) -> None:
    bag, out = tmp_path / "bag", tmp_path / "out"
    record_demo_bag(bag, DemoBagOptions(frames=16, rate_hz=2.0, cameras=("front",), width=128, height=96))
    assert main(["replay", str(bag), "--out", str(out), "--rate", "live", "--pictures"]) == 0, out
    assert {"contact_sheet.png", "timeline.png", "report.html"} <= {path.name for path in out.iterdir()}
    images = images_of(bag)
    pipeline = load_pipeline(SemlaConfig(inference=InferenceConfig(threads=1)))
    compared = 0
    with BagReader(out / "masks") as reader:
        for message in reader.messages(["/perception/adapter_weights", "/perception/mask"]):
            content = reader.deserialize(message)
            if message.topic.endswith("weights"):
                statuses = [
                    Status(
                        name=item.name,
                        level=Level(item.level),
                        message=item.message,
                        values={pair.key: pair.value for pair in item.values},
                    )
                    for item in content.status
                ]
                pipeline.apply_mix(Generation.from_statuses(statuses).mix, "test")
                continue
            stamp_ns = content.header.stamp.sec * 10**9 + content.header.stamp.nanosec
            frame_id, image = images[stamp_ns]
            frame = Frame(image=image, stamp_ns=stamp_ns, frame_id=frame_id)
            np.testing.assert_array_equal(raw_mask(content), pipeline.segment(frame).mask)
            compared += 1
    pipeline.close()
    assert compared == json.loads((out / "summary.json").read_text())["variants"]["semla"]["frames"] > 5
