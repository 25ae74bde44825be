"""Turn a data set's label files into class indices: ids, palettes, 16-bit instances, .mat and panoptic files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat

from semla_ros.errors import DatasetError
from semla_ros.results import UNLABELLED

Mask = NDArray[np.uint8]
Decoder = Callable[[Path, Mapping[int, int]], Mask]

MAPILLARY_UNLABELLED = 65  # Vistas writes "unlabelled" as one more class index
INSTANCES_PER_CLASS = 256  # Vistas' 16-bit files: class index * 256 + instance number


@functools.cache
def _tables() -> dict[str, list[Any]]:
    text = resources.files(__package__).joinpath("classes.yaml").read_text(encoding="utf-8")
    tables: dict[str, list[Any]] = yaml.safe_load(text)
    return tables


@functools.cache
def class_names(vocabulary: str) -> tuple[str, ...]:
    """Class names of a vocabulary of `classes.yaml`, in the order of the class index."""
    return tuple(_tables()[vocabulary])


def decode_labels(encoding: str, path: Path, segments: Mapping[int, int] | None = None) -> Mask:
    """Read one label file.

    Args:
        encoding: A key of `ENCODINGS`.
        path: The label file.
        segments: Segment id -> category id, for panoptic files only.

    Returns:
        Class index per pixel, shape (H, W), uint8; 255 where the data set does not say or does not evaluate.

    Raises:
        DatasetError: The file is unreadable or holds a value that its encoding does not know.
    """
    try:
        return ENCODINGS[encoding](path, segments or {})
    except (OSError, ValueError, NotImplementedError, KeyError) as error:
        raise DatasetError(f"label file {path}: cannot be read as '{encoding}': {error}") from None


def _pixels(path: Path) -> NDArray[Any]:
    """Stored values: indices of a palette image, not its colours."""
    with Image.open(path) as image:
        return np.asarray(image)


def _look_up(path: Path, values: NDArray[Any], table: Mapping[int, int], what: str) -> Mask:
    """Map each value through `table`; a value it lacks is an error, so a wrong encoding cannot pass for a result."""
    if values.ndim != 2:
        raise DatasetError(f"label file {path}: expected one channel of {what}, got shape {values.shape}")
    present, inverse = np.unique(values, return_inverse=True)
    unknown = [int(value) for value in present if int(value) not in table]
    if unknown:
        raise DatasetError(f"label file {path}: value {unknown[0]} is none of the {what}; is it of another data set?")
    mapped = np.array([table[int(value)] for value in present], np.uint8)
    return mapped[inverse].reshape(values.shape)


def _identity(vocabulary: str) -> dict[int, int]:
    """0..K-1 are classes, 255 is unlabelled."""
    return {index: index for index in range(len(class_names(vocabulary)))} | {UNLABELLED: UNLABELLED}


def _indices(vocabulary: str) -> Decoder:
    def decode(path: Path, _: Mapping[int, int]) -> Mask:
        table = _identity(vocabulary)
        return _look_up(path, _pixels(path), table, f"class indices 0 to {len(table) - 2} and 255")

    return decode


def _from_one(vocabulary: str) -> Decoder:
    """0 is unlabelled, 1..K are the classes; 255 too is unlabelled."""

    def decode(path: Path, _: Mapping[int, int]) -> Mask:
        count = len(class_names(vocabulary))
        table = {index + 1: index for index in range(count)} | {0: UNLABELLED, UNLABELLED: UNLABELLED}
        return _look_up(path, _pixels(path), table, f"numbers 0 (unlabelled) to {count} and 255")

    return decode


def _cityscapes_ids(path: Path, _: Mapping[int, int]) -> Mask:
    numbers = {int(number): index for index, number in enumerate(_tables()["cityscapes-19-numbers"])}
    table = dict.fromkeys(range(34), UNLABELLED) | numbers  # -1, the licence plate, is never drawn; 255 is no id
    return _look_up(path, _pixels(path), table, "Cityscapes label ids 0 to 33")


def _mapillary(path: Path, _: Mapping[int, int]) -> Mask:
    """8-bit class index (with or without palette), 16-bit class * 256 + instance, or plain RGB in Vistas' colours."""
    values = _pixels(path)
    if values.ndim == 3:
        return _mapillary_colours(path, values[..., :3])
    if values.dtype != np.uint8:
        values = values.astype(np.int64) // INSTANCES_PER_CLASS
    table = _identity("mapillary-65") | {MAPILLARY_UNLABELLED: UNLABELLED}
    return _look_up(path, values, table, "Vistas 1.2 class indices 0 to 65")


def _mapillary_colours(path: Path, colours: NDArray[Any]) -> Mask:
    table = {_packed(colour): index for index, colour in enumerate(_tables()["mapillary-65-colours"])}
    table[0] = UNLABELLED
    packed = colours.astype(np.int64) @ np.array([1, 256, 65536])
    return _look_up(path, packed, table, "Vistas 1.2 colours (packed R + 256 G + 65536 B)")


def _packed(colour: list[int]) -> int:
    return colour[0] + 256 * colour[1] + 65536 * colour[2]


def _pascal_context_mat(path: Path, _: Mapping[int, int]) -> Mask:
    """The published `trainval/<image>.mat`: 459 labels under `LabelMap`, of which 59 are evaluated."""
    try:
        values = np.asarray(loadmat(path)["LabelMap"])
    except Exception as error:  # a damaged .mat raises whatever its bytes lead scipy into
        raise DatasetError(f"label file {path}: cannot be read as a PASCAL-Context .mat: {error!r}") from None
    numbers = {int(number): index for index, number in enumerate(_tables()["pascal-context-59-numbers"])}
    return _look_up(path, values, dict.fromkeys(range(460), UNLABELLED) | numbers, "PASCAL-Context labels 0 to 459")


def _coco_panoptic(path: Path, segments: Mapping[int, int]) -> Mask:
    """Segment ids packed into RGB; the annotation file says which category a segment has."""
    values = _pixels(path)
    if values.ndim != 3:
        raise DatasetError(f"label file {path}: expected RGB panoptic segment ids, got shape {values.shape}")
    classes = {int(number): index for index, number in enumerate(_tables()["coco-133-numbers"])}
    unknown = sorted(set(segments.values()) - set(classes))
    if unknown:
        raise DatasetError(f"label file {path}: category {unknown[0]} is no COCO panoptic category")
    table = {segment: classes[category] for segment, category in segments.items()} | {0: UNLABELLED}
    packed = values[..., :3].astype(np.int64) @ np.array([1, 256, 65536])
    return _look_up(path, packed, table, "segments that the annotation file lists for it")


ENCODINGS: dict[str, Decoder] = {
    "cityscapes train ids": _indices("cityscapes-19"),
    "cityscapes ids": _cityscapes_ids,
    "mapillary": _mapillary,
    "ade20k numbers": _from_one("ade20k-150"),
    "ade20k indices": _indices("ade20k-150"),
    "idd level 3": _indices("idd-26"),
    "pascal context indices": _indices("pascal-context-59"),
    "pascal context mat": _pascal_context_mat,
    "nyu indices": _indices("nyu-40"),
    "nyu numbers": _from_one("nyu-40"),
    "coco indices": _indices("coco-133"),
    "coco panoptic": _coco_panoptic,
}
