"""Turn a data set's label files into class indices: indices, ids, palettes, colours, instances, .mat, panoptic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import ConfigError, DatasetError
from semla_ros.image_files import read_labels
from semla_ros.results import UNLABELLED

Mask = NDArray[np.uint8]
_PACK = np.array([1, 256, 65536])  # R, G, B of a pixel as one number


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a data set writes classes into its label files.

    A value that is neither a class nor unlabelled is an error, so a wrong encoding cannot pass for a result.

    Attributes:
        classes: Name of the class list.
        what: The values in words, for messages.
        first: Value of the first class; those of the others follow it.
        values: Value -> class, instead of `first`; several values may mean one class.
        unlabelled: Values that are not scored, as "0-33, 255"; one that is a class, too, is the class.
        reader: "image": the stored values, indices of a palette image; "mat": `LabelMap` of a MATLAB file;
            "panoptic": segment ids packed into RGB, `values` are the categories of the annotation file.
        instances: Values of 16-bit files are class * this + number of the instance; 0 = they are classes.
        colours: Class -> "rrggbb", for files that are in colours; black is unlabelled.
    """

    classes: str = ""
    what: str = "values of its encoding"
    first: int = 0
    values: Mapping[int, str] = field(default_factory=dict)
    unlabelled: str = "255"
    reader: Literal["image", "mat", "panoptic"] = "image"
    instances: int = 0
    colours: Mapping[str, str] = field(default_factory=dict)

    def table(self, names: Sequence[str]) -> dict[int, int]:
        """Value -> index in the class list, `UNLABELLED` for what is not scored.

        Raises:
            ConfigError: A class is not in the list, or a range is none.
        """
        if unknown := sorted({*self.values.values(), *self.colours} - set(names)):
            raise ConfigError(f"class '{unknown[0]}' is not in the class list '{self.classes}': {', '.join(names)}")
        of_classes = {value: names.index(name) for value, name in self.values.items()}
        if not self.values:
            of_classes = {self.first + index: index for index in range(len(names))}
        return dict.fromkeys(_numbers(self.unlabelled), UNLABELLED) | of_classes

    def decode(self, names: Sequence[str], path: Path, segments: Mapping[int, int] | None = None) -> Mask:
        """Read one label file.

        Args:
            names: The class list.
            path: The label file.
            segments: Segment id -> category id, for panoptic files only.

        Returns:
            Class index per pixel, shape (H, W), uint8; 255 where the data set does not say or does not evaluate.

        Raises:
            DatasetError: The file is unreadable or holds a value that the encoding does not know.
        """
        try:
            values = _label_map(path) if self.reader == "mat" else read_labels(path)
        except Exception as error:  # a damaged file raises whatever its bytes lead a reader into
            raise DatasetError(f"label file {path}: cannot be read as {self.what}: {error!r}") from None
        table = self.table(names)
        if self.reader == "panoptic":
            if values.ndim != 3:
                raise DatasetError(f"label file {path}: expected RGB panoptic segment ids, got shape {values.shape}")
            if unknown := sorted(set((segments or {}).values()) - set(table)):
                raise DatasetError(f"label file {path}: category {unknown[0]} is none of the {self.what}")
            of_segments = {segment: table[category] for segment, category in (segments or {}).items()}
            what = "segments that the annotation file lists for it"
            return _look_up(path, values[..., :3] @ _PACK, of_segments | {0: UNLABELLED}, what)
        if values.ndim == 3 and self.colours:
            packed = {_packed(colour): names.index(name) for name, colour in self.colours.items()} | {0: UNLABELLED}
            return _look_up(path, values[..., :3] @ _PACK, packed, f"colours of {self.what} (R + 256 G + 65536 B)")
        if self.instances and values.dtype != np.uint8:
            values = values.astype(np.int64) // self.instances
        return _look_up(path, values, table, self.what)


def _numbers(text: str) -> list[int]:
    """The numbers of "0-33, 255"."""
    numbers: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise ConfigError(f"'unlabelled' must be numbers and ranges such as '0-33, 255', got '{text}'")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _label_map(path: Path) -> NDArray[Any]:
    from scipy.io import loadmat

    return np.asarray(loadmat(path)["LabelMap"])


def _packed(colour: str) -> int:
    return int(np.array(list(bytes.fromhex(colour))) @ _PACK)


def _look_up(path: Path, values: NDArray[Any], table: Mapping[int, int], what: str) -> Mask:
    if values.ndim != 2:
        raise DatasetError(f"label file {path}: expected one channel of {what}, got shape {values.shape}")
    present, inverse = np.unique(values, return_inverse=True)
    unknown = [int(value) for value in present if int(value) not in table]
    if unknown:
        raise DatasetError(f"label file {path}: value {unknown[0]} is none of the {what}; is it of another data set?")
    mapped = np.array([table[int(value)] for value in present], np.uint8)
    return mapped[inverse].reshape(values.shape)
