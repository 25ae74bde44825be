"""`semla replay` on the shipped model: results, messages, exit statuses, and the same masks wherever they are made."""

import json
from pathlib import Path

import pytest

from semla_ros.cli import main
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.demo.demo_bag import DemoBagOptions, record_demo_bag


@pytest.fixture(scope="module")
def demo_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short drive through all weathers, two cameras."""
    path = tmp_path_factory.mktemp("bags") / "demo"
    record_demo_bag(path, DemoBagOptions(frames=12, rate_hz=1.0, width=128, height=96))
    return path


@pytest.fixture(scope="module")
def replayed(demo_bag: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("replay")
    assert main(["replay", str(demo_bag), "--out", str(out), "--compare", "base,semla", "--propose-adapter"]) == 0
    return out, json.loads((out / "summary.json").read_text())


def digests(summary: dict) -> dict[str, str]:
    return {name: entry["mask_sha256"] for name, entry in summary["variants"].items()}


def test_the_command_leaves_summary_trace_report_bag_and_worklist(replayed: tuple[Path, dict]) -> None:
    out, summary = replayed
    assert {"summary.json", "trace.jsonl", "report.html", "masks", "worklist.json"} <= {p.name for p in out.iterdir()}
    assert summary["complete"]
    for entry in summary["variants"].values():
        assert entry["frames"] == 12
        assert 0 < entry["miou"] < 1
        assert len(entry["mask_sha256"]) == 64
    assert summary["variants"]["semla"]["fusions"] >= 1  # two looks make another scene, and each of the six is one
    assert len((out / "trace.jsonl").read_text().splitlines()) == 24
    with BagReader(out / "masks") as masks:
        assert masks.topics["/perception/front/mask"].count == 6
        assert "/diagnostics" in masks.topics


def test_a_second_replay_is_byte_identical(
    demo_bag: Path, replayed: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, first = replayed
    assert main(["replay", str(demo_bag), "--out", str(tmp_path), "--no-bag", "--no-report", "--json"]) == 0
    assert digests(json.loads(capsys.readouterr().out)) == digests(first)
    assert (tmp_path / "trace.jsonl").read_bytes() == (out / "trace.jsonl").read_bytes()


@pytest.mark.ros
def test_the_real_node_gives_the_same_masks(
    demo_bag: Path, replayed: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    arguments = ["replay", str(demo_bag), "--out", str(tmp_path), "--compare", "semla", "--through-node", "--json"]
    assert main(arguments) == 0, (tmp_path / "node.log").read_text()
    through_node = json.loads(capsys.readouterr().out)["variants"]["semla"]
    assert through_node["mask_sha256"] == replayed[1]["variants"]["semla"]["mask_sha256"]
    assert through_node["generations"] == replayed[1]["variants"]["semla"]["generations"]


def test_processes_and_ray_workers_give_the_same_masks_and_the_same_pooled_results(
    demo_bag: Path, replayed: tuple[Path, dict], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs ray: the extra ray")
    other = tmp_path / "bags" / "other"
    record_demo_bag(other, DemoBagOptions(frames=4, rate_hz=1.0, width=128, height=96, cameras=("front",)))
    common = ["replay", str(demo_bag), str(other), "--no-bag", "--no-report", "--jobs", "2", "--propose-adapter"]
    assert main([*common, "--out", str(tmp_path / "cores")]) == 0
    assert main([*common, "--out", str(tmp_path / "ray"), "--ray", "local"]) == 0
    cores, ray = ((tmp_path / name / "summary.json").read_text() for name in ("cores", "ray"))
    assert cores == ray
    for name in ("cores", "ray"):
        summary = json.loads((tmp_path / name / "demo" / "summary.json").read_text())
        assert digests(summary) == digests(replayed[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], "no such file or folder"),
        (["BAG", "--topic", "/rear_left/image"], "there is no topic '/rear_left/image'; it has /front/camera_info"),
        (["BAG", "--compare", "oracle:lava"], "no adapter 'lava'"),
        (["BAG", "--compare", "best"], "unknown variant 'best'"),
        (["BAG", "--start", "1000"], "the bag is only"),
        (["BAG", "--stride", "0"], "--stride must be at least 1"),
        (["BAG", "--model", "no-such-model"], "no-such-model"),
        (["BAG", "--label-map", "absent.yaml"], "absent.yaml"),
        (["BAG", "--through-node", "--rate", "realtime"], "waits for each mask"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(
    demo_bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    arguments = [str(demo_bag) if item == "BAG" else item for item in arguments]
    assert main(["replay", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
