"""What a node answered is never taken for what a camera saw, nor for truth, whatever the node was called."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bag_kinds import (
    IMAGE,
    START_NS,
    STEP_NS,
    STRING,
    TOPIC,
    Mcap,
    drive,
    image_data,
    stamp,
    string_data,
    write_db3,
)
from replay_toys import CLASSES, ToyPipeline, toy_truth, write_toy_bag

from semla_ros.cli import main
from semla_ros.errors import BagError
from semla_ros.lab.bags.cameras import find_cameras
from semla_ros.lab.bags.frames import FrameOptions, FrameSource
from semla_ros.lab.bags.own_output import own_topics
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.stored import StoredMessage
from semla_ros.lab.bags.writer import BagWriter
from semla_ros.lab.replay.comparison import parse_variants
from semla_ros.lab.replay.many import find_bags
from semla_ros.lab.replay.run import ReplayOptions, replay_bag
from semla_ros.lab.training.bag_samples import BagSamples, bag_class_names
from semla_ros.labels import labels_json
from semla_ros.results import AdapterMix, Generation, MaskInfo, Status

FRAMES = 6
OPTIONS = ReplayOptions(compare=parse_variants("base,semla"), with_report=False)


def mix(topics: Sequence[str] = ()) -> list[Status]:
    """What a node tells of its mix; with the names of its topics, or as older nodes did without."""
    generation = Generation(
        number=1,
        mix=AdapterMix(names=("fog",), weights=np.array([0.7]), distances=np.array([0.4]), base_weight=0.3),
        class_names=CLASSES,
        vocabulary_version=1,
    )
    statuses = generation.statuses()
    if topics:
        statuses[-1].values["topics"] = " ".join(topics)
    return statuses


def mask_info() -> list[Status]:
    info = MaskInfo(
        camera="", generation=1, vocabulary_version=1, mix_id="1234abcd", engine="torch", precision="fp32", latency_ms=1
    )
    return [info.status()]


def add_answers(
    path: Path, source: Path, node: str, *, explained_by: str = "mix", renamed: dict[str, str] | None = None
) -> Path:
    """A recording of everything: the topics of another one, and what a node answered."""
    names = {name: f"{node}/{name}" for name in ("mask", "confidence", "overlay", "overlay/compressed", "labels")}
    names |= renamed or {}
    with BagReader(source) as read, BagWriter(path) as bag:
        bag.string(names["labels"], labels_json([f"own {name}" for name in CLASSES], 1), START_NS)
        if explained_by == "mix that names topics":
            bag.diagnostics("/elsewhere", mix(list(names.values())), START_NS)
        elif explained_by == "mix":
            bag.diagnostics(f"{node}/adapter_weights", mix(), START_NS)
        for message in read.messages(list(read.topics)):
            bag.write(message.topic, message.type, message.data, message.log_ns)
            if message.topic != "/front/image":
                continue
            index, log_ns = (message.log_ns - START_NS) // STEP_NS, message.log_ns
            mask = (toy_truth(index) + 1) % 3
            bag.image(names["mask"], mask, log_ns)
            bag.image(names["confidence"], mask, log_ns)
            bag.image(names["overlay"], np.repeat(mask[..., None], 3, axis=2), log_ns)
            bag.compressed_image(names["overlay/compressed"], np.repeat(mask[..., None], 3, axis=2), log_ns)
            if explained_by == "mask_info":
                bag.diagnostics(f"{node}/mask_info", mask_info(), log_ns)
    return path


RENAMED = {"mask": "/segmenter/labels_image", "overlay": "/view", "overlay/compressed": "/view/compressed"}
RECORDINGS = [
    ("/perception", "", {}),
    ("/robot1/perception", "", {}),
    ("/perception/front", "", {}),
    ("/seg", "mix", {}),
    ("/robot2/ns/seg", "mix", {}),
    ("/seg/front", "mask_info", {}),
    ("/seg", "mix that names topics", {}),
    ("/seg", "mix that names topics", RENAMED),
]


def figures(summary: dict) -> dict:
    return {name: {key: value for key, value in entry.items() if key != "latency_ms"}
            for name, entry in summary["variants"].items()}  # fmt: skip


@pytest.mark.parametrize("has_truth", [True, False])
@pytest.mark.parametrize(("node", "explained_by", "renamed"), RECORDINGS)
def test_a_recording_of_everything_gives_what_the_camera_alone_gives(
    tmp_path: Path, node: str, explained_by: str, renamed: dict[str, str], has_truth: bool
) -> None:
    camera = write_toy_bag(tmp_path / "camera", FRAMES, has_truth=has_truth)
    everything = add_answers(tmp_path / "all", camera, node, explained_by=explained_by, renamed=renamed)
    alone = replay_bag(camera, tmp_path / "out-camera", OPTIONS, load=ToyPipeline)
    summary = replay_bag(everything, tmp_path / "out-all", OPTIONS, load=ToyPipeline)
    assert figures(summary) == figures(alone)
    assert (tmp_path / "out-all" / "trace.jsonl").read_bytes() == (tmp_path / "out-camera" / "trace.jsonl").read_bytes()
    assert [(camera["topic"], camera["truth"]) for camera in summary["cameras"]] == [
        ("/front/image", "/front/label" if has_truth else "")
    ]
    left_out = {topic["topic"]: topic["why_not"] for topic in summary["topics"] if topic["why_not"]}
    assert len(left_out) == 4
    assert set(left_out.values()) == {"a node's own output"}


def test_without_any_explanation_the_names_of_answers_are_left_out_and_can_be_asked_for(tmp_path: Path) -> None:
    everything = add_answers(tmp_path / "all", write_toy_bag(tmp_path / "camera", FRAMES), "/seg", explained_by="")
    with BagReader(everything) as bag:
        found = find_cameras(bag, (), ("auto",))
        assert [(camera.topic, camera.truth_topic) for camera in found.cameras] == [("/front/image", "/front/label")]
        assert set(found.left_out) == {"/seg/mask", "/seg/confidence", "/seg/overlay", "/seg/overlay/compressed"}
        asked = find_cameras(bag, ("/seg/overlay",), ("/seg/mask",)).cameras
        assert (asked[0].topic, asked[0].truth_topic) == ("/seg/overlay", "/seg/mask")


def test_a_truth_topic_beside_a_camera_of_another_diagnostic_node_is_still_found(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.diagnostics("/front/driver", [Status(name="camera", message="", values={"temperature": "40"})], START_NS)
        bag.image("/front/image", toy_truth(0)[..., None].repeat(3, 2), START_NS)
        bag.image("/front/label", toy_truth(0), START_NS)
    with BagReader(tmp_path / "bag") as read:
        assert own_topics(read) == frozenset()
        assert find_cameras(read, (), ("auto",)).cameras[0].truth_topic == "/front/label"


def test_an_adapter_is_never_trained_on_the_nodes_own_masks_or_names(tmp_path: Path) -> None:
    camera = write_toy_bag(tmp_path / "camera", FRAMES, has_truth=False)
    everything = add_answers(tmp_path / "all", camera, "/seg", renamed={"mask": "/seg/mask"})
    with pytest.raises(BagError, match="no ground truth found"):
        BagSamples(everything, CLASSES, FrameOptions())
    assert bag_class_names(everything) == CLASSES, "those of the recording, not those of the node"


def test_what_a_replay_wrote_is_left_out_below_a_folder_wherever_it_was_put(tmp_path: Path) -> None:
    bags = tmp_path / "bags"
    write_toy_bag(bags / "monday", FRAMES)
    first = find_bags([bags])
    for name in ("out", "masks", "monday"):
        replay_bag(bags / "monday", bags / "results" / name, OPTIONS, load=ToyPipeline)
    (bags / "results" / "out" / "masks").rename(bags / "kept for later")
    (bags / "results" / "masks" / "trace.jsonl").unlink()
    assert find_bags([bags]) == first
    with pytest.raises(BagError, match="a node's own output"):
        replay_bag(bags / "kept for later", tmp_path / "again", OPTIONS, load=ToyPipeline)
    single = next((bags / "kept for later").glob("*.mcap"))
    with pytest.raises(BagError, match="a node's own output"):
        replay_bag(single, tmp_path / "again", OPTIONS, load=ToyPipeline)


def test_depth_and_the_like_are_no_cameras_whatever_their_topic_is_called(tmp_path: Path) -> None:
    wide = np.full((12, 16), 900, np.uint16)
    with BagWriter(tmp_path / "bag") as bag:
        bag.image("/cam/image_raw", toy_truth(0)[..., None].repeat(3, 2), START_NS)
        for topic in ("/cam/depth/image_rect_raw", "/cam/aligned_depth_to_color/image_raw", "/stereo/disparity"):
            bag.image(topic, wide, START_NS)
        bag.write("/oak/stereo/image_raw", IMAGE, image_data(0, "16UC1"), START_NS)
        bag.write("/zed/registered", IMAGE, image_data(0, "32FC1"), START_NS)
        bag.compressed_image("/cam/z/compressed", toy_truth(0), START_NS, format="16UC1; compressedDepth png")
    with BagReader(tmp_path / "bag") as read:
        found = find_cameras(read, (), ("auto",))
        assert [camera.topic for camera in found.cameras] == ["/cam/image_raw"]
        assert len(found.left_out) == 6
        assert all(why.startswith("depth by its") for why in found.left_out.values())


def test_video_packets_are_named_as_what_they_are(tmp_path: Path) -> None:
    video = StoredMessage("/cam/video", "ffmpeg_image_transport_msgs/msg/FFMPEGPacket", START_NS, bytes(40))
    with BagReader(Mcap().write(tmp_path / "a.mcap", [video, *drive(2)])) as read:
        assert "video packets" in find_cameras(read, (), ("auto",)).left_out["/cam/video"]
    with BagReader(Mcap().write(tmp_path / "b.mcap", [video])) as read, pytest.raises(BagError, match="video packets"):
        find_cameras(read, (), ("auto",))


def test_the_problems_of_a_bag_are_told_with_a_camera_that_it_lacks(tmp_path: Path) -> None:
    messages = [StoredMessage("/note", STRING, stamp(index), string_data("x" * 3000)) for index in range(20)]
    path = write_db3(tmp_path / "a.db3", messages)
    path.write_bytes(path.read_bytes()[:30_000])
    with BagReader(path) as read, pytest.raises(BagError, match=r"there is no image topic; .*cut after 30000"):
        find_cameras(read, (), ("auto",))


def test_terminal_report_and_summary_tell_topics_truth_and_losses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Mcap(per_chunk=3, wrong_crc=(1,)).write(tmp_path / "a.mcap", drive())
    assert main(["replay", str(path), "--out", str(tmp_path / "out"), "--compare", "base", "--no-bag"]) == 0
    printed = capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    images = next(topic for topic in summary["topics"] if topic["used_as"] == "images")
    assert (images["counted"], images["delivered"], images["lost"], images["left_out"]) == (10, 8, 2, 0)
    for line in (f"images: {TOPIC}, 8 of 10 messages read, 2 lost", "truth: none"):
        assert line in printed
        assert line in page
    for problem in (f"2 of 10 messages of {TOPIC} lost", "its checksum is wrong"):
        assert problem in printed
        assert problem in page
        assert any(problem in line for line in summary["problems"])


def test_what_is_not_asked_for_is_told_apart_from_what_is_lost(tmp_path: Path) -> None:
    path = Mcap(per_chunk=3, wrong_crc=(1,)).write(tmp_path / "a.mcap", drive())
    damaged_is_read = [
        ({"stride": 2}, True),
        ({"start_s": 0.45}, False),
        ({"duration_s": 0.3}, True),
        ({"max_frames": 3}, True),
    ]
    for options, is_read in damaged_is_read:
        with BagReader(path) as read:
            source = FrameSource(read, FrameOptions(**options), CLASSES)
            frames = list(source.frames())
            images = next(topic for topic in source.account() if topic["used_as"] == "images")
        assert images["counted"] == images["delivered"] + images["lost"] + images["left_out"] == 10
        assert images["delivered"] == len(frames)
        assert images["lost"] == (2 if is_read else 0), "what was not looked at is not called lost"
        assert images["left_out"] > 0


def test_a_batch_tells_topics_truth_and_losses_of_its_bags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags = tmp_path / "bags"
    for name in ("one", "two"):
        (bags / name).mkdir(parents=True)
        Mcap(per_chunk=3, wrong_crc=(1,) if name == "two" else ()).write(bags / name / "a.mcap", drive())
    arguments = ["--compare", "base", "--no-bag", "--no-report", "--jobs", "2"]
    assert main(["replay", str(bags), "--out", str(bags / "out"), *arguments]) == 0
    printed = capsys.readouterr().err
    assert f"images of 2 bags: {TOPIC} against no truth topic" in printed
    assert f"{bags / 'two'}: 2 of 10 messages of {TOPIC} lost" in printed
    assert f"{bags / 'one'}: " not in printed
