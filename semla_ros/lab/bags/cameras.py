"""The cameras of a bag: image topics, their short names, and the label topics that belong to them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from semla_ros.errors import BagError, ConfigError, counted
from semla_ros.lab.bags.label_map import MONO
from semla_ros.lab.bags.own_output import own_topics
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import COMPRESSED_IMAGE, IMAGE

_OWN = "a node's own output"
_LABELS = "labels of no camera by name; name them with --truth"
_TRUTH_WORDS = re.compile(r"(label|truth|semantic|segmentation|annotation|gt)(s|_id|_ids|_image)?$")
_ANSWER_WORDS = re.compile(r"(mask|confidence|overlay|uncertainty|probability)s?$")
_DEPTH_WORDS = re.compile(r"(^|[/_])(depth|disparity|range)([/_]|$)")
_MEASURED = re.compile(r"(16|32|64)[SUF]C1\b")  # encodings of depth, disparity and the like
_VIDEO_TYPES = re.compile(r"Packet|CompressedVideo")
_PLAIN_PARTS = re.compile(r"^(image(_.*)?|compressed|camera_info)$")


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


@dataclass(frozen=True)
class Cameras:
    """What of a bag is read, and what is not.

    Attributes:
        cameras: The cameras, at least one.
        left_out: Image topic -> why it is neither a camera nor truth.
    """

    cameras: tuple[Camera, ...]
    left_out: dict[str, str] = field(default_factory=dict)


def find_cameras(bag: BagReader, topics: Sequence[str], truth: tuple[str, ...]) -> Cameras:
    """The cameras to read.

    What a node answered is never taken by itself, neither as images nor as truth, and depth is not, either.

    Args:
        bag: The open bag.
        topics: Image topics; empty = every one that shows what a camera saw.
        truth: As `FrameOptions.truth`.

    Raises:
        BagError: The bag lacks a topic asked for, or has no image topic.
        ConfigError: The topics of the truth are not one for each camera.
    """
    images = bag.topics_of_type(IMAGE, COMPRESSED_IMAGE)
    for topic in topics:
        if bag.require(topic).type not in (IMAGE, COMPRESSED_IMAGE):
            raise BagError(
                f"bag {bag.path}: topic '{topic}' is {bag.topics[topic].type}, expected an image topic; "
                f"the bag has {bag.describe_topics()}"
            )
    own = own_topics(bag)
    left_out = {topic: _OWN if topic in own else _why_no_camera(bag, topic, images) for topic in images}
    for other in bag.topics.values():
        if _VIDEO_TYPES.search(other.type):
            left_out[other.name] = "video packets; record images, or republish them as images (image_transport)"
    chosen = list(topics) or [topic for topic in images if not left_out[topic]]
    if not chosen:
        why = ", ".join(f"{topic} ({why})" for topic, why in left_out.items())
        ask = f" to take unasked (--topic takes any): {why}" if why else ""
        raise BagError(f"bag {bag.path}: there is no image topic{ask}; it has {bag.describe_topics()}")
    labels = [topic for topic in images if left_out[topic] == _LABELS and topic not in chosen]
    truths = _find_truths(bag, chosen, truth, labels)
    cameras = tuple(Camera(*each) for each in zip(_camera_names(chosen), chosen, truths, strict=True))
    used = {*chosen, *truths}
    return Cameras(cameras, {topic: why or "not asked for" for topic, why in left_out.items() if topic not in used})


def _why_no_camera(bag: BagReader, topic: str, images: Collection[str]) -> str:
    """Why an image topic is not what a camera saw; empty where it is."""
    plain = topic.removesuffix("/compressed")
    content = _first(bag, topic)
    encoding = str(getattr(content, "encoding", "") or getattr(content, "format", ""))
    if _TRUTH_WORDS.search(plain) and (bag.topics[topic].type == COMPRESSED_IMAGE or encoding in MONO):
        return _LABELS
    if _DEPTH_WORDS.search(topic) or _MEASURED.match(encoding):
        return f"depth by its {'name' if _DEPTH_WORDS.search(topic) else f'encoding {encoding}'}"
    if _ANSWER_WORDS.search(plain):
        return "by its name what a network answered"
    if plain != topic and plain in images:  # the raw ones are what the camera's node was fed
        return "the raw images of the same camera are there"
    return ""


def _first(bag: BagReader, topic: str) -> Any:
    """The first message of a topic that can be read; None where none of the first few can."""
    for message in islice(bag.messages([topic]), 8):
        try:
            return bag.deserialize(message)
        except BagError:
            continue
    return None


def truth_folder(truth: tuple[str, ...]) -> Path | None:
    """The folder of masks that is asked for; None where it is something else."""
    is_folder = len(truth) == 1 and truth[0] not in ("none", "auto") and Path(truth[0]).is_dir()
    return Path(truth[0]) if is_folder else None


def _find_truths(bag: BagReader, topics: list[str], choice: tuple[str, ...], candidates: list[str]) -> list[str]:
    if choice == ("auto",):
        return [_nearest_truth(topic, candidates, len(topics)) for topic in topics]
    if choice == ("none",) or truth_folder(choice):
        return [""] * len(topics)
    if len(choice) == 1 and choice[0] not in bag.topics and len(Path(choice[0]).parts) > 1:
        raise BagError(
            f"--truth {choice[0]}: neither a folder nor a topic of bag {bag.path}; it has {bag.describe_topics()}"
        )
    if len(choice) != len(topics):
        raise ConfigError(
            f"--truth names {counted(len(choice), 'topic')} for {counted(len(topics), 'image topic')} "
            f"({', '.join(topics)}); name one for each, in the same order"
        )
    return [bag.require(topic).name for topic in choice]


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
