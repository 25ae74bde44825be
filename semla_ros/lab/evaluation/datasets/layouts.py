"""Which label file belongs to which image, whatever way a data set lies on disk: by whole paths, never by bare stem."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from semla_ros.errors import DatasetError

NAME, SPLIT = "{name}", "{split}"
# Ends of file names that public data sets give images, and labels of the same image.
IMAGE_ENDS = ("_leftImg8bit", "_rgb_anon", "_frame_camera", "_image")
FIRST_CHOICES = ("", "_label", "_labelTrainIds", "_gtFine_labelTrainIds", "_gt_labelTrainIds")
_SHOWN = 3


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
    """One way that a domain lies below the data folder.

    In patterns `{split}` stands for the data set's own name of the split, `{name}` for what an image and its labels
    have in common, folders included, a word of the domain's `words` for its value, and `*` for any part of a file's
    name, or of a folder's; what it stands for in folders is the same for an image and its labels.

    Attributes:
        images: Pattern of the image files; of "panoptic" their folder; of "list" not used.
        labels: Pattern of the label files; of "panoptic" their folder; of "list" not used.
        encoding: Name of the encoding of the labels.
        kind: "files": what the patterns find; "names": a text file has a name a line; "list": a text file has lines
            "image,labels[,...]", paths beside it; "panoptic": a COCO annotation file.
        index: The text or annotation file of the kinds that have one.
        splits: Our split -> the data set's name of it; a split that is not named is not there.
        are_all_labelled: False: images without labels are passed over.
    """

    encoding: str = ""
    images: str = ""
    labels: str = ""
    kind: Literal["files", "names", "list", "panoptic"] = "files"
    index: str = ""
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "val": "val"})
    are_all_labelled: bool = True

    def describe(self, root: Path, split: str, words: Mapping[str, str]) -> str:
        """What this layout wants, as one clause of a message."""
        index, images, labels = (_filled(item, self.splits.get(split, split), words) for item in self._patterns())
        if self.kind == "list":
            return f"{root / index} with lines 'image,labels'"
        return f"{f'{root / index}, ' if index else ''}{root / images} with {labels}"

    def find(self, root: Path, split: str, words: Mapping[str, str]) -> tuple[list[SamplePaths], list[str]]:
        """Images with their labels below `root`, ordered by path, and what does not fit, a clause each.

        Raises:
            DatasetError: The text or annotation file is there, but is not what this layout expects.
        """
        if split not in self.splits:
            return [], []
        index, images, labels = (_filled(item, self.splits[split], words) for item in self._patterns())
        if self.kind == "files":
            return _matched(root, images, labels, self.are_all_labelled)
        if not (root / index).is_file():
            return [], []
        if self.kind == "panoptic":
            samples = _annotated(root / index, root / images, root / labels)
        else:
            lines = [line.strip() for line in (root / index).read_text(encoding="utf-8").splitlines() if line.strip()]
            if self.kind == "names":
                named = [(images.replace(NAME, line), labels.replace(NAME, line)) for line in lines]
                samples = [SamplePaths(image=root / image, labels=root / label) for image, label in named]
            else:
                samples = [_listed(root / index, line) for line in lines]
        return samples, [*filter(None, map(_missing, samples))]

    def _patterns(self) -> tuple[str, str, str]:
        return self.index, self.images, self.labels


def pair_folders(
    images: Iterable[Path], image_root: Path, labels: Iterable[Path], label_root: Path, *, are_all_labelled: bool = True
) -> list[SamplePaths]:
    """The labels of each image of a folder, by the path below it.

    An image `a/b.jpg`, or `a/b_leftImg8bit.png` and the like, has labels `a/b.png`, `a/b_label.png`, train ids of
    public naming, or one `a/b_*.png` whose ending begins with a letter. Where all labels lie in one folder, it has the
    one there of that name.

    Args:
        images: The images.
        image_root: Their folder.
        labels: The label files.
        label_root: Their folder.
        are_all_labelled: False: images without labels are passed over.

    Raises:
        DatasetError: An image has no labels or several, or two images have the same, or an image would be its own.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in labels:
        by_folder[path.parent.relative_to(label_root)].append(path)
    is_flat = set(by_folder) == {Path()}
    samples: list[SamplePaths] = []
    owner: dict[Path, Path] = {}
    for image in images:
        place = Path() if is_flat else image.parent.relative_to(image_root)
        label = _label_of(image, place, by_folder[place], is_needed=are_all_labelled)
        if label is None:
            continue
        if label in owner:
            raise DatasetError(f"label {label} would be that of {owner[label]} and of {image}; remove one of the two")
        if label.samefile(image):
            raise DatasetError(
                f"image {image} would be its own label: images and labels must lie in different folders; describe "
                "others with a benchmark file"
            )
        owner[label] = image
        samples.append(SamplePaths(image=image, labels=label))
    return samples


