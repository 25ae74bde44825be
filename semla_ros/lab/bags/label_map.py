"""Ground truth of any numbering, brought to the classes of the model by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from semla_ros.errors import BagError, ConfigError
from semla_ros.image_files import label_values, read_labels
from semla_ros.lab.bags.own_output import own_topics
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import STRING
from semla_ros.labels import unlabelled_of
from semla_ros.results import ImageArray, MaskArray

VOID = ("void", "unlabelled", "unlabeled", "ignore", "ignored")  # names that mean "no class"
MONO = {"mono8": 1, "8UC1": 1, "mono16": 2, "16UC1": 2}  # encodings of label images -> bytes per pixel


def known_names(names: Mapping[int, str], class_names: Sequence[str]) -> dict[int, str]:
    """The part of a label map whose names are in the vocabulary, spelled as there; case and outer spaces do not count.

    Raises:
        ConfigError: Not one name is in the vocabulary.
    """
    spelled = {name.strip().lower(): name for name in reversed(class_names)}
    known = {value: spelled[key] for value, name in names.items() if (key := name.strip().lower()) in spelled}
    if names and not known:
        raise ConfigError(
            f"label map: none of its names ({', '.join(sorted(set(names.values()))[:8])}) is a class of the model "
            f"({', '.join(class_names[:8])}, ...); name the classes as the vocabulary does"
        )
    return known


def trained_names(names: Mapping[int, str]) -> list[str]:
    """The class list of a label map: its names in the order of their values, without those that mean "no class"."""
    return list(dict.fromkeys(name for _, name in sorted(names.items()) if name.strip().lower() not in VOID))


class LabelMap:
    """Pixel values of a truth mask -> class indices of the vocabulary.

    Args:
        names: Pixel value -> class name.
        class_names: The vocabulary; index = class.

    Attributes:
        ignored: Names that are not in the vocabulary; their pixels count as unlabelled.

    Raises:
        ConfigError: Not one name is in the vocabulary.
    """

    def __init__(self, names: Mapping[int, str], class_names: Sequence[str]) -> None:
        known = known_names(names, class_names)
        self._unlabelled = unlabelled = unlabelled_of(class_names)
        is_wide = max([*names, len(class_names)], default=0) > 255
        size, dtype = 65536 if is_wide else 256, np.uint16 if len(class_names) > 254 else np.uint8
        self._table: MaskArray = np.full(size, unlabelled, dtype)  # type: ignore[assignment]
        for value, name in known.items():
            self._table[value] = class_names.index(name)
        self.ignored = tuple(sorted({name for value, name in names.items() if value not in known}))

    @classmethod
    def same_numbering(cls, class_names: Sequence[str]) -> LabelMap:
        """For truth that already uses the vocabulary's indices."""
        return cls(dict(enumerate(class_names)), class_names)

    def __call__(self, mask: MaskArray) -> MaskArray:
        """Class index per pixel, shape of `mask`; values that the map does not know are unlabelled."""
        if int(mask.max(initial=0)) < len(self._table):
            return self._table[mask]
        is_known = mask < len(self._table)
        mapped = self._table[np.where(is_known, mask, 0)]
        mapped[~is_known] = self._unlabelled
        return mapped


def read_class_list(path: Path) -> list[str]:
    """Read a class list: one name a line, in the order of the class index.

    Raises:
        ConfigError: The file is not readable, or empty.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise ConfigError(f"class list {path}: {reason}; give a text file with one class name a line") from None
    if not any(names):
        raise ConfigError(f"class list {path}: it is empty; give a text file with one class name a line")
    return [name for name in names if name]


def read_label_map(path: Path) -> dict[int, str]:
    """Read pixel value -> class name from YAML or JSON.

    Accepts a list of names, a mapping `7: road`, or the node's label message.

    Raises:
        ConfigError: The file is not readable or none of these.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"label map {path}: not readable ({error})".replace("\n", " ")) from None
    return parse_label_map(content, str(path))


def parse_label_message(text: str) -> dict[int, str] | None:
    """Pixel value -> class name from a label topic's JSON; None where it holds no labels."""
    try:
        return parse_label_map(json.loads(text), "label message")
    except (json.JSONDecodeError, ConfigError):
        return None


def parse_label_map(content: Any, where: str) -> dict[int, str]:
    """Bring any of the accepted forms to pixel value -> class name; see `read_label_map`."""
    if isinstance(content, dict):
        for key in ("classes", "labels", "names"):
            if isinstance(content.get(key), (list, dict)):
                content = content[key]
                break
    if isinstance(content, list):
        content = {
            (item.get("id", index) if isinstance(item, dict) else index): (
                item.get("name") if isinstance(item, dict) else item
            )
            for index, item in enumerate(content)
        }
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"label map {where}: expected pixel values with class names, as in '7: road'")
    names: dict[int, str] = {}
    for key, value in content.items():
        name = value.get("name") if isinstance(value, dict) else value
        if not str(key).isdigit() or not isinstance(name, str) or int(key) > 65535:
            raise ConfigError(
                f"label map {where}: expected a pixel value 0..65535 with a class name, got {key}: {value}"
            )
        names[int(key)] = name
    return names


def label_names(bag: BagReader) -> dict[int, str]:
    """Pixel value -> class name, as a label topic of the bag says; empty where it has none but a node's own."""
    for topic in bag.topics_of_type(STRING):
        if topic.endswith("labels") and topic not in own_topics(bag):
            for message in islice(bag.messages([topic]), 1):
                if names := parse_label_message(bag.text(message) or ""):
                    return names
    return {}


def raw_mask(content: Any) -> MaskArray:
    """Class ids of a single-channel `sensor_msgs/Image`, shape (H, W), with its step and byte order honoured.

    Raises:
        BagError: It has more channels, or fewer bytes than it says.
    """
    size = MONO.get(content.encoding)
    if size is None:
        raise BagError(f"a label image must be one of {', '.join(MONO)}, got '{content.encoding}'")
    data = np.asarray(content.data)
    if content.step < content.width * size or data.size < content.step * (content.height - 1) + content.width * size:
        raise BagError(
            f"label image of {content.width}x{content.height} {content.encoding} with step {content.step} "
            f"has only {data.size} bytes"
        )
    dtype = np.dtype(np.uint8) if size == 1 else np.dtype(">u2" if content.is_bigendian else "<u2")
    rows = np.lib.stride_tricks.as_strided(data, (content.height, content.width * size), (content.step, 1))
    return np.ascontiguousarray(rows).view(dtype).astype(dtype.newbyteorder("="))  # type: ignore[return-value]


def decode_mask(data: ImageArray, image_format: str) -> MaskArray:
    """Class ids of a PNG, of a palette its indices; a JPEG would have changed them."""
    return _one_channel(label_values(data, f"a label image of {data.size} bytes (format '{image_format}')"))


def read_mask(path: Path) -> MaskArray:
    """As `decode_mask`, of a file."""
    return _one_channel(read_labels(path))


def _one_channel(mask: NDArray[Any]) -> MaskArray:
    if mask.ndim != 2:
        raise BagError(f"a label image must be a PNG with one channel of class ids, got {mask.shape[2]} channels")
    return mask
