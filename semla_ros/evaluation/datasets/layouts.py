"""Where each data set keeps its images and labels: one small table per data set, and how to walk it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
            "list": a text file of "image,labels[,...]" lines; "names": a text file of bare image names;
            "panoptic": a COCO annotation file.
        images: Glob of the images below the root ("files"), or the folder of the images.
        labels: Where labels lie, in words that the reader of a message can follow; for "names" and "panoptic" the
            pattern itself, with `{name}`.
        rename: (regular expression, replacement) from an image's path below the root to its labels' path ("files").
        index: Text or annotation file of the kinds that have one.
        encoding: Key of `labels.ENCODINGS`.
        splits: The benchmark's split -> the data set's name of it.
    """

    kind: Literal["files", "list", "names", "panoptic"] = "files"
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
        """Images and labels below `root`, ordered by name; empty where the images are not there.

        Raises:
            DatasetError: Images are there, but a label file that they need is not.
        """
        name = self.splits[split]
        if self.kind == "files":
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
        for image in sorted(root.glob(_fill(self.images, split))):
            relative = image.relative_to(root).as_posix()
            renamed, changes = re.subn(pattern, replacement, relative)
            if changes:
                samples.append(SamplePaths(image=image, labels=root / renamed))
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
                    image=root / _fill(self.images, split) / f"{Path(item['file_name']).stem}.jpg",
                    labels=root / _fill(self.labels, split) / item["file_name"],
                    segments={int(part["id"]): int(part["category_id"]) for part in item["segments_info"]},
                )
                for item in annotations
            ]
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{index}: expected COCO panoptic annotations: {error!r}") from None
        return sorted(samples, key=lambda sample: sample.image.name)


def _fill(pattern: str, split: str, name: str = "<name>") -> str:
    return pattern.replace("{split}", split).replace("{name}", name)
