"""A replay compares variants over the same frames, gives the same answer each time, and keeps what is done."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from replay_toys import ADAPTERS, CLASSES, DOMAINS, STEP_NS, ToyPipeline, toy_image, toy_truth, write_toy_bag

from semla_ros.config import SemlaConfig
from semla_ros.errors import BagError, ConfigError
from semla_ros.lab.bags.frames import FrameOptions, ReplayFrame
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import BagWriter
from semla_ros.lab.replay import output, timeline
from semla_ros.lab.replay.comparison import parse_variants
from semla_ros.lab.replay.run import Replay, ReplayOptions, replay_bag
from semla_ros.lab.replay.scores import FrameScore
from semla_ros.lab.report.moments import Moment, Panel
from semla_ros.results import Frame

ALL = "base,uniform,semla,oracle:fog,frozen@1.5"


def options(compare: str = "base,semla", **others: object) -> ReplayOptions:
    return ReplayOptions(compare=parse_variants(compare), **others)


def read_trace(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return write_toy_bag(tmp_path / "bag")


def test_following_the_scene_beats_the_base_model_where_the_scene_is_shifted(bag: Path, tmp_path: Path) -> None:
    summary = replay_bag(bag, tmp_path / "out", options(ALL), load=ToyPipeline)
    variants = summary["variants"]
    assert list(variants) == ALL.split(",")
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {entry["frames"] for entry in variants.values()} == {40}
    assert variants["semla"]["miou"] > variants["base"]["miou"] + 0.15
    assert variants["semla"]["shifted_gain_over_base"] > 0.2
    assert variants["semla"]["per_segment"]["fog"]["miou"] > 0.9 > variants["base"]["per_segment"]["fog"]["miou"]
    assert variants["oracle:fog"]["per_segment"]["fog"]["miou"] > 0.9
    assert variants["oracle:fog"]["per_segment"]["clear"]["miou"] < 0.7
    assert variants["semla"]["segment_adapters"] == {
        "clear": "clear", "fog": "fog", "night": "night", "volcano": "base model",
    }  # fmt: skip
    assert variants["base"]["fusions"] == 0
    assert variants["base"]["generations"] == 1
    assert summary["complete"]
    assert summary["primary"] == "semla"


def test_a_frozen_variant_follows_the_scene_until_its_moment(bag: Path, tmp_path: Path) -> None:
    replay_bag(bag, tmp_path / "out", options("semla,frozen@1.5"), load=ToyPipeline)
    heaviest = {}
    for line in read_trace(tmp_path / "out"):
        heaviest.setdefault(line["variant"], {})[line["frame"]] = line["adapters"][0]["name"]
    assert heaviest["frozen@1.5"][15] == heaviest["semla"][15] == "fog"
    assert heaviest["semla"][25] == "night"
    assert heaviest["frozen@1.5"][25] == "fog"


def test_two_replays_give_byte_identical_masks_and_traces(bag: Path, tmp_path: Path) -> None:
    first = replay_bag(bag, tmp_path / "a", options(ALL), load=ToyPipeline)
    second = replay_bag(bag, tmp_path / "b", options(ALL), load=ToyPipeline)
    assert (tmp_path / "a" / "trace.jsonl").read_bytes() == (tmp_path / "b" / "trace.jsonl").read_bytes()
    for name, entry in first["variants"].items():
        assert entry["mask_sha256"] == second["variants"][name]["mask_sha256"]
    assert len({entry["mask_sha256"] for entry in first["variants"].values()}) == 5


def test_the_digest_is_over_all_masks_in_order(bag: Path, tmp_path: Path) -> None:
    summary = replay_bag(bag, tmp_path / "out", options("base"), load=ToyPipeline)
    digest = hashlib.sha256()
    with BagReader(bag) as reader:
        pipeline = ToyPipeline()
        for message in reader.messages(["/front/image"]):
            image = np.asarray(reader.deserialize(message).data).reshape(24, 32, 3)
            value = (image[..., 0] - 80.0) / 50.0
            digest.update(np.clip(np.round(value), 0, 2).astype(np.uint8).tobytes())
        pipeline.close()
    assert summary["variants"]["base"]["mask_sha256"] == digest.hexdigest()


def test_the_new_bag_holds_masks_labels_and_weights_on_the_nodes_topics(bag: Path, tmp_path: Path) -> None:
    replay_bag(bag, tmp_path / "out", options(), load=ToyPipeline)
    with BagReader(tmp_path / "out" / "masks") as masks, BagReader(bag) as source:
        counts = {name: topic.count for name, topic in masks.topics.items()}
        assert counts["/perception/mask"] == counts["/perception/confidence"] == 40
        assert counts["/perception/overlay/compressed"] == counts["/replay/base/mask"] == 40
        assert counts["/perception/adapter_weights"] == 4
        assert (masks.start_ns, masks.end_ns) == (source.start_ns, source.end_ns)
        mask = masks.deserialize(next(masks.messages(["/perception/mask"])))
        image = source.deserialize(next(source.messages(["/front/image"])))
        assert (mask.header.stamp, mask.header.frame_id) == (image.header.stamp, "front_optical")
        assert (mask.encoding, mask.height, mask.width) == ("mono8", 24, 32)
        labels = json.loads(masks.deserialize(next(masks.messages(["/perception/labels"]))).data)
        assert [item["name"] for item in labels["classes"]] == list(CLASSES)
        weights = masks.deserialize(next(masks.messages(["/perception/adapter_weights"])))
        assert [status.name for status in weights.status][-1] == "base model"


def test_without_truth_the_replay_still_says_where_to_look(tmp_path: Path) -> None:
    bag = write_toy_bag(tmp_path / "bag", has_truth=False)
    summary = replay_bag(bag, tmp_path / "out", options(propose_adapter=True), load=ToyPipeline)
    semla, base = summary["variants"]["semla"], summary["variants"]["base"]
    assert semla["miou"] is None
    assert 0.5 < summary["agreement"]["base|semla"] < 0.95
    assert semla["confidence"] > base["confidence"]
    assert 0 < semla["flicker"] < 0.5
    assert 0.8 <= semla["out_of_library_s"] <= 1.1
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Least confident" in html
    assert "agree on" in html


def test_the_worklist_names_what_no_adapter_covers(bag: Path, tmp_path: Path) -> None:
    summary = replay_bag(bag, tmp_path / "out", options(propose_adapter=True), load=ToyPipeline)
    worklist = json.loads((tmp_path / "out" / "worklist.json").read_text())
    assert worklist["stretches"] == summary["worklist"]
    (stretch,) = worklist["stretches"]
    assert stretch["segment"] == "volcano"
    assert stretch["start_s"] == pytest.approx(3.0, abs=0.5)
    assert stretch["end_s"] == pytest.approx(3.9, abs=0.01)
    assert stretch["nearest_adapters"][0]["name"] == "night"
    assert stretch["frames_with_truth"] == stretch["frames"]
    assert all((tmp_path / "out" / path).is_file() for path in stretch["examples"])


def test_an_interrupt_keeps_what_was_done(bag: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    summary = Replay(bag, tmp_path / "out", options(), load=ToyPipeline).run(interrupt)
    assert (summary["complete"], summary["interrupted"], summary["frames"]) == (False, True, 25)
    assert summary["variants"]["semla"]["frames"] == 25
    assert len(read_trace(tmp_path / "out")) == 50
    assert "Interrupted" in (tmp_path / "out" / "report.html").read_text()
    with BagReader(tmp_path / "out" / "masks") as masks:
        assert masks.topics["/perception/mask"].count == 25
        assert masks.problems == []


def test_a_failure_midway_is_raised_and_what_was_done_is_kept(bag: Path, tmp_path: Path) -> None:
    class Breaking(ToyPipeline):
        def segment(self, frame, want_confidence=True):
            if frame.image[0, 0, 0] == 1:
                raise BagError("the model broke")
            return super().segment(frame, want_confidence)

    with pytest.raises(BagError, match="the model broke"):
        replay_bag(bag, tmp_path / "out", options("semla"), load=Breaking)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["complete"], summary["error"], summary["frames"]) == (False, "the model broke", 10)


def test_a_damaged_bag_is_replayed_around_the_damage_and_says_so(tmp_path: Path) -> None:
    bag = write_toy_bag(tmp_path / "bag", frames=1200, step_ns=STEP_NS // 10)
    file = next(bag.glob("*.mcap"))
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 100_000] = b"\xff" * 100_000
    file.write_bytes(data)
    summary = replay_bag(bag, tmp_path / "out", options("base", with_bag=False), load=ToyPipeline)
    assert summary["complete"]
    assert 500 < summary["frames"] < 1200
    assert any("bag.mcap" in problem for problem in summary["problems"])
    assert read_trace(tmp_path / "out")[-1]["stamp_ns"] % 10**11 == (1199 * STEP_NS // 10) % 10**11


def test_realtime_drops_what_comes_while_the_model_is_busy(bag: Path, tmp_path: Path) -> None:
    def slow(config: object) -> ToyPipeline:
        return ToyPipeline(latency_ms=250.0)

    prompt = replay_bag(bag, tmp_path / "a", options("base,semla", rate="realtime"), load=ToyPipeline)["variants"]
    late = replay_bag(bag, tmp_path / "b", options("base,semla", rate="realtime"), load=slow)["variants"]
    exact = replay_bag(bag, tmp_path / "c", options("base,semla"), load=ToyPipeline)["variants"]
    assert prompt["semla"]["dropped"] == 0
    assert prompt["semla"]["fusions"] == exact["semla"]["fusions"] == 4
    assert prompt["semla"]["frames"] == 40
    assert late["semla"]["frames"] + late["semla"]["dropped"] == 40
    assert 20 <= late["semla"]["dropped"] <= 27, "a mask takes two and a half periods"
    assert late["semla"]["miou"] < prompt["semla"]["miou"] < exact["semla"]["miou"]


def test_one_scene_estimate_serves_all_cameras_or_each_has_its_own(tmp_path: Path) -> None:
    bag = write_toy_bag(tmp_path / "bag", cameras=("front", "left"))
    shared = replay_bag(bag, tmp_path / "a", options("semla"), load=ToyPipeline)
    actions = {(line["camera"], line["action"]) for line in read_trace(tmp_path / "a")}
    assert ("left", None) in actions
    assert ("front", "fused") in actions
    assert not any(camera == "left" and action for camera, action in actions)
    own = replay_bag(bag, tmp_path / "b", options("semla", scope="camera"), load=ToyPipeline)
    assert ("left", "fused") in {(line["camera"], line["action"]) for line in read_trace(tmp_path / "b")}
    assert [camera["frames"] for camera in shared["cameras"]] == [40, 40]
    assert own["variants"]["semla"]["frames"] == 80
    with BagReader(tmp_path / "b" / "masks") as masks:
        assert "/perception/left/mask" in masks.topics
        assert "/perception/left/adapter_weights" in masks.topics


def test_memory_does_not_grow_with_the_length_of_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "_BINS", 20)  # reached by the shorter recording, too
    peaks = []
    for frames in (350, 700):  # both fill the bags' chunks
        bag = write_toy_bag(tmp_path / f"bag{frames}", frames=frames)
        tracemalloc.start()
        replay_bag(bag, tmp_path / f"out{frames}", options("base,semla", with_report=False), load=ToyPipeline)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 200_000, peaks


def test_results_of_an_earlier_replay_make_room_but_nothing_else_does(bag: Path, tmp_path: Path) -> None:
    replay_bag(bag, tmp_path / "out", options("base"), load=ToyPipeline)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    replay_bag(bag, tmp_path / "out", options("base"), load=ToyPipeline)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "other" / "masks").mkdir(parents=True)
    with pytest.raises(BagError, match="not of a replay"):
        replay_bag(bag, tmp_path / "other", options("base"), load=ToyPipeline)


def test_a_video_is_written_on_request(bag: Path, tmp_path: Path) -> None:
    chosen = options("base,semla", with_video=True, frames=FrameOptions(max_frames=6))
    replay_bag(bag, tmp_path / "out", chosen, load=ToyPipeline)
    with av.open(str(tmp_path / "out" / "replay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 6


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ("nearest", "unknown variant 'nearest'"),
        ("base,base", "twice"),
        ("frozen@noon", "needs a time"),
        ("oracle:", "unknown variant 'oracle:'"),
        ("semla@", "unknown variant 'semla@'"),
        ("", "unknown variant ''"),
    ],
)
def test_unknown_variants_are_refused(compare: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_variants(compare)


def test_a_variant_may_have_a_library_of_its_own(bag: Path, tmp_path: Path) -> None:
    libraries: list[str] = []

    def load(config: SemlaConfig) -> ToyPipeline:
        libraries.append(config.library)
        return ToyPipeline(config)

    summary = replay_bag(bag, tmp_path / "out", options("base,semla@my/other,semla"), load=load)
    assert sorted(libraries) == ["", "", "my/other"]
    assert set(summary["variants"]) == {"base", "semla@my/other", "semla"}


def test_an_oracle_that_the_library_lacks_is_refused_with_what_it_has(bag: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no adapter 'lava'; known: {', '.join(ADAPTERS)}"):
        replay_bag(bag, tmp_path / "out", options("oracle:lava"), load=ToyPipeline)
    with pytest.raises(ConfigError, match="add semla"):
        options("base", propose_adapter=True)


def test_a_bag_without_a_usable_frame_is_an_error_that_says_why(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write("/image", "sensor_msgs/msg/Image", b"\x00\x01\x00\x00\xff", 1)
    with pytest.raises(BagError, match="no frame could be replayed: image on /image"):
        replay_bag(tmp_path / "bag", tmp_path / "out", options("base"), load=ToyPipeline)


def test_pipelines_are_closed_afterwards(bag: Path, tmp_path: Path) -> None:
    made: list[ToyPipeline] = []

    def load(config: object) -> ToyPipeline:
        made.append(ToyPipeline())
        return made[-1]

    replay_bag(bag, tmp_path / "out", options(ALL), load=load)
    assert len(made) == 5
    assert all(pipeline.is_closed for pipeline in made)


def test_frames_can_be_chosen(bag: Path, tmp_path: Path) -> None:
    chosen = options("base", frames=FrameOptions(start_s=1.0, duration_s=1.0, stride=2))
    assert replay_bag(bag, tmp_path / "out", chosen, load=ToyPipeline)["frames"] == 5
    assert toy_image(0, "fog").shape == (24, 32, 3)


def test_pictures_show_the_first_camera_and_one_moment_of_each_named_stretch(tmp_path: Path) -> None:
    bag = write_toy_bag(tmp_path / "bag", frames=160, cameras=("front", "rear"))
    out = tmp_path / "out"
    replay_bag(bag, out, options("base,uniform,semla", with_video=True, with_pictures=True), load=ToyPipeline)
    with Image.open(out / "contact_sheet.png") as sheet, av.open(str(out / "replay.mp4")) as video:
        assert len(DOMAINS) * 256 < sheet.width < (len(DOMAINS) + 1) * 256
        assert 5 * 192 < sheet.height < 6.5 * 192  # camera, truth, three variants
        assert sum(1 for _ in video.decode(video=0)) == 160
    assert (out / "timeline.png").is_file()


def test_a_moment_is_of_median_gain_among_those_spread_over_its_stretch(tmp_path: Path, monkeypatch) -> None:
    written: list[Moment] = []
    monkeypatch.setattr(output, "write_contact_sheet", lambda path, moments, *others: written.extend(moments))
    maker = output.MomentMaker(["semla"], "semla", CLASSES)
    sheet = output.ContactSheet(tmp_path / "sheet.png", maker, None)
    gains = np.random.default_rng(0).permutation(100) / 100
    for index in range(101):
        picture = np.zeros((24, 32, 3), np.uint8)
        moment = Moment(name="fog", place=str(index), panels=[Panel(title="semla", picture=picture)])
        segment = "fog" if index < 100 else "transition"
        item = ReplayFrame(index, Frame(image=picture, stamp_ns=index), index, toy_truth(index), segment, "/image")
        sheet.add(item, moment, {"semla": FrameScore(miou=float(gains[index % 100]))})
    sheet.close()
    (chosen,) = written
    assert 0.3 < gains[int(chosen.place)] < 0.7


def test_without_truth_there_are_no_pictures_to_compare(tmp_path: Path) -> None:
    bag, out = write_toy_bag(tmp_path / "bag", has_truth=False), tmp_path / "out"
    replay_bag(bag, out, options(with_pictures=True), load=ToyPipeline)
    assert not {"contact_sheet.png", "timeline.png"} & {path.name for path in out.iterdir()}
