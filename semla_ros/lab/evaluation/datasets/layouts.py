"""Where each data set keeps its images and labels: one small table per data set, and how to walk it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from semla_ros.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class SamplePaths:
    """Where one image and its labels lie.

    Attributes:
        image: Image file.
        labels: Label file.
        segments: Segment id -> category id, for panoptic labels only.
    """

    image: Path
    labels: Path
    segments: Mapping[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way that a data set lies on disk. `{split}` stands for the data set's own name of the split.

    Attributes:
        kind: "files": image files found by a pattern, each with the label file that `rename` leads to;
            "labels": label files found by a pattern, each with the image that `rename` leads to, for data sets that
            label some of their images; "list": a text file of "image,labels[,...]" lines; "names": a text file of bare
            image names; "panoptic": a COCO annotation file.
        images: Glob of the images below the root ("files"), or where the images lie.
        labels: Glob of the labels below the root ("labels"); else where they lie, in words that the reader of a message
            can follow; for "names" and "panoptic" the pattern itself, with `{name}`.
        rename: (regular expression, replacement) from the path below the root that was found to the other's path
            ("files", "labels").
        index: Text or annotation file of the kinds that have one.
        encoding: Key of `labels.ENCODINGS`.
        splits: The benchmark's split -> the data set's name of it.
    """

    kind: Literal["files", "labels", "list", "names", "panoptic"] = "files"
    images: str
    labels: str
    encoding: str
    rename: tuple[str, str] = ("", "")
    index: str = ""
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "val": "val"})

    def describe(self, root: Path, split: str) -> str:
        """What this layout wants, as one clause of a message."""
        name = self.splits[split]
        index = f"{root / _fill(self.index, name)}, " if self.index else ""
        return f"{index}{root / _fill(self.images, name)} with {_fill(self.labels, name)}"

    def find(self, root: Path, split: str) -> list[SamplePaths]:
        """Images and labels below `root`, ordered by name; empty where the data set does not lie there this way.

        Raises:
            DatasetError: The text or annotation file is there, but is not what this layout expects.
        """
        name = self.splits[split]
        if self.kind in ("files", "labels"):
            return self._from_pattern(root, name)
        index = root / _fill(self.index, name)
        if not index.is_file():
            return []
        if self.kind == "panoptic":
            return self._from_annotations(root, name, index)
        lines = [line.strip() for line in index.read_text(encoding="utf-8").splitlines() if line.strip()]
        if self.kind == "names":
            return [
                SamplePaths(image=root / _fill(self.images, name, line), labels=root / _fill(self.labels, name, line))
                for line in lines
            ]
        return [self._from_line(index, line) for line in lines]

    def _from_pattern(self, root: Path, split: str) -> list[SamplePaths]:
        samples = []
        pattern, replacement = self.rename
        from_labels = self.kind == "labels"
        for found in sorted(root.glob(_fill(self.labels if from_labels else self.images, split))):
            renamed, changes = re.subn(pattern, replacement, found.relative_to(root).as_posix())
            if changes:
                other = root / renamed
                image, labels = (other, found) if from_labels else (found, other)
                samples.append(SamplePaths(image=image, labels=labels))
        return samples

    def _from_line(self, index: Path, line: str) -> SamplePaths:
        parts = line.split(",")
        if len(parts) < 2:
            raise DatasetError(f"{index}: expected lines 'image,labels' or 'image,labels,depth', got {line!r}")
        return SamplePaths(image=index.parent / parts[0].strip(), labels=index.parent / parts[1].strip())

    def _from_annotations(self, root: Path, split: str, index: Path) -> list[SamplePaths]:
        try:
            annotations = json.loads(index.read_text(encoding="utf-8"))["annotations"]
            samples = [
                SamplePaths(
                    image=root / _fill(self.images, split) / f"{Path(_annotated_file(item)).stem}.jpg",
                    labels=root / _fill(self.labels, split) / _annotated_file(item),
                    segments={int(part["id"]): int(part["category_id"]) for part in item["segments_info"]},
                )
                for item in annotations
            ]
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{index}: expected COCO panoptic annotations: {error!r}") from None
        return sorted(samples, key=lambda sample: sample.image.name)


def _annotated_file(item: Mapping[str, Any]) -> str:
    """Name of an annotation's label file; COCONut's images from Objects365 are stored under that data set's names."""
    other_name = item.get("object365_file_name")
    return f"{other_name}.png" if other_name else str(item["file_name"])


def _fill(pattern: str, split: str, name: str = "<name>") -> str:
    return pattern.replace("{split}", split).replace("{name}", name)
