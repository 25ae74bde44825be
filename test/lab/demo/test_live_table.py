import io

import pytest
from rich.console import Console

from semla_ros.lab.demo.live_table import latencies_ms, observe, render, status_line
from semla_ros.lab.demo.recording import DiagnosticsSnapshot
from semla_ros.lab.demo.score import LiveFigures


@pytest.fixture
def state(drive):
    recording = drive.recording
    recording.diagnostics = DiagnosticsSnapshot("OK", "all is well", {"adaptation: Drift": "0.21"})
    last_s = recording.frames()[-1].mask_s
    return observe(recording, LiveFigures(0.42, 0.61, 5), now_s=last_s, elapsed_s=7.5, duration_s=90.0)


def text_of(state, generation) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render(state, generation))
    return console.file.getvalue()


def test_the_table_shows_every_figure(state, drive) -> None:
    words = text_of(state, drive.recording.latest)
    for expected in (
        "fog",
        "8 / 90 s",
        "4.0 Hz",
        "80 ms",
        "30, 30",
        "0.21",
        "0.42",
        "0.61",
        "+0.19",
        "OK",
        "70%",
        "20%",
        "10%",
    ):
        assert expected in words, expected


def test_bars_are_proportional_to_the_weights(state, drive) -> None:
    words = text_of(state, drive.recording.latest)
    bars = {line.split("█")[0].split()[-1]: line.count("█") for line in words.splitlines() if "█" in line}
    assert bars["fog"] == 17
    assert bars["rain"] == 5


def test_nothing_heard_yet_is_shown_without_errors(tmp_path) -> None:
    from semla_ros.lab.demo.frame_store import FrameStore
    from semla_ros.lab.demo.recording import Recording

    with FrameStore(tmp_path / "frames.bin") as store:
        recording = Recording(store)
    state = observe(recording, LiveFigures(), now_s=1.0, elapsed_s=0.0, duration_s=90.0)
    assert "waiting" in text_of(state, recording.latest)
    assert "mIoU - -> -" in status_line(state, recording.latest)


def test_the_line_for_logs_names_segment_mix_and_figures(state, drive) -> None:
    line = status_line(state, drive.recording.latest)
    assert "fog 70% rain 20%" in line
    assert "0.42 -> 0.61" in line
    assert len(line.splitlines()) == 1


def test_latency_is_counted_from_image_to_mask_and_never_negative(drive) -> None:
    frames = drive.recording.frames()
    frames[0].mask_s = frames[0].image_s - 0.001  # the mask overtook its image on the way to the monitor
    values = latencies_ms(frames)
    assert values[0] == 0.0
    assert values[1:] == pytest.approx([80.0] * 29)
