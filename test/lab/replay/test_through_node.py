"""The real node, over real DDS, answers a replay as the pipeline in this process does, also where its mix fades."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from semla_ros.cli import main
from semla_ros.config import SemlaConfig
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.demo.demo_bag import DemoBagOptions, record_demo_bag
from semla_ros.lab.replay import run as replay
from semla_ros.resources import share_folder

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def fading_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped adapters, recommending a mix that fades early and in small steps, at every look."""
    library = tmp_path_factory.mktemp("library") / "adapters"
    shutil.copytree(share_folder() / "adapters" / SemlaConfig().model, library)
    manifest = (library / "library.yaml").read_text()
    for key, value in {"temperature": 0.3, "fade_start": 0.5, "fade_end": 0.9}.items():
        manifest, count = re.subn(rf"(?m)^  {key}: .*$", f"  {key}: {value}", manifest)
        assert count == 1
    manifest += "drift: {mix_threshold: 0.0, steady_s: 0.0, max_fusions_per_min: 1000}\n"
    (library / "library.yaml").write_text(manifest)
    return library


@dataclass
class Done:
    """A replay's folder, and what its report was made of."""

    out: Path
    summary: dict[str, Any]
    report: dict[str, Any]


@pytest.fixture(scope="module")
def replays(fading_library: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Done]:
    """One drive of two cameras, replayed in this process and through the node."""
    pytest.importorskip("rclpy", reason="needs ROS 2")
    folder = tmp_path_factory.mktemp("replays")
    record_demo_bag(folder / "drive", DemoBagOptions(frames=24, rate_hz=1.0, width=128, height=96))
    common = ["replay", str(folder / "drive"), "--library", str(fading_library), "--propose-adapter"]
    done = []

    def keep(path: Path, summary: dict[str, Any], data: dict[str, Any]) -> None:
        done.append(Done(path.parent, without_times(summary), without_latencies(data)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "write_report", keep)
        assert main([*common, "--out", str(folder / "plain")]) == 0
        assert main([*common, "--out", str(folder / "node"), "--through-node"]) == 0
    return done[0], done[1]


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    variants = {
        name: {key: value for key, value in entry.items() if key != "latency_ms"}
        for name, entry in summary["variants"].items()
    }
    return {**{key: value for key, value in summary.items() if key != "time"}, "variants": variants}


def without_latencies(data: dict[str, Any]) -> dict[str, Any]:
    variants = {
        name: {measure: values for measure, values in entry.items() if not measure.startswith("latency")}
        for name, entry in data["timeline"]["variants"].items()
    }
    return {**data, "timeline": {**data["timeline"], "variants": variants}}


def read_trace(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (done.out / "trace.jsonl").read_text().splitlines()]


def test_the_drive_fades_and_keeps_several_adapters(replays: tuple[Done, Done]) -> None:
    lines = [line for line in read_trace(replays[0]) if line["variant"] == "semla"]
    faded = [line for line in lines if 0.1 < line["base_weight"] < 0.9]
    several = [line for line in faded if sum(adapter["weight"] > 0.05 for adapter in line["adapters"]) >= 2]
    assert len(several) >= 6
    assert len({line["base_weight"] for line in several}) >= 3
    assert {line["out_of_library"] for line in lines} == {True, False}


def test_the_node_gives_the_same_trace_line_by_line(replays: tuple[Done, Done]) -> None:
    plain, node = map(read_trace, replays)
    assert len(plain) == len(node) == 48
    for expected, line in zip(plain, node, strict=True):
        assert line == expected


def test_the_node_gives_the_same_summary_and_report(replays: tuple[Done, Done]) -> None:
    plain, node = replays
    assert node.summary == plain.summary
    assert node.report == plain.report


def test_the_new_bags_hold_the_same_masks_and_weights_on_the_same_topics(replays: tuple[Done, Done]) -> None:
    contents = []
    for done in replays:
        with BagReader(done.out / "masks") as bag:
            assert bag.topics["/diagnostics"].count > 0  # which tell latencies
            topics = [topic for topic in bag.topics if topic != "/diagnostics"]
            contents.append([(m.topic, m.log_ns, bytes(m.data)) for m in bag.messages(topics)])
    assert contents[0] == contents[1]
