"""The frames of a bag with their ground truth, in recording order, decoded ahead in a thread of its own."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from semla_ros.errors import BagError, ConfigError, SemlaError
from semla_ros.image_codec import decode, decode_compressed
from semla_ros.lab.bags.label_map import LabelMap, parse_label_message
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.salvage import StoredMessage
from semla_ros.lab.bags.writer import COMPRESSED_IMAGE, IMAGE, NANOSECONDS, STRING
from semla_ros.results import Frame, ImageArray, MaskArray

AHEAD = 8  # frames decoded ahead of the one in work
TRUTH_WAIT_NS = 500_000_000  # how much later than its image a label message may have been recorded
TRUTH_WAIT_FRAMES = 24
_TRUTH_WORDS = re.compile(r"(label|truth|mask|semantic|segmentation|annotation|gt)(s|_id|_ids|_image)?$")
_MONO = {"mono8": 1, "8UC1": 1, "mono16": 2, "16UC1": 2}
_PLAIN_PARTS = re.compile(r"^(image(_.*)?|compressed|camera_info)$")


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

    def __post_init__(self) -> None:
        for name, is_good, expected in (
            ("start", self.start_s >= 0, "at least 0 s"),
            ("duration", self.duration_s >= 0, "at least 0 s"),
            ("stride", self.stride >= 1, "at least 1"),
            ("max-frames", self.max_frames >= 0, "at least 0"),
            ("truth-tolerance", self.truth_tolerance_ms >= 0, "at least 0 ms"),
        ):
            if not is_good:
                raise ConfigError(f"--{name} must be {expected}")


@dataclass(frozen=True)
class Camera:
    """One camera of a bag.

    Attributes:
        name: Short name made from the topic; empty for the only camera.
        topic: Its images.
        truth_topic: Its ground truth; empty where there is none in the bag.
    """

    name: str
    topic: str
    truth_topic: str = ""


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


class Problems:
    """What went wrong on the way, in bounded memory: the first of each kind, and how many there were."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, text: str) -> None:
        """Note one problem."""
        with self._lock:
            self._counts[kind] += 1
            self._first.setdefault(kind, text)

    def lines(self) -> list[str]:
        """One line per kind: the first one, and how many more there were."""
        with self._lock:
            return [
                text + (f" (and {self._counts[kind] - 1} more like it)" if self._counts[kind] > 1 else "")
                for kind, text in self._first.items()
            ]


