"""What goes to Rerun, read back from the file; needs rerun-sdk."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from replay_toys import ToyPipeline, write_toy_bag

from semla_ros.cli import main
from semla_ros.errors import ConfigError
from semla_ros.lab.replay.comparison import parse_variants
from semla_ros.lab.replay.rerun_watch import RerunWatch
from semla_ros.lab.replay.run import Replay, ReplayOptions
from semla_ros.lab.report.embedding_map import Scenery
from semla_ros.lab.report.rerun_log import RerunLog

SCENERY = Scenery(
    points={"fog": np.random.default_rng(0).normal(size=(5, 4))},
    centroids={"fog": np.eye(4)[0], "night": np.eye(4)[1], "snow": np.eye(4)[2]},
    families={"fog": "fog"},
)


@pytest.fixture
def rerun() -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")


def printed(file: Path) -> str:
    """The recording as the program that comes with rerun-sdk prints it."""
    command = [sys.executable, "-m", "rerun", "rrd", "print", "-vv", str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.usefixtures("rerun")
def test_images_masks_mix_and_map_are_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "made" / "drive.rrd"
    log = RerunLog(str(file))
    log.classes(["road", "sky"])
    log.library(SCENERY)
    for second, share in enumerate((0.2, 0.8)):
        log.time(float(second))
        log.image("front", np.full((6, 8, 3), 40, np.uint8))
        log.mask("front", np.ones((6, 8), np.uint8))
        log.figures("miou", {"semla": share, "base": float("nan")})
        log.mix({"fog": share, "base model": 1 - share})
        log.scene(np.eye(4)[0])
    log.close()
    text = printed(file)
    for path in ("/cameras/front/image", "/cameras/front/mask", "/library/centroids", "/library/scene", "/mix/fog"):
        assert path in text, path
    assert "AnnotationContext" in text
    assert "/miou/semla" in text
    assert "/miou/base" not in text


@pytest.mark.usefixtures("rerun")
def test_a_replay_writes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semla_ros.lab.replay.rerun_watch.scenery_of", lambda _library: SCENERY)  # toys have none
    bag = write_toy_bag(tmp_path / "bag", frames=12)
    variants = parse_variants("base,semla")
    log = RerunLog(str(tmp_path / "drive.rrd"))
    watch = RerunWatch(log, variants, load=ToyPipeline)
    options = ReplayOptions(compare=variants, with_bag=False, with_report=False)
    Replay(bag, tmp_path / "out", options, load=watch.load, watch=watch.watch).run()
    log.close()
    rows: Counter[str] = Counter()
    for count, path in re.findall(r"with (\d+) rows .*? - (/\S+)", printed(tmp_path / "drive.rrd")):
        rows[path] += int(count)  # an entity lies in as many chunks as time made of it
    assert {rows[f"/cameras/camera/{name}"] for name in ("image", "truth", "base", "semla")} == {12}
    assert rows["/miou/semla"] == rows["/confidence/semla"] == 12


@pytest.mark.usefixtures("rerun")
@pytest.mark.parametrize("is_dated", [True, False])
def test_a_node_s_stamps_are_dates_and_a_replay_s_seconds_since_its_begin(is_dated: bool, tmp_path: Path) -> None:
    log = RerunLog(str(tmp_path / "drive.rrd"), is_dated=is_dated)
    log.time(1.8e9)
    log.figures("miou", {"semla": 0.5})
    log.close()
    assert ("type: Duration(ns)" in printed(tmp_path / "drive.rrd")) is not is_dated


@pytest.mark.usefixtures("rerun")
def test_a_name_is_one_part_of_a_path_whatever_is_in_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = RerunLog(str(tmp_path / "drive.rrd"))
    log.time(0.0)
    log.mix({"base model": 1.0})
    log.figures("miou", {"semla@a/b": 0.5})
    log.close()
    assert capfd.readouterr().err == ""  # Rerun warns of blanks that are not escaped
    text = printed(tmp_path / "drive.rrd")
    assert r"/mix/base\ model" in text
    assert r"/miou/semla\@a\/b" in text


@pytest.mark.usefixtures("rerun")
def test_a_disk_that_is_full_is_an_error_before_rerun_could_hang(tmp_path: Path) -> None:
    program = """
import resource, signal, sys
from semla_ros.lab.report.rerun_log import RerunLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    RerunLog(sys.argv[1])
except OSError as error:
    print(error.strerror)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "drive.rrd")]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert ended.stdout == "File too large\n"


@pytest.mark.usefixtures("rerun")
def test_the_viewer_is_found_where_its_environment_is_not_active(monkeypatch: pytest.MonkeyPatch) -> None:
    import rerun

    monkeypatch.setenv("PATH", "/nowhere")
    found: list[str | None] = []
    monkeypatch.setattr(rerun.RecordingStream, "spawn", lambda *_, **__: found.append(shutil.which("rerun")))
    RerunLog("viewer").close()
    assert found == [str(Path(sys.executable).with_name("rerun"))]


@pytest.mark.usefixtures("rerun")
def test_a_target_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"FILE\.rrd"):
        RerunLog("drive.mcap")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    bag = write_toy_bag(tmp_path / "bag", frames=2)
    options = ["--out", str(tmp_path / "out"), "--rerun", str(tmp_path / "x.rrd")]
    assert main(["replay", str(bag), *options]) == 2
    assert (
        capsys.readouterr().err.strip() == "semla replay: this is not installed: rerun: pip install 'semla_ros[rerun]'"
    )