def _label_of(image: Path, place: Path, labels: Iterable[Path], *, is_needed: bool) -> Path | None:
    start = next((image.stem.removesuffix(end) for end in IMAGE_ENDS if image.stem.endswith(end)), image.stem)
    ends = {path: path.stem.removeprefix(start) for path in labels if path.stem.startswith(start)}
    ends = {path: end for path, end in ends.items() if re.match(r"_[^\W\d]|$", end)}  # "0_1" is not a kind of "0"
    chosen = [path for path, end in ends.items() if end in FIRST_CHOICES] or list(ends)
    if not chosen and not is_needed:
        return None
    if len(chosen) != 1:
        found = ", ".join(path.name for path in chosen[:_SHOWN]) or "none"
        raise DatasetError(
            f"image {image}: expected one label named {place / start}.png or {place / start}_*.png, got {found}"
        )
    return chosen[0]


def _filled(pattern: str, split: str, words: Mapping[str, str]) -> str:
    for word, value in {"split": split, **words}.items():
        pattern = pattern.replace(f"{{{word}}}", value)
    return pattern


def _matched(root: Path, images: str, labels: str, are_all_labelled: bool) -> tuple[list[SamplePaths], list[str]]:
    pictures, masks = _files_by_name(root, images), _files_by_name(root, labels)
    samples, problems = [], []
    for key in sorted(pictures.keys() | masks.keys()):
        files, label_files = pictures.get(key, []), masks.get(key, [])
        problems += [
            f"{' and '.join(map(str, several[:_SHOWN]))} have the same name: remove all but one"
            for several in (files, label_files)
            if len(several) > 1
        ]
        if files and label_files:
            samples.append(SamplePaths(image=files[0], labels=label_files[0]))
        elif label_files:
            problems.append(f"{label_files[0]} is there, {root / _named(images, key)} is not")
        elif are_all_labelled:
            problems.append(f"{files[0]} is there, {root / _named(labels, key)} is not")
    return (samples, problems) if pictures else ([], [])


def folder_wildcards(pattern: str) -> int:
    """How many `*` of a pattern stand in folders."""
    return pattern.rpartition("/")[0].count("*")


def _files_by_name(root: Path, pattern: str) -> dict[tuple[str, ...], list[Path]]:
    """What stands for `{name}`, and for each `*` in a folder -> the files below `root` that it makes of a pattern."""
    parts = re.split(r"(\{name\}|\*)", pattern)
    stars = folder_wildcards(pattern)
    written = []
    for index, part in enumerate(parts):
        is_in_folder = part == "*" and parts[:index].count("*") < stars
        written.append("([^/]*)" if is_in_folder else {NAME: "(?P<name>.+)", "*": "[^/]*"}.get(part, re.escape(part)))
    wanted = re.compile("".join(written))
    found: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    fixed = parts[0].rpartition("/")[0]
    for path in sorted((root / fixed).rglob("*")):
        if (match := wanted.fullmatch(path.relative_to(root).as_posix())) and path.is_file():
            place = wanted.groupindex["name"] - 1
            others = [group for index, group in enumerate(match.groups()) if index != place]
            found[(*others, match["name"])].append(path)
    return found


def _named(pattern: str, key: tuple[str, ...]) -> str:
    """A pattern with what stands in its folders and for `{name}`."""
    *folders, name = key
    for folder in folders:
        pattern = pattern.replace("*", folder, 1)
    return pattern.replace(NAME, name)


def _missing(paths: SamplePaths) -> str:
    """What of an image and its labels is not there, as a clause of a message; empty where both are."""
    has_image, has_labels = paths.image.is_file(), paths.labels.is_file()
    if has_image and has_labels:
        return ""
    if not has_image and not has_labels:
        return f"neither {paths.image} nor {paths.labels} is there"
    there, missing = (paths.image, paths.labels) if has_image else (paths.labels, paths.image)
    return f"{there} is there, {missing} is not"


def _listed(index: Path, line: str) -> SamplePaths:
    parts = line.split(",")
    if len(parts) < 2:
        raise DatasetError(f"{index}: expected lines 'image,labels' or 'image,labels,depth', got {line!r}")
    return SamplePaths(image=index.parent / parts[0].strip(), labels=index.parent / parts[1].strip())


def _annotated(index: Path, images: Path, labels: Path) -> list[SamplePaths]:
    try:
        annotations = json.loads(index.read_text(encoding="utf-8"))["annotations"]
        samples = [
            SamplePaths(
                image=images / f"{Path(_annotated_file(item)).stem}.jpg",
                labels=labels / _annotated_file(item),
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
