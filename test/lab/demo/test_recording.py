import numpy as np
import pytest
from made_generations import generation

from semla_ros.lab.demo.frame_store import FrameStore
from semla_ros.lab.demo.recording import DiagnosticsSnapshot, Recording
from semla_ros.results import BASE_MODEL

PICTURE = np.zeros((4, 4, 3), np.uint8)
MASK = np.zeros((4, 4), np.uint8)


@pytest.fixture
def recording(tmp_path):
    with FrameStore(tmp_path / "frames.bin") as store:
        yield Recording(store)


def test_a_frame_is_answered_by_a_mask_with_its_stamp_and_frame_id(recording) -> None:
    recording.add_image(1, "front", PICTURE, 0.0)
    recording.add_image(2, "front", PICTURE, 0.1)
    recording.add_mask(1, "front", MASK, 0.2)
    recording.add_mask(2, "rear", MASK, 0.3)
    recording.add_mask(3, "front", MASK, 0.4)
    assert [record.is_answered for record in recording.frames()] == [True, False, False]


def test_a_mask_may_overtake_its_image(recording) -> None:
    recording.add_mask(7, "front", MASK, 0.1)
    recording.add_image(7, "front", PICTURE, 0.2)
    assert recording.frames()[0].is_answered


def test_each_mask_is_explained_by_the_mix_announced_before_it(recording) -> None:
    recording.add_mask(1, "", MASK, 0.0)
    recording.add_generation(generation(1, {"night": 1.0}))
    recording.add_mask(2, "", MASK, 0.1)
    recording.add_generation(generation(2, {"fog": 0.4, "night": 0.6}))
    recording.add_generation(generation(2, {"fog": 1.0}))  # the latched message, heard again
    recording.add_mask(3, "", MASK, 0.2)
    assert [record.generation.number for record in recording.frames()] == [0, 1, 2]
    assert [record.generation.mix.heaviest for record in recording.frames()] == [BASE_MODEL, "night", "night"]
    assert len(recording.generations) == 2


def test_nameless_stretches_are_called_after_their_neighbours(recording) -> None:
    for stamp, name in enumerate(["", "clear", "", "", "night", "night", "", "fog", ""]):
        recording.add_segment(stamp, name)
    recording.name_transitions()
    names = [record.segment for record in recording.frames()]
    assert names == ["", "clear", "clear to night", "clear to night", "night", "night", "night to fog", "fog", ""]


def test_the_first_image_is_noticed(recording) -> None:
    recording.add_mask(1, "", MASK, 0.1)
    assert not recording.has_images
    recording.add_image(2, "", PICTURE, 0.5)
    assert recording.has_images
    assert recording.last_heard_s == 0.5


def test_a_drive_is_complete_when_diagnostics_have_counted_its_last_mask(recording) -> None:
    def report(received: int, published: int, dropped: int) -> DiagnosticsSnapshot:
        counts = {"Images received": received, "Masks published": published, "Dropped: overtaken": dropped}
        return DiagnosticsSnapshot("OK", "", {f"camera: {key}": str(value) for key, value in counts.items()})

    recording.add_image(1, "", PICTURE, 10.0)
    recording.add_diagnostics(report(3, 2, 1), 12.0)
    assert not recording.is_complete(13.0)  # the camera has not said that it was the last
    recording.drive_ended = True
    assert recording.is_complete(13.0)
    recording.add_diagnostics(report(3, 2, 0), 12.0)
    assert not recording.is_complete(13.0)  # one is still on its way through the node
    assert recording.is_complete(30.0)  # and will not come any more
    recording.add_diagnostics(report(3, 2, 1), 10.5)
    assert not recording.is_complete(13.0)  # the report is older than the last image
