"""Which of several cameras looks at the scene that they share."""

from __future__ import annotations

import numpy as np
import pytest

from semla_ros.serving.scene_speaker import SCENE_HANDOVER_NS, SceneSpeaker

START_NS, HOUR_NS, PERIOD_NS = 10**18, 3_600 * 10**9, 10**8


def test_the_first_camera_that_delivers_speaks_and_one_that_falls_silent_hands_over() -> None:
    speaker = SceneSpeaker(["front", "left", "right"])
    assert speaker.speaks("left", START_NS)  # none before it has delivered yet
    assert speaker.speaks("front", START_NS)
    assert not speaker.speaks("left", START_NS + 1)
    assert not speaker.speaks("left", START_NS + 1 + SCENE_HANDOVER_NS)
    assert speaker.speaks("left", START_NS + 2 + SCENE_HANDOVER_NS)
    assert not speaker.speaks("right", START_NS + 2 + SCENE_HANDOVER_NS)
    assert speaker.speaks("front", START_NS + 3 + SCENE_HANDOVER_NS)
    assert not speaker.speaks("left", START_NS + 4 + SCENE_HANDOVER_NS)


@pytest.mark.parametrize("offset_ns", [0, HOUR_NS, -HOUR_NS, -START_NS])
def test_clocks_that_differ_neither_silence_a_camera_nor_let_two_speak(offset_ns: int) -> None:
    """By any difference of the clocks, and whatever the last stamp of a camera that dies is."""
    speaker = SceneSpeaker(["front", "left"])
    for index in range(50):
        assert speaker.speaks("front", START_NS + offset_ns + index * PERIOD_NS)
        assert not speaker.speaks("left", START_NS + index * PERIOD_NS)
    assert speaker.speaks("front", START_NS + HOUR_NS)
    spoken = [speaker.speaks("left", START_NS + (50 + index) * PERIOD_NS) for index in range(50)]
    assert spoken.index(True) * PERIOD_NS == SCENE_HANDOVER_NS + PERIOD_NS
    assert all(spoken[spoken.index(True) :])


def test_one_camera_speaks_at_a_time_whatever_the_stamps() -> None:
    rng = np.random.default_rng(0)
    speaker = SceneSpeaker(["front", "left"])
    for _ in range(2000):
        assert speaker.speaks("front", int(rng.integers(0, 2**62)))
        assert not speaker.speaks("left", int(rng.integers(0, 2**62)))


def test_a_camera_that_speaks_goes_on_when_its_recording_starts_over() -> None:
    speaker = SceneSpeaker(["front", "left"])
    assert speaker.speaks("front", START_NS)
    assert [speaker.speaks("left", START_NS + index * 10**9) for index in range(4)] == [False, False, False, True]
    assert speaker.speaks("left", START_NS)


def test_a_single_camera_always_speaks() -> None:
    speaker = SceneSpeaker([""])
    assert all(speaker.speaks("", stamp_ns) for stamp_ns in (0, 5 * 10**9, 10**9))
