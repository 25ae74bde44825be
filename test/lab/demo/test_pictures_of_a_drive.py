import av
import numpy as np
import pytest
from PIL import Image

from semla_ros.lab.demo.panels import PanelMaker, pick_moments, write_contact_sheet, write_video
from semla_ros.lab.demo.timeline import draw_timeline, most_used
from semla_ros.lab.report.palette import domain_colour
from semla_ros.results import BASE_MODEL

NAMES = ("road", "sidewalk", "car", "sky")
PALETTE = np.array([[128, 64, 128], [244, 35, 232], [0, 0, 142], [70, 130, 180]], np.uint8)


@pytest.fixture
def panels(drive) -> PanelMaker:
    return PanelMaker(drive.recording.store, PALETTE, 256, 192)


def test_the_timeline_shows_the_colours_of_the_adapters_in_use(drive, tmp_path) -> None:
    draw_timeline(tmp_path / "timeline.png", drive.score, drive.recording.generations)
    with Image.open(tmp_path / "timeline.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1500
    for name in ("night", "fog", "rain"):
        assert (np.abs(pixels.astype(int) - domain_colour(name)).max(axis=2) <= 2).mean() > 0.005, name


def test_the_video_has_one_picture_per_answered_frame(drive, panels, tmp_path) -> None:
    seen = []
    write_video(
        tmp_path / "drive.mp4", drive.score, panels, NAMES, PALETTE, rate_hz=4.0, progress=lambda *now: seen.append(now)
    )
    with av.open(str(tmp_path / "drive.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 30
    assert frames[0].width > 4 * 256
    assert seen[-1] == (30, 30)


def test_moments_are_one_per_pure_segment_with_its_median_gain(drive) -> None:
    moments = pick_moments(drive.score)
    assert [moment.record.segment for moment in moments] == ["clear", "night", "fog"]
    gains = sorted(frame.gain for frame in drive.score.frames if frame.record.segment == "night")
    assert moments[1].gain == gains[3]


def test_the_contact_sheet_has_a_column_per_moment(drive, panels, tmp_path) -> None:
    write_contact_sheet(tmp_path / "sheet.png", drive.score, panels, NAMES, PALETTE)
    with Image.open(tmp_path / "sheet.png") as picture:
        width, height = picture.size
    assert 3 * 256 < width < 4 * 256
    assert height > 4 * 192


def test_a_legend_names_the_most_used_adapters_and_adds_up_the_rest() -> None:
    shares = {f"a{index}": np.full(3, 0.1) for index in range(8)} | {BASE_MODEL: np.full(3, 0.2)}
    kept = most_used(shares, 5)
    assert list(kept) == ["a0", "a1", "a2", "a3", "a4", "others", BASE_MODEL]
    np.testing.assert_allclose(sum(kept.values()), 1.0)
    assert list(most_used(shares, 8)) == list(shares)
