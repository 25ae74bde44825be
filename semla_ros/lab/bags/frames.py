"""The frames of a bag with their ground truth, in recording order, decoded ahead in a thread of its own."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

import numpy as np

from semla_ros.errors import BagError, ConfigError, SemlaError, counted
from semla_ros.image_codec import ImageDecoder
from semla_ros.lab.bags.cameras import Camera, find_cameras, truth_folder
from semla_ros.lab.bags.label_map import LabelMap, decode_mask, label_names, raw_mask, read_mask
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.stored import EARLIEST_NS, Problems, StoredMessage
from semla_ros.lab.bags.writer import COMPRESSED_IMAGE, IMAGE, NANOSECONDS, SEGMENT_TOPIC, STRING
from semla_ros.results import Frame, MaskArray

AHEAD = 8  # frames decoded ahead of the one in work
TRUTH_WAIT_NS = 500_000_000  # how much later than its image a label message may have been recorded
TRUTH_WAIT_FRAMES = 24


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """What of a bag is replayed.

    Attributes:
        topics: Image topics; empty = found by type.
        truth: "auto", "none", label topics (one per image topic, same order), or a folder of masks named by stamp.
        label_map: Pixel value -> class name of the truth; empty = the bag's label topic, else the model's numbering.
        truth_tolerance_ms: Largest difference between an image's stamp and its truth's.
        segment_topic: String topic that names stretches of the recording; empty = "/scene/segment" where it is there.
        start_s: Seconds after the bag's first message.
        duration_s: Length in seconds; 0 = to the end.
        stride: Take every n-th image of each camera.
        max_frames: Stop after so many frames; 0 = all.
        assume_encoding: What images are read as whose encoding leaves it open; see `ImageDecoder`.
        bits: Of 16-bit samples, counted from the lowest; 0 = found from the images.
    """

    topics: tuple[str, ...] = ()
    truth: tuple[str, ...] = ("auto",)
    label_map: Mapping[int, str] = field(default_factory=dict)
    truth_tolerance_ms: float = 0.0
    segment_topic: str = ""
    start_s: float = 0.0
    duration_s: float = 0.0
    stride: int = 1
    max_frames: int = 0
    assume_encoding: str = ""
    bits: int = 0

    def __post_init__(self) -> None:
        for name, is_good, expected in (
            ("start", self.start_s >= 0, "at least 0 s"),
            ("duration", self.duration_s >= 0, "at least 0 s"),
            ("stride", self.stride >= 1, "at least 1"),
            ("max-frames", self.max_frames >= 0, "at least 0"),
            ("bits", self.bits == 0 or 8 <= self.bits <= 16, "0 or 8 to 16"),
            ("truth-tolerance", self.truth_tolerance_ms >= 0, "at least 0 ms"),
        ):
            if not is_good:
                raise ConfigError(f"--{name} must be {expected}")


@dataclass(frozen=True, eq=False)
class ReplayFrame:
    """One image of a bag.

    Attributes:
        index: Number of the frame in this replay, from 0.
        frame: Image, stamp, camera.
        log_ns: When it was recorded.
        truth: Class index per pixel, shape (H, W) of the image; None where there is none.
        segment: Name of the stretch it belongs to; empty where the bag names none.
        topic: Image topic.
    """

    index: int
    frame: Frame
    log_ns: int
    truth: MaskArray | None
    segment: str
    topic: str


class FrameSource:
    """Reads a bag's frames; see `frames`.

    Args:
        bag: The open bag.
        options: What of it is wanted.
        class_names: The model's vocabulary, which the truth is brought to.

    Attributes:
        cameras: The cameras replayed.
        left_out: Image topics that are not, each with the reason.
        expected_frames: How many frames there will be, as far as the bag's counts tell.
        start_ns: Log time from which frames are taken.
        problems: What was left out and why.
        busy_s: Processor seconds spent on reading and decoding so far.
        waited_s: Seconds that the consumer had to wait for a frame so far.

    Raises:
        BagError: The bag lacks a topic asked for, or has no image topic.
        ConfigError: An option does not fit the bag.
    """

    def __init__(self, bag: BagReader, options: FrameOptions, class_names: Sequence[str]) -> None:
        self._bag = bag
        self._options = options
        self._class_names = tuple(class_names)
        self.problems = Problems()
        self.busy_s = 0.0
        self.waited_s = 0.0
        found = find_cameras(bag, options.topics, options.truth)
        self.cameras, self.left_out = found.cameras, found.left_out
        self._handed_over: Counter[str] = Counter()  # messages by topic: images yielded, truth and stretches read
        self._skipped: Counter[str] = Counter()  # images between those that the stride takes
        self._undecoded: Counter[str] = Counter()
        self._latest: dict[str, tuple[int, int]] = {}  # topic -> stamp and log time of its latest image
        self._is_whole = False
        self._decoders = {
            camera.topic: ImageDecoder(assume_encoding=options.assume_encoding, bits=options.bits)
            for camera in self.cameras
        }
        self._truth_folder = truth_folder(options.truth)
        self._segment_topic = self._find_segment_topic()
        self._label_map = self._find_label_map()
        self.start_ns = bag.start_ns + round(options.start_s * NANOSECONDS)
        self._stop_ns = self.start_ns + round(options.duration_s * NANOSECONDS) if options.duration_s else None
        if self.start_ns > bag.end_ns:
            length_s = (bag.end_ns - bag.start_ns) / NANOSECONDS
            words = "; ".join([f"the bag is only {length_s:.1f} s long", *bag.problems])
            raise ConfigError(f"--start {options.start_s:g}: {words}")
        self.expected_frames = self._expect_frames()

    @property
    def has_truth(self) -> bool:
        """Whether any frame may come with ground truth."""
        return self._truth_folder is not None or any(camera.truth_topic for camera in self.cameras)

    @property
    def rate_hz(self) -> float:
        """Images per second of the first camera, as far as the bag's counts tell; at least 1."""
        length_s = (self._bag.end_ns - self._bag.start_ns) / NANOSECONDS
        images = self._bag.topics[self.cameras[0].topic].count
        return max(1.0, (images - 1) / length_s / self._options.stride) if length_s > 0 else 1.0

    def frames(self) -> Generator[ReplayFrame]:
        """Yield the frames in recording order. What cannot be decoded is noted in `problems` and left out.

        Reading and decoding run ahead in a thread; closing the iterator ends it.
        """
        joined = self._joined(self._decoded())
        items = islice(joined, self._options.max_frames or None)

        def read() -> ReplayFrame | None:
            began = time.thread_time()
            try:
                return next(items, None)
            finally:
                self.busy_s += time.thread_time() - began

        try:
            with ThreadPoolExecutor(1, "semla-bag-reader") as reader:
                ahead = deque(reader.submit(read) for _ in range(AHEAD))
                try:
                    while (item := self._awaited(ahead.popleft())) is not None:
                        ahead.append(reader.submit(read))
                        self._handed_over[item.topic] += 1
                        yield item
                    self._is_whole = not (self._options.start_s or self._options.duration_s or self._options.max_frames)
                finally:
                    for future in ahead:
                        future.cancel()
                    reader.submit(joined.close)  # there, as sqlite's connections belong to the thread that made them
        finally:
            for text in self._bag.problems:
                self.problems.add(text, text)
            for name, decoder in self._decoders.items():
                for text in decoder.assumptions:
                    self.problems.add(f"{name} {text}", f"images on {name}: {text}")
            for topic in self.account():
                if topic["lost"]:
                    text = f"{topic['lost']} of {counted(topic['counted'], 'message')} of {topic['topic']} lost"
                    self.problems.add(text, text)

    def account(self) -> list[dict[str, Any]]:
        """What became of the messages of each topic; exact when all frames were read.

        Returns:
            For each topic `topic`, `type`, `used_as` ("images", "truth", "stretches", or empty), `why_not`, and numbers
            of messages: `counted` by the bag is the sum of `delivered`, `lost` and `left_out`.
        """
        uses = {camera.topic: "images" for camera in self.cameras}
        uses |= {camera.truth_topic: "truth" for camera in self.cameras if camera.truth_topic}
        uses |= {self._segment_topic: "stretches"} if self._segment_topic else {}
        entries = []
        for topic, tally in self._bag.tallies().items():
            use, delivered, lost = uses.get(topic, ""), self._handed_over[topic], tally.lost + self._undecoded[topic]
            if use and self._is_whole:  # whatever did not arrive is lost, known or not
                lost = tally.counted - delivered - self._skipped[topic]
            entries.append(
                {
                    "topic": topic,
                    "type": self._bag.topics[topic].type if topic in self._bag.topics else "",
                    "used_as": use,
                    "why_not": self.left_out.get(topic, ""),
                    "counted": tally.counted,
                    "delivered": delivered,
                    "lost": lost,
                    "left_out": tally.counted - delivered - lost,
                }
            )
        return sorted(entries, key=lambda entry: str(entry["topic"]))

    def _awaited(self, future: Future[ReplayFrame | None]) -> ReplayFrame | None:
        began = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited_s += time.perf_counter() - began

    # Reading

    def _decoded(self) -> Iterator[ReplayFrame | _Truth]:
        """Decode the wanted messages in log time."""
        cameras = {camera.topic: camera for camera in self.cameras}
        truths = {camera.truth_topic: camera for camera in self.cameras if camera.truth_topic}
        topics = [*cameras, *truths, *([self._segment_topic] if self._segment_topic else [])]
        seen: Counter[str] = Counter()
        segment = ""
        if self._segment_topic:  # the stretch that is under way where the replay starts
            for message in self._bag.messages([self._segment_topic], stop_ns=self.start_ns):
                segment = self._bag.text(message) or ""
        # From the very beginning also what a damaged time puts before it.
        for message in self._bag.messages(
            topics, self.start_ns if self._options.start_s else EARLIEST_NS, self._stop_ns
        ):
            if message.topic == self._segment_topic:
                text = self._bag.text(message)
                (self._undecoded if text is None else self._handed_over)[message.topic] += 1
                segment = text or ""
                continue
            if message.topic in cameras:
                seen[message.topic] += 1
                if (seen[message.topic] - 1) % self._options.stride:
                    self._skipped[message.topic] += 1
                    continue
            try:
                if message.topic in cameras:
                    yield self._image_of(message, cameras[message.topic], segment)
                else:
                    yield self._truth_of(message, truths[message.topic])
                    self._handed_over[message.topic] += 1
            except SemlaError as error:
                self._undecoded[message.topic] += 1
                what = "image" if message.topic in cameras else "truth"
                when_s = (message.log_ns - self._bag.start_ns) / NANOSECONDS
                self.problems.add(f"{what} {message.topic}", f"{what} on {message.topic} at {when_s:.3f} s: {error}")

    def _image_of(self, message: StoredMessage, camera: Camera, segment: str) -> ReplayFrame:
        content = self._image_message(message)
        image = self._decoders[camera.topic](content)
        stamp_ns = _stamp_ns(content)
        if stamp_ns == 0:
            self.problems.add("stamp", f"images on {message.topic} have no stamp: their recording time is used")
            stamp_ns = message.log_ns
        if self._latest.get(message.topic) == (stamp_ns, message.log_ns):
            raise BagError("it has stamp and recording time of the one before, which is the same image or damaged")
        self._latest[message.topic] = stamp_ns, message.log_ns
        frame = Frame(image=image, stamp_ns=stamp_ns, camera=camera.name, frame_id=content.header.frame_id)
        truth = self._truth_from_folder(camera, stamp_ns) if self._truth_folder else None
        return ReplayFrame(-1, frame, message.log_ns, truth, segment, message.topic)

    def _image_message(self, message: StoredMessage) -> Any:
        if message.type not in (IMAGE, COMPRESSED_IMAGE):  # a topic may have messages of several types
            raise BagError(f"the message is {message.type}, expected an image")
        return self._bag.deserialize(message)

    def _truth_of(self, message: StoredMessage, camera: Camera) -> _Truth:
        content = self._image_message(message)
        is_raw = message.type == IMAGE
        mask = raw_mask(content) if is_raw else decode_mask(np.asarray(content.data), content.format)
        return _Truth(camera.topic, _stamp_ns(content) or message.log_ns, self._label_map(mask), message.log_ns)

    def _truth_from_folder(self, camera: Camera, stamp_ns: int) -> MaskArray | None:
        assert self._truth_folder is not None
        folder = self._truth_folder / camera.name if camera.name else self._truth_folder
        path = folder / f"{stamp_ns}.png"
        if not path.is_file():
            return None
        try:
            return self._label_map(read_mask(path))
        except SemlaError as error:
            self.problems.add("truth file", f"truth {path}: {error}")
            return None

    def _joined(self, items: Iterator[ReplayFrame | _Truth]) -> Generator[ReplayFrame]:
        """Bring images and their truth together, wherever the one was recorded shortly after the other."""
        waiting: deque[ReplayFrame] = deque()
        truths: dict[str, dict[int, MaskArray]] = {camera.topic: {} for camera in self.cameras if camera.truth_topic}
        numbers = count()
        newest_ns = 0

        def ready(*, is_end: bool = False) -> Iterator[ReplayFrame]:
            while waiting:
                head = waiting[0]
                truth = head.truth
                if head.topic in truths:
                    truth = self._take(truths[head.topic], head.frame.stamp_ns)
                    is_late = newest_ns - head.log_ns > TRUTH_WAIT_NS or len(waiting) > TRUTH_WAIT_FRAMES
                    if truth is None and not is_late and not is_end:
                        return
                waiting.popleft()
                yield replace(head, index=next(numbers), truth=self._checked_truth(head, truth))

        for item in items:
            newest_ns = max(newest_ns, item.log_ns)
            if isinstance(item, _Truth):
                known = truths[item.image_topic]
                known[item.stamp_ns] = item.mask
                while len(known) > TRUTH_WAIT_FRAMES:
                    del known[next(iter(known))]
            else:
                waiting.append(item)
            yield from ready()
        yield from ready(is_end=True)

    def _take(self, known: dict[int, MaskArray], stamp_ns: int) -> MaskArray | None:
        """Take out the truth whose stamp is nearest, where it is near enough."""
        nearest = min(known, key=lambda other: abs(other - stamp_ns), default=None)
        if nearest is None or abs(nearest - stamp_ns) > self._options.truth_tolerance_ms * 1e6:
            return None
        return known.pop(nearest)

    def _checked_truth(self, frame: ReplayFrame, truth: MaskArray | None) -> MaskArray | None:
        if truth is None:
            if frame.topic in {c.topic for c in self.cameras if c.truth_topic} or self._truth_folder:
                self.problems.add(
                    "no truth", f"image on {frame.topic} at {frame.frame.stamp_ns} ns has no ground truth"
                )
            return None
        if truth.shape != frame.frame.image.shape[:2]:
            self.problems.add(
                "truth size",
                f"ground truth of {frame.topic} at {frame.frame.stamp_ns} ns is {truth.shape[1]}x{truth.shape[0]}, its "
                f"image {frame.frame.image.shape[1]}x{frame.frame.image.shape[0]}: left out, record both at one size",
            )
            return None
        return truth

    # Choosing

    def _find_segment_topic(self) -> str:
        if self._options.segment_topic:
            return self._bag.require(self._options.segment_topic).name
        return SEGMENT_TOPIC if SEGMENT_TOPIC in self._bag.topics_of_type(STRING) else ""

    def _find_label_map(self) -> LabelMap:
        names = self._options.label_map or (label_names(self._bag) if self.has_truth else {})
        if not names:
            return LabelMap.same_numbering(self._class_names)
        label_map = LabelMap(names, self._class_names)
        if label_map.ignored:
            text = f"truth classes that the model does not have count as unlabelled: {', '.join(label_map.ignored)}"
            self.problems.add("label map", text)
        return label_map

    def _expect_frames(self) -> int:
        bag, options = self._bag, self._options
        total = sum(bag.topics[camera.topic].count for camera in self.cameras)
        length_ns = max(1, bag.end_ns - bag.start_ns)
        stop_ns = bag.end_ns if self._stop_ns is None else min(self._stop_ns, bag.end_ns)
        frames = round(total * max(0, stop_ns - self.start_ns) / length_ns / options.stride)
        return min(frames, options.max_frames) if options.max_frames else frames


@dataclass(frozen=True, eq=False)
class _Truth:
    image_topic: str
    stamp_ns: int
    mask: MaskArray
    log_ns: int


def _stamp_ns(content: Any) -> int:
    return int(content.header.stamp.sec) * NANOSECONDS + int(content.header.stamp.nanosec)
