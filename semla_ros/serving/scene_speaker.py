"""Which camera speaks for a scene that several cameras share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

SCENE_HANDOVER_NS = 2_000_000_000  # a camera silent for so long no longer speaks for the vehicle's scene


class SceneSpeaker:
    """The first camera in the list that delivers looks at the scene.

    Cameras look different even in the same weather: mixed, they would seem to drift with every frame.

    Args:
        cameras: Their names; the order is that of precedence.
    """

    def __init__(self, cameras: Sequence[str]) -> None:
        self._cameras = tuple(cameras)
        self._newest_stamp_ns: dict[str, int] = {}

    def speaks(self, camera: str, stamp_ns: int) -> bool:
        """Whether a frame is the scene's; to be asked once for each frame of every camera."""
        self._newest_stamp_ns[camera] = stamp_ns
        oldest = stamp_ns - SCENE_HANDOVER_NS
        earlier = takewhile(lambda name: name != camera, self._cameras)
        return all(self._newest_stamp_ns.get(name, oldest - 1) < oldest for name in earlier)

    def forget(self, camera: str) -> None:
        """Count a camera as silent until its next frame."""
        self._newest_stamp_ns.pop(camera, None)
