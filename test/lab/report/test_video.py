import av
import numpy as np
import pytest

from semla_ros.errors import SemlaError
from semla_ros.lab.report.video import VideoWriter


def test_what_is_written_comes_back_as_h264_with_every_frame(tmp_path) -> None:
    levels = [40, 120, 200]
    with VideoWriter(tmp_path / "drive.mp4", rate_hz=7.5) as video:
        for level in levels:
            video.write(np.full((49, 65, 3), level, np.uint8))
    assert video.frames == 3
    with av.open(str(tmp_path / "drive.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(7.5)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert [frame.shape for frame in decoded] == [(48, 64, 3)] * 3
    assert [frame.mean() for frame in decoded] == pytest.approx(levels, abs=6)


def test_pictures_of_another_shape_are_refused(tmp_path) -> None:
    with VideoWriter(tmp_path / "drive.mp4", rate_hz=5) as video:
        video.write(np.zeros((32, 32, 3), np.uint8))
        with pytest.raises(SemlaError, match=r"shape \(32, 32, 3\)"):
            video.write(np.zeros((32, 34, 3), np.uint8))


def test_a_folder_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(SemlaError, match=r"missing/drive\.mp4"):
        VideoWriter(tmp_path / "missing" / "drive.mp4", rate_hz=5)


def test_no_frame_leaves_no_file(tmp_path) -> None:
    VideoWriter(tmp_path / "drive.mp4", rate_hz=5).close()
    assert not (tmp_path / "drive.mp4").exists()
