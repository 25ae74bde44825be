"""Which camera speaks for a scene that several cameras share."""

from __future__ import annotations

import math
from collections.abc import Sequence

SCENE_HANDOVER_NS = 2_000_000_000


class SceneSpeaker:
    """The first camera in the list that delivers looks at the scene.

    A camera speaks once its own stamps have gone on by more than `SCENE_HANDOVER_NS` since the latest frame of a camera
    before it in the list arrived, or where none has. Stamps of two cameras are never compared: their clocks may differ.

    Cameras look different even in the same weather: mixed, they would seem to drift with every frame.

    Args:
        cameras: Their names; the order is that of precedence.
    """

    def __init__(self, cameras: Sequence[str]) -> None:
        self._cameras = tuple(cameras)
        self._newest_stamp_ns: dict[str, int] = {}
        self._waited_ns = dict.fromkeys(cameras, math.inf)

    def speaks(self, camera: str, stamp_ns: int) -> bool:
        """Whether a frame is the scene's; to be asked once for each frame of every camera, as they arrive."""
        self._waited_ns[camera] += max(0, stamp_ns - self._newest_stamp_ns.get(camera, stamp_ns))
        self._newest_stamp_ns[camera] = stamp_ns
        for later in self._cameras[self._cameras.index(camera) + 1 :]:
            self._waited_ns[later] = 0
            self._newest_stamp_ns.pop(later, None)
        return self._waited_ns[camera] > SCENE_HANDOVER_NS
