"""`semla demo` as a user starts it: the node's process over DDS, on a random model whose masks cannot be good."""

import json
import subprocess
import sys

import av
import psutil
import pytest
from PIL import Image

from semla_ros.cli import main
from semla_ros.lab.world.classes import CLASS_NAMES

pytest.importorskip("rclpy", reason="needs ROS 2")
pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def demo(tiny_model_folder, tiny_library_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [
        sys.executable,
        "-m",
        "semla_ros.cli",
        "demo",
        "--fast",
        "--duration-s",
        "30",
        "--rate-hz",
        "4",
        "--json",
    ]
    command += ["--size", "96x72", "--seed", "3", "--out", str(out)]
    command += ["--model", str(tiny_model_folder), "--library", str(tiny_library_folder)]
    return out, subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


def test_every_mask_comes_back_and_the_exit_status_is_the_verdict(demo) -> None:
    out, finished = demo
    assert finished.returncode in (0, 1), finished.stderr
    summary = json.loads(finished.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["passed"] is (finished.returncode == 0)
    node = summary["variants"]["semla"]
    assert node["sent"] == 24
    assert node["frames"] + node["dropped"] == 24
    assert set(node["dropped_by_node"]) <= {"overtaken"}  # what a busy machine may do
    assert node["masks_of_no_image"] == 0
    assert node["fusions"] >= 1
    assert sum(item["frames"] for item in node["per_segment"].values()) == node["frames"] == summary["frames"] > 0
    assert next(check for check in summary["checks"] if check["name"] == "masks")["verdict"] == "kept"
    assert set(node["per_class"]) <= set(CLASS_NAMES)


def test_checks_and_figures_are_told_in_the_terminal(demo) -> None:
    _, finished = demo
    summary = json.loads(finished.stdout)
    for check in summary["checks"]:
        assert check["sentence"] in finished.stderr
    for name in ("base", "semla"):
        assert f"{summary['variants'][name]['visits'][-1]['miou']:.3f}" in finished.stderr
    assert "30 s" in finished.stderr


def test_pictures_and_video_show_the_answered_frames(demo) -> None:
    out, finished = demo
    for name in ("timeline.png", "contact_sheet.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 256, name
    with av.open(str(out / "replay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == json.loads(finished.stdout)["frames"]


def test_results_and_the_nodes_log_stay_and_nothing_else_does(demo) -> None:
    out, _ = demo
    assert {path.name for path in out.iterdir()} == {
        "summary.json", "trace.jsonl", "report.html", "timeline.png", "contact_sheet.png", "replay.mp4", "node.log",
    }  # fmt: skip
    assert "generation" in (out / "node.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate-hz", "-1"], "--rate-hz must be 0 to 60"),
        (["--duration-s", "0"], "--duration-s must be 1 to 3600"),
        (["--size", "8x8"], "--size must be 32x32 to 4096x4096"),
        (["--size", "320"], "WIDTHxHEIGHT"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(arguments, words, tmp_path, capsys) -> None:
    assert main(["demo", "--duration-s", "1", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_demo_that_is_terminated_keeps_what_it_has_and_leaves_no_process(
    tiny_model_folder, tiny_library_folder, tmp_path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "semla_ros.cli", "demo", "--fast", "--duration-s", "300", "--rate-hz", "2"]
    command += ["--size", "32x32", "--out", str(out), "--model", str(tiny_model_folder)]
    command += ["--library", str(tiny_library_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "/ 300 s" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.terminate()
        words = process.stdout.read()
        assert process.wait(60) == 130, words
    assert "interrupted; the results are those of the frames done so far" in words
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["complete"], summary["interrupted"], summary["passed"]) == (False, True, False)
    assert summary["frames"] == summary["variants"]["semla"]["frames"] > 0
    assert {path.name for path in out.iterdir()} >= {"report.html", "trace.jsonl", "replay.mp4"}
    assert not list(out.glob(".drive-*"))
    _, alive = psutil.wait_procs(children, 10)
    assert not alive