class FrameSource:
    """Reads a bag's frames; see `frames`.

    Args:
        bag: The open bag.
        options: What of it is wanted.
        class_names: The model's vocabulary, which the truth is brought to.

    Attributes:
        cameras: The cameras replayed.
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
        self._truth_folder: Path | None = None
        self.cameras = self._find_cameras()
        self._segment_topic = self._find_segment_topic()
        self._label_map = self._find_label_map()
        self.start_ns = bag.start_ns + round(options.start_s * NANOSECONDS)
        self._stop_ns = self.start_ns + round(options.duration_s * NANOSECONDS) if options.duration_s else None
        if self.start_ns > bag.end_ns:
            length_s = (bag.end_ns - bag.start_ns) / NANOSECONDS
            raise ConfigError(f"--start {options.start_s:g}: the bag is only {length_s:.1f} s long")
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
                        yield item
                finally:
                    for future in ahead:
                        future.cancel()
                    reader.submit(joined.close)  # there, as sqlite's connections belong to the thread that made them
        finally:
            for text in self._bag.problems:
                self.problems.add(text, text)

    def _awaited(self, future: Future[ReplayFrame | None]) -> ReplayFrame | None:
        began = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waited_s += time.perf_counter() - began

    # Reading

    def _decoded(self) -> Iterator[ReplayFrame | _Truth | _Segment]:
        """Decode the wanted messages in log time."""
        cameras = {camera.topic: camera for camera in self.cameras}
        truths = {camera.truth_topic: camera for camera in self.cameras if camera.truth_topic}
        topics = [*cameras, *truths, *([self._segment_topic] if self._segment_topic else [])]
        seen: Counter[str] = Counter()
        if self._segment_topic:  # the stretch that is under way where the replay starts
            for message in self._bag.messages([self._segment_topic], None, self.start_ns):
                yield _Segment(self._bag.deserialize(message).data, message.log_ns)
        for message in self._bag.messages(topics, self.start_ns, self._stop_ns):
            if message.topic == self._segment_topic:
                yield _Segment(self._bag.deserialize(message).data, message.log_ns)
                continue
            if message.topic in cameras:
                seen[message.topic] += 1
                if (seen[message.topic] - 1) % self._options.stride:
                    continue
            try:
                if message.topic in cameras:
                    yield self._image_of(message, cameras[message.topic])
                else:
                    yield self._truth_of(message, truths[message.topic])
            except SemlaError as error:
                what = "image" if message.topic in cameras else "truth"
                when_s = (message.log_ns - self._bag.start_ns) / NANOSECONDS
                self.problems.add(f"{what} {message.topic}", f"{what} on {message.topic} at {when_s:.3f} s: {error}")

    def _image_of(self, message: StoredMessage, camera: Camera) -> ReplayFrame:
        content = self._bag.deserialize(message)
        if message.type == COMPRESSED_IMAGE:
            image = decode_compressed(content.data, content.format)
        else:
            image = decode(
                encoding=content.encoding,
                width=content.width,
                height=content.height,
                step=content.step,
                data=content.data,
                is_bigendian=bool(content.is_bigendian),
            )
        stamp_ns = _stamp_ns(content)
        if stamp_ns == 0:
            self.problems.add("stamp", f"images on {message.topic} have no stamp: their recording time is used")
            stamp_ns = message.log_ns
        frame = Frame(image=image, stamp_ns=stamp_ns, camera=camera.name, frame_id=content.header.frame_id)
        truth = self._truth_from_folder(camera, stamp_ns) if self._truth_folder else None
        return ReplayFrame(-1, frame, message.log_ns, truth, "", message.topic)

    def _truth_of(self, message: StoredMessage, camera: Camera) -> _Truth:
        content = self._bag.deserialize(message)
        if message.type == COMPRESSED_IMAGE:
            mask = _decode_mask(np.asarray(content.data), content.format)
        else:
            mask = raw_mask(content)
        return _Truth(camera.topic, _stamp_ns(content) or message.log_ns, self._label_map(mask), message.log_ns)

    def _truth_from_folder(self, camera: Camera, stamp_ns: int) -> MaskArray | None:
        assert self._truth_folder is not None
        folder = self._truth_folder / camera.name if camera.name else self._truth_folder
        path = folder / f"{stamp_ns}.png"
        if not path.is_file():
            return None
        try:
            return self._label_map(_decode_mask(np.frombuffer(path.read_bytes(), np.uint8), "png"))
        except SemlaError as error:
            self.problems.add("truth file", f"truth {path}: {error}")
            return None

    def _joined(self, items: Iterator[ReplayFrame | _Truth | _Segment]) -> Generator[ReplayFrame]:
        """Bring images and their truth together, wherever the one was recorded shortly after the other."""
        waiting: deque[ReplayFrame] = deque()
        truths: dict[str, dict[int, MaskArray]] = {camera.topic: {} for camera in self.cameras if camera.truth_topic}
        numbers = count()
        segment, newest_ns = "", 0

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
            if isinstance(item, _Segment):
                segment = item.name
                continue
            if isinstance(item, _Truth):
                known = truths[item.image_topic]
                known[item.stamp_ns] = item.mask
                while len(known) > TRUTH_WAIT_FRAMES:
                    del known[next(iter(known))]
            else:
                waiting.append(replace(item, segment=segment))
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

    # Finding

    def _find_cameras(self) -> tuple[Camera, ...]:
        bag, options = self._bag, self._options
        images = bag.topics_of_type(IMAGE, COMPRESSED_IMAGE)
        candidates = [topic for topic in images if self._is_truth_like(topic)]
        if options.topics:
            for topic in options.topics:
                if bag.require(topic).type not in (IMAGE, COMPRESSED_IMAGE):
                    raise BagError(
                        f"bag {bag.path}: topic '{topic}' is {bag.topics[topic].type}, expected an image topic; "
                        f"the bag has {bag.describe_topics()}"
                    )
            topics = list(options.topics)
        else:
            topics = [topic for topic in images if topic not in candidates]
            # Of one camera's raw and compressed images, the raw ones are what its node was fed.
            topics = [
                topic for topic in topics if topic.removesuffix("/compressed") == topic or topic[:-11] not in topics
            ]
        if not topics:
            raise BagError(f"bag {bag.path}: there is no image topic; it has {bag.describe_topics()}")
        names = _camera_names(topics)
        truths = self._find_truths(topics, candidates)
        return tuple(Camera(name, topic, truth) for name, topic, truth in zip(names, topics, truths, strict=True))

    def _find_truths(self, topics: list[str], candidates: list[str]) -> list[str]:
        choice = self._options.truth
        if choice == ("none",):
            return [""] * len(topics)
        if choice == ("auto",):
            return [_nearest_truth(topic, [c for c in candidates if c not in topics], len(topics)) for topic in topics]
        if len(choice) == 1 and Path(choice[0]).is_dir():
            self._truth_folder = Path(choice[0])
            return [""] * len(topics)
        if len(choice) == 1 and choice[0] not in self._bag.topics and len(Path(choice[0]).parts) > 1:
            raise BagError(
                f"--truth {choice[0]}: neither a folder nor a topic of bag {self._bag.path}; "
                f"it has {self._bag.describe_topics()}"
            )
        if len(choice) != len(topics):
            raise ConfigError(
                f"--truth names {len(choice)} topics for {len(topics)} image topics ({', '.join(topics)}); "
                "name one for each, in the same order"
            )
        for topic in choice:
            self._bag.require(topic)
        return list(choice)

    def _is_truth_like(self, topic: str) -> bool:
        """A label topic is one by its name and by what its first message holds."""
        if not _TRUTH_WORDS.search(topic.removesuffix("/compressed")):
            return False
        first = next(iter(self._bag.messages([topic])), None)
        if first is None or first.type == COMPRESSED_IMAGE:
            return first is not None
        try:
            return self._bag.deserialize(first).encoding in _MONO
        except BagError:
            return False

    def _find_segment_topic(self) -> str:
        if self._options.segment_topic:
            return self._bag.require(self._options.segment_topic).name
        return "/scene/segment" if "/scene/segment" in self._bag.topics_of_type(STRING) else ""

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


def label_names(bag: BagReader) -> dict[int, str]:
    """Pixel value -> class name, as a label topic of the bag says; empty where it has none."""
    for topic in bag.topics_of_type(STRING):
        if topic.endswith("labels"):
            for message in islice(bag.messages([topic]), 1):
                if names := parse_label_message(bag.deserialize(message).data):
                    return names
    return {}


@dataclass(frozen=True, eq=False)
class _Truth:
    image_topic: str
    stamp_ns: int
    mask: MaskArray
    log_ns: int


@dataclass(frozen=True)
class _Segment:
    name: str
    log_ns: int


def _stamp_ns(content: Any) -> int:
    return int(content.header.stamp.sec) * NANOSECONDS + int(content.header.stamp.nanosec)


def raw_mask(content: Any) -> MaskArray:
    """Class ids of a single-channel `sensor_msgs/Image`, shape (H, W), with its step and byte order honoured.

    Raises:
        BagError: It has more channels, or fewer bytes than it says.
    """
    size = _MONO.get(content.encoding)
    if size is None:
        raise BagError(f"a label image must be one of {', '.join(_MONO)}, got '{content.encoding}'")
    data = np.asarray(content.data)
    if content.step < content.width * size or data.size < content.step * (content.height - 1) + content.width * size:
        raise BagError(
            f"label image of {content.width}x{content.height} {content.encoding} with step {content.step} "
            f"has only {data.size} bytes"
        )
    dtype = np.dtype(np.uint8) if size == 1 else np.dtype(">u2" if content.is_bigendian else "<u2")
    rows = np.lib.stride_tricks.as_strided(data, (content.height, content.width * size), (content.step, 1))
    return np.ascontiguousarray(rows).view(dtype).astype(dtype.newbyteorder("="))  # type: ignore[return-value]


def _decode_mask(data: ImageArray, image_format: str) -> MaskArray:
    """Class ids of a PNG; a JPEG would have changed them."""
    if data[:2].tobytes() == b"\xff\xd8":
        raise BagError(f"a label image must be lossless (PNG), got '{image_format}'")
    mask = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2:
        shape = "unreadable bytes" if mask is None else f"{mask.shape[2]} channels"
        raise BagError(f"a label image must be a PNG with one channel of class ids, got {shape}")
    return mask  # type: ignore[no-any-return]


def _camera_names(topics: Sequence[str]) -> list[str]:
    """Short names: the last part of the topic that says more than "image"; the whole topic where that is ambiguous."""
    if len(topics) == 1:
        return [""]
    names = []
    for topic in topics:
        parts = [part for part in topic.split("/") if part and not _PLAIN_PARTS.match(part)]
        names.append(parts[-1] if parts else topic.strip("/").replace("/", "_"))
    return [
        name if names.count(name) == 1 else topic.strip("/").replace("/", "_")
        for name, topic in zip(names, topics, strict=True)
    ]


def _nearest_truth(topic: str, candidates: Sequence[str], cameras: int) -> str:
    """The label topic that shares the most of its path with the image topic."""

    def shared(candidate: str) -> int:
        pairs = zip(topic.split("/")[1:-1], candidate.split("/")[1:-1], strict=False)
        return sum(a == b for a, b in pairs)

    best = max(candidates, key=shared, default="")
    if best and (shared(best) or (cameras == 1 and len(candidates) == 1)):
        return best
    return ""
