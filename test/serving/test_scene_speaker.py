"""Which of several cameras looks at the scene that they share."""

from __future__ import annotations

from semla_ros.serving.scene_speaker import SCENE_HANDOVER_NS, SceneSpeaker


def test_the_first_camera_that_delivers_speaks_and_one_that_falls_silent_hands_over() -> None:
    speaker = SceneSpeaker(["front", "left", "right"])
    stamp_ns = 10**18
    assert speaker.speaks("left", stamp_ns)  # none before it has delivered yet
    assert speaker.speaks("front", stamp_ns)
    assert not speaker.speaks("left", stamp_ns + SCENE_HANDOVER_NS)
    assert speaker.speaks("left", stamp_ns + SCENE_HANDOVER_NS + 1)
    assert not speaker.speaks("right", stamp_ns + SCENE_HANDOVER_NS + 1)
    assert speaker.speaks("front", stamp_ns + SCENE_HANDOVER_NS + 2)


def test_a_camera_that_starts_over_is_silent_until_its_next_frame() -> None:
    speaker = SceneSpeaker(["front", "left"])
    assert speaker.speaks("front", 10**18)
    assert not speaker.speaks("left", 10**18)
    speaker.forget("front")
    assert speaker.speaks("left", 10**18)


def test_a_single_camera_always_speaks() -> None:
    speaker = SceneSpeaker([""])
    assert all(speaker.speaks("", stamp_ns) for stamp_ns in (0, 5 * 10**9, 10**9))
