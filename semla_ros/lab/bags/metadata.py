"""What rosbag2 writes about a bag, in `metadata.yaml` and in its files: of any version, complete or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

OWN_KEY = "semla_ros"  # in the custom data of a bag that this project wrote
OWN_OUTPUT = "output"  # its value where the topics are what a node answered, not what it saw
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # equally safe, and several times as fast where it was built


@dataclass(frozen=True)
class Metadata:
    """What is known of a bag besides its files.

    Attributes:
        files: Names of its files, as they are written there.
        counts: Messages by topic.
        types: Topic -> message type.
        is_own_output: Whether this project wrote it as a bag of answers.
    """

    files: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    types: dict[str, str] = field(default_factory=dict)
    is_own_output: bool = False

    @classmethod
    def parse(cls, text: str) -> Metadata:
        """Read it, with or without the outermost key that only the file has.

        Raises:
            ValueError: It is no YAML mapping.
        """
        try:
            content = yaml.load(text, _LOADER)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(type(error).__name__) from None
        if isinstance(content, dict):
            content = content.get("rosbag2_bagfile_information", content)
        if not isinstance(content, dict) or not {"relative_file_paths", "topics_with_message_count"} & content.keys():
            raise ValueError("no such mapping")
        counts, types = Counter[str](), dict[str, str]()
        for item in _dicts(content.get("topics_with_message_count")):
            topic = item.get("topic_metadata")
            if isinstance(topic, dict) and isinstance(topic.get("name"), str):
                counts[topic["name"]] += _count(item.get("message_count"))
                types[topic["name"]] = str(topic.get("type") or "")
        custom = content.get("custom_data")
        names = content.get("relative_file_paths")
        return cls(
            files=tuple(str(name) for name in names) if isinstance(names, list) else (),
            counts=counts,
            types=types,
            is_own_output=isinstance(custom, dict) and custom.get(OWN_KEY) == OWN_OUTPUT,
        )


def _dicts(items: Any) -> Iterable[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
