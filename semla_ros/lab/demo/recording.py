"""What the demo saw of the nodes: frames, truths, masks, mixes and diagnostics, joined by image stamp. Knows no ROS."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from semla_ros.lab.demo.frame_store import FrameStore
from semla_ros.results import AdapterMix, Generation, ImageArray

REPORT_PERIOD_S = 1.2  # the node reports once a second; a report later than this has counted what came before
LONGEST_FRAME_S = 10.0  # after so long, a mask that has not come will not come


BASE = Generation(number=0, mix=AdapterMix(), class_names=(), vocabulary_version=0)


def shares_of(generation: Generation) -> dict[str, float]:
    """Weight by adapter name, heaviest first, then what is left to the base model; without what nobody would see."""
    return {name: share for name, share in generation.mix.shares().items() if share > 0.0005}


@dataclass
class FrameRecord:
    """What is known of one frame; the pictures are in the store under the same stamp.

    Attributes:
        stamp_ns: Stamp of the source.
        frame_id: tf frame that the camera gave it.
        segment: Name of the drive's segment, as the camera told; empty where it did not.
        image_s: Monotonic time at which the image came by, in seconds; None where it did not.
        mask_s: ... and its mask.
        mask_frame_id: tf frame of the mask.
        generation: What was in use when the mask came.
    """

    stamp_ns: int
    frame_id: str = ""
    segment: str = ""
    image_s: float | None = None
    mask_s: float | None = None
    mask_frame_id: str = ""
    generation: Generation = BASE

    @property
    def is_answered(self) -> bool:
        """The mask has the stamp and the tf frame of an image that was seen."""
        return self.mask_s is not None and self.image_s is not None and self.mask_frame_id == self.frame_id


@dataclass(frozen=True)
class DiagnosticsSnapshot:
    """The latest diagnostics of the perception node: what it says of itself.

    Attributes:
        level: The worst level among its statuses: "OK", "WARN", "ERROR" or "STALE"; empty before the first.
        message: Message of the first status of that level.
        values: "<what>: <key>" -> value, where <what> is the status's name without the node's.
    """

    level: str = ""
    message: str = ""
    values: Mapping[str, str] = field(default_factory=dict)

    def number(self, key: str) -> float | None:
        """A value as a number; None where it is missing or is none."""
        try:
            return float(self.values[key])
        except (KeyError, ValueError):
            return None

    def count(self, key: str) -> int:
        """A counter; 0 where it is missing."""
        return int(self.number(key) or 0)

    @property
    def is_idle(self) -> bool:
        """Every image that the node has received was answered or dropped: none is on its way through it."""
        done = self.count("camera: Masks published") + sum(self.dropped().values())
        return self.count("camera: Images received") <= done

    def dropped(self) -> dict[str, int]:
        """Reason -> images of the camera that the node dropped for it."""
        prefix = "camera: Dropped: "
        return {key.removeprefix(prefix): self.count(key) for key in self.values if key.startswith(prefix)}


class Recording:
    """Collects what the monitor hears. Safe to read from one thread while another adds.

    Attributes:
        store: The pictures, kinds "image", "truth" and "mask".
        generations: Every one heard of, in order.
        diagnostics: Latest diagnostics of the perception node.
        diagnostics_s: Monotonic time at which they came.
        class_names: Index in the mask -> name, as the node last published it; empty before.
        drive_ended: The camera has said that the drive is over.
        frames_sent: Frames that the camera says it has published; None before it spoke.
        last_heard_s: Monotonic time of the latest image or mask.
    """

    def __init__(self, store: FrameStore) -> None:
        self.store = store
        self.generations: list[Generation] = []
        self.diagnostics = DiagnosticsSnapshot()
        self.diagnostics_s = 0.0
        self.class_names: tuple[str, ...] = ()
        self.drive_ended = False
        self.frames_sent: int | None = None
        self.last_heard_s = 0.0
        self._frames: dict[int, FrameRecord] = {}
        self._lock = threading.Lock()

    def add_image(self, stamp_ns: int, frame_id: str, image: ImageArray, now_s: float) -> None:
        """Keep a camera image, RGB (H, W, 3)."""
        self.store.add("image", stamp_ns, image)
        with self._lock:
            record = self._frames.setdefault(stamp_ns, FrameRecord(stamp_ns))
            record.frame_id, record.image_s = frame_id, now_s
            self.last_heard_s = now_s

    def add_truth(self, stamp_ns: int, mask: ImageArray) -> None:
        """Keep a ground-truth mask (H, W)."""
        self.store.add("truth", stamp_ns, mask)

    def add_segment(self, stamp_ns: int, segment: str) -> None:
        """Note which segment of the drive a frame belongs to."""
        with self._lock:
            self._frames.setdefault(stamp_ns, FrameRecord(stamp_ns)).segment = segment

    def add_mask(self, stamp_ns: int, frame_id: str, mask: ImageArray, now_s: float) -> None:
        """Keep the node's mask (H, W), together with the generation announced last."""
        self.store.add("mask", stamp_ns, mask)
        with self._lock:
            record = self._frames.setdefault(stamp_ns, FrameRecord(stamp_ns))
            record.mask_s, record.mask_frame_id = now_s, frame_id
            self.last_heard_s = now_s
            record.generation = self.latest

    def add_generation(self, generation: Generation) -> None:
        """Note what the node made; one that is already known (a latched message heard again) changes nothing."""
        with self._lock:
            if all(known.number != generation.number for known in self.generations):
                self.generations.append(generation)

    @property
    def latest(self) -> Generation:
        """The generation announced last."""
        return self.generations[-1] if self.generations else BASE

    def add_diagnostics(self, diagnostics: DiagnosticsSnapshot, now_s: float) -> None:
        """Replace the latest diagnostics."""
        self.diagnostics, self.diagnostics_s = diagnostics, now_s

    def is_complete(self, now_s: float) -> bool:
        """The drive is over, its last mask has come, and diagnostics have counted it."""
        quiet_s = now_s - self.last_heard_s
        is_counted = self.diagnostics_s > self.last_heard_s + REPORT_PERIOD_S and self.diagnostics.is_idle
        return self.drive_ended and quiet_s > REPORT_PERIOD_S and (is_counted or quiet_s > LONGEST_FRAME_S)

    def frames(self) -> list[FrameRecord]:
        """Every frame heard of, in order of time."""
        with self._lock:
            return [self._frames[stamp] for stamp in sorted(self._frames)]

    def name_transitions(self) -> None:
        """Call nameless stretches "a to b" after the segments around them; the camera names pure segments only."""
        before, nameless = "", list[FrameRecord]()
        for record in self.frames():
            if not record.segment:
                nameless.append(record)
                continue
            for member in nameless:
                member.segment = f"{before} to {record.segment}" if before else ""
            before, nameless = record.segment, []

    @property
    def has_images(self) -> bool:
        """At least one camera image has come."""
        return any(record.image_s is not None for record in self.frames())
