"""A recording of everything that a camera and a node published, replayed, gives what the camera's topics alone give."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from graph import HERE, Graph, NodeProcess, wait_for
from replay_toys import ToyPipeline

from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import BagWriter
from semla_ros.lab.replay.comparison import parse_variants
from semla_ros.lab.replay.run import ReplayOptions, replay_bag

FRAMES = 12
CAMERA = ("image", "ground_truth", "segment")
RENAMED = ("mask:=/elsewhere/road_labels", "overlay:=/view/front", "adapter_weights:=/elsewhere/mix")
OPTIONS = ReplayOptions(compare=parse_variants("base,semla"), with_report=False, with_bag=False)


@pytest.mark.parametrize("renamed", [(), RENAMED], ids=["by its own name", "renamed in a namespace"])
def test_everything_recorded_gives_the_same_masks_as_the_camera_alone(
    graph: Graph, tmp_path: Path, renamed: tuple[str, ...]
) -> None:
    place = "vehicle/one" if renamed else "plain"
    names = ["-r", "__node:=segmenter", *(word for name in renamed for word in ("-r", f"~/{name}"))] if renamed else []
    everything = tmp_path / "all"
    recorder = NodeProcess(
        [sys.executable, str(HERE / "recorder.py"), str(everything)], graph.environment, tmp_path / "recorder.log"
    )
    try:
        graph.start(str(HERE / "costless_node.py"), *(["--ros-args", *names, "--"] if names else []), namespace=place)
        graph.start(
            "-m", "semla_ros.lab.demo.scene_camera_node", namespace=place,
            rate_hz=4.0, duration_s=FRAMES / 4, width=64, height=48, wait_for_subscribers=2,
        )  # fmt: skip
        mask = "/elsewhere/road_labels" if renamed else f"/{place}/perception/mask"
        wait_for(lambda: f"recording {mask}" in recorder.output, "the mask is recorded")
        camera = graph.processes[-1]
        wait_for(lambda: f"{FRAMES} images" in camera.output, "the end of the drive")
    finally:
        recorder.stop(signal.SIGINT)
        for process in graph.processes[-2:]:
            process.stop()
    with BagReader(everything) as bag, BagWriter(tmp_path / "camera") as alone:
        assert bag.topics[mask].count > 0
        for message in bag.messages([f"/{place}/{name}" for name in CAMERA]):
            alone.write(message.topic, message.type, message.data, message.log_ns)
    summaries = [
        replay_bag(path, tmp_path / f"out-{path.name}", OPTIONS, load=ToyPipeline)
        for path in (everything, tmp_path / "camera")
    ]
    for name in ("base", "semla"):
        of_all, of_camera = ({**summary["variants"][name], "latency_ms": None} for summary in summaries)
        assert of_all == of_camera
    assert [camera["topic"] for camera in summaries[0]["cameras"]] == [f"/{place}/image"]
    assert summaries[0]["cameras"][0]["truth"] == f"/{place}/ground_truth"
    left_out = {topic["topic"]: topic["why_not"] for topic in summaries[0]["topics"] if topic["why_not"]}
    assert left_out.get(mask) == "a node's own output"
    assert set(left_out.values()) == {"a node's own output"}
