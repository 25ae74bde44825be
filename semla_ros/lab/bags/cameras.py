"""The cameras of a bag: image topics, their short names, and the label topics that belong to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semla_ros.errors import BagError, ConfigError
from semla_ros.lab.bags.label_map import MONO
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import COMPRESSED_IMAGE, IMAGE

_TRUTH_WORDS = re.compile(r"(label|truth|mask|semantic|segmentation|annotation|gt)(s|_id|_ids|_image)?$")
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


def find_cameras(bag: BagReader, topics: Sequence[str], truth: tuple[str, ...]) -> tuple[Camera, ...]:
    """The cameras to read.

    Args:
        bag: The open bag.
        topics: Image topics; empty = every one that holds no labels.
        truth: As `FrameOptions.truth`.

    Raises:
        BagError: The bag lacks a topic asked for, or has no image topic.
        ConfigError: The topics of the truth are not one for each camera.
    """
    images = bag.topics_of_type(IMAGE, COMPRESSED_IMAGE)
    candidates = [topic for topic in images if _is_truth_like(bag, topic)]
    for topic in topics:
        if bag.require(topic).type not in (IMAGE, COMPRESSED_IMAGE):
            raise BagError(
                f"bag {bag.path}: topic '{topic}' is {bag.topics[topic].type}, expected an image topic; "
                f"the bag has {bag.describe_topics()}"
            )
    chosen = list(topics) or [
        topic
        for topic in images
        # Of one camera's raw and compressed images, the raw ones are what its node was fed.
        if topic not in candidates and not (topic.endswith("/compressed") and topic[:-11] in images)
    ]
    if not chosen:
        raise BagError(f"bag {bag.path}: there is no image topic; it has {bag.describe_topics()}")
    truths = _find_truths(bag, chosen, truth, [topic for topic in candidates if topic not in chosen])
    return tuple(Camera(*each) for each in zip(_camera_names(chosen), chosen, truths, strict=True))


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
            f"--truth names {len(choice)} topics for {len(topics)} image topics ({', '.join(topics)}); "
            "name one for each, in the same order"
        )
    return [bag.require(topic).name for topic in choice]


def _is_truth_like(bag: BagReader, topic: str) -> bool:
    """A label topic is one by its name and by what its first message holds."""
    if not _TRUTH_WORDS.search(topic.removesuffix("/compressed")):
        return False
    first = next(bag.messages([topic]), None)
    if first is None or first.type == COMPRESSED_IMAGE:
        return first is not None
    try:
        return bag.deserialize(first).encoding in MONO
    except BagError:
        return False


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
