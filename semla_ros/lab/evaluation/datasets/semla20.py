"""The 20 domains by their published names: which data set, classes, sizes and folders each one stands for."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from semla_ros.errors import DatasetError
from semla_ros.lab.evaluation.datasets.labels import class_names, decode_labels
from semla_ros.lab.evaluation.datasets.layouts import Layout, SamplePaths
from semla_ros.lab.evaluation.datasets.sizes import SizeRule
from semla_ros.lab.evaluation.sources import EvaluationImage

_VALIDATION = {"train": "training", "val": "validation"}


@dataclass(frozen=True, kw_only=True)
class BenchmarkDomain:
    """One domain of the benchmark.

    Attributes:
        name: The published name, which is its adapter's folder name too.
        dataset: Full name of the data set.
        url: Where the data set can be had.
        vocabulary: Key of its class names in `classes.yaml`.
        sizes: Its resize rule.
        layouts: Folder layouts that are understood, the published evaluation's first.
    """

    name: str
    dataset: str
    url: str
    vocabulary: str
    sizes: SizeRule
    layouts: tuple[Layout, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the class index."""
        return class_names(self.vocabulary)


class DomainImages:
    """The images of one domain on disk, read one at a time.

    Attributes:
        domain: What is read.
        class_names: Its vocabulary.
        paths: Images and labels in the order they are read in.
    """

    def __init__(self, domain: BenchmarkDomain, paths: list[SamplePaths], encoding: str) -> None:
        self.domain = domain
        self.class_names = domain.class_names
        self.paths = paths
        self._encoding = encoding

    def read(self, seed: int, index: int) -> EvaluationImage:
        """Read and resize one image and decode its labels.

        Raises:
            DatasetError: A file is missing or unreadable, image and labels differ in size, or a label is unknown.
        """
        del seed  # an index is the same image for every seed
        paths = self.paths[index]
        try:
            with Image.open(paths.image) as file:
                image = np.asarray(file.convert("RGB"))
        except (OSError, ValueError) as error:
            raise DatasetError(f"domain '{self.domain.name}': image {paths.image} cannot be read: {error}") from None
        if not paths.labels.is_file():
            raise DatasetError(f"domain '{self.domain.name}': {paths.image} has no labels; expected {paths.labels}")
        labels = decode_labels(self._encoding, paths.labels, paths.segments)
        if labels.shape != image.shape[:2]:
            raise DatasetError(
                f"domain '{self.domain.name}': {paths.labels} is {labels.shape}, its image is {image.shape[:2]}; "
                "expected the same height and width"
            )
        sizes = self.domain.sizes
        return EvaluationImage(
            name=paths.image.stem,
            scene=image,
            image=sizes.apply(image),
            labels=labels,
            answer_size=sizes.fixed or (int(labels.shape[0]), int(labels.shape[1])),
        )

    def indices(self, seed: int, count: int) -> list[int]:
        """Indices of `count` images drawn by `seed`, ascending; all where there are no more, or where count is 0."""
        if count <= 0 or count >= len(self.paths):
            return list(range(len(self.paths)))
        return sorted(int(item) for item in np.random.default_rng(seed).choice(len(self.paths), count, replace=False))


@functools.cache  # a job is a few images, a data set's folder or annotation file has thousands
def open_domain(name: str, root: Path, split: str = "val") -> DomainImages:
    """Find the images of one domain below the folder that holds all data sets.

    Args:
        name: One of `SEMLA20`.
        root: The folder that the published code calls `$DETECTRON2_DATASETS`.
        split: "val" or "train".

    Raises:
        DatasetError: The name is unknown, or the folder holds none of the layouts whole; the message says which it
            wants and, where one is there in part, the first file that is missing.
    """
    if name not in SEMLA20:
        raise DatasetError(f"unknown domain '{name}'; the benchmark's 20 are {', '.join(SEMLA20)}")
    domain = SEMLA20[name]
    problems = []
    for layout in domain.layouts:
        try:
            paths = layout.find(root, split)
        except DatasetError as error:  # another layout may have a file of that name
            problems.append(str(error))
            continue
        missing = next(filter(None, map(_missing_file, paths)), "")
        if paths and not missing:
            return DomainImages(domain, paths, layout.encoding)
        if missing:
            problems.append(missing)
    wanted = " or ".join(layout.describe(root, split) for layout in domain.layouts)
    lacking = f" ({'; '.join(problems)})" if problems else ""
    raise DatasetError(
        f"domain '{name}' ({domain.dataset}) wants {wanted}; not found{lacking}. "
        f"The data set is at {domain.url}; '--domains' runs the others"
    )


def _missing_file(paths: SamplePaths) -> str:
    """What of an image and its labels is not there, as a clause of a message; empty where both are."""
    has_image, has_labels = paths.image.is_file(), paths.labels.is_file()
    if has_image and has_labels:
        return ""
    if not has_image and not has_labels:
        return f"neither {paths.image} nor {paths.labels} is there"
    there, missing = (paths.image, paths.labels) if has_image else (paths.labels, paths.image)
    return f"{there} is there, {missing} is not"


def check_domains(names: Iterable[str], root: Path, split: str = "val") -> dict[str, DomainImages]:
    """Open several domains, and report every missing one at once.

    Raises:
        DatasetError: One line per domain that is missing.
    """
    found, problems = {}, []
    for name in names:
        try:
            found[name] = open_domain(name, root, split)
        except DatasetError as error:
            problems.append(str(error))
    if problems:
        raise DatasetError("\n  ".join([f"{len(problems)} domains cannot be read below {root}:", *problems]))
    return found


def _cityscapes_like(
    name: str, dataset: str, url: str, sizes: SizeRule, images: str, labels: str, rename: tuple[str, str]
) -> BenchmarkDomain:
    """A domain whose labels hold Cityscapes' train ids or ids, told apart by the file's ending, `{kind}`."""
    return BenchmarkDomain(
        name=name,
        dataset=dataset,
        url=url,
        vocabulary="cityscapes-19",
        sizes=sizes,
        layouts=tuple(
            Layout(
                images=images,
                labels=labels.replace("{kind}", kind),
                rename=(rename[0], rename[1].replace("{kind}", kind)),
                encoding=encoding,
            )
            for kind, encoding in (("labelTrainIds", "cityscapes train ids"), ("labelIds", "cityscapes ids"))
        ),
    )


def _acdc(condition: str) -> BenchmarkDomain:
    return _cityscapes_like(
        f"acdc-{condition}",
        f"ACDC, {condition}",
        "https://acdc.vision.ee.ethz.ch",
        SizeRule(shortest=1080, longest=1920),
        f"acdc/rgb_anon/{condition}/{{split}}/*/*_rgb_anon.png",
        f"acdc/gt/{condition}/{{split}}/*/*_gt_{{kind}}.png",
        (r"^acdc/rgb_anon/(.*)_rgb_anon\.png$", r"acdc/gt/\1_gt_{kind}.png"),
    )


def _muses(weather: str, time: str) -> BenchmarkDomain:
    return _cityscapes_like(
        f"muses-{weather}-{time}",
        f"MUSES, {weather}, {time}",
        "https://muses.vision.ee.ethz.ch",
        SizeRule(shortest=1080, longest=1920),
        f"muses/frame_camera/{{split}}/{weather}/{time}/*_frame_camera.png",
        f"muses/gt_semantic/{{split}}/{weather}/{time}/*_gt_{{kind}}.png",
        (r"^muses/frame_camera/(.*)_frame_camera\.png$", r"muses/gt_semantic/\1_gt_{kind}.png"),
    )


def _cityscapes() -> BenchmarkDomain:
    return _cityscapes_like(
        "cs-normal",
        "Cityscapes",
        "https://www.cityscapes-dataset.com",
        SizeRule(shortest=512, longest=1024, fixed=(512, 1024)),
        "cityscapes/leftImg8bit/{split}/*/*_leftImg8bit.png",
        "cityscapes/gtFine/{split}/*/*_gtFine_{kind}.png",
        (r"^cityscapes/leftImg8bit/(.*)_leftImg8bit\.png$", r"cityscapes/gtFine/\1_gtFine_{kind}.png"),
    )


def _bdd() -> BenchmarkDomain:
    return BenchmarkDomain(
        name="bdd",
        dataset="BDD100K, 10k subset",
        url="https://bdd-data.berkeley.edu",
        vocabulary="cityscapes-19",
        sizes=SizeRule(shortest=720, longest=1280),
        layouts=(
            Layout(
                images="bdd100k/images/10k/{split}/*.jpg",
                labels="bdd100k/labels/sem_seg/masks/{split}/*.png",
                rename=(r"^bdd100k/images/10k/(.*)\.jpg$", r"bdd100k/labels/sem_seg/masks/\1.png"),
                encoding="cityscapes train ids",
            ),
        ),
    )


def _mapillary() -> BenchmarkDomain:
    return BenchmarkDomain(
        name="mv",
        dataset="Mapillary Vistas 1.2",
        url="https://www.mapillary.com/dataset/vistas",
        vocabulary="mapillary-65",
        sizes=SizeRule(shortest=0, longest=3984),
        layouts=(
            Layout(
                images="mapillary_vistas/{split}/images/*.jpg",
                labels="mapillary_vistas/{split}/labels/*.png",
                rename=(r"/images/([^/]*)\.jpg$", r"/labels/\1.png"),
                encoding="mapillary",
            ),
            Layout(  # as the archive unpacks; the download of 2.0 holds 1.2 in a folder of its own
                images="mapillary_vistas/{split}/images/*.jpg",
                labels="mapillary_vistas/{split}/v1.2/labels/*.png",
                rename=(r"/images/([^/]*)\.jpg$", r"/v1.2/labels/\1.png"),
                encoding="mapillary",
                splits=_VALIDATION,
            ),
            Layout(
                images="mapillary_vistas/{split}/images/*.jpg",
                labels="mapillary_vistas/{split}/labels/*.png",
                rename=(r"/images/([^/]*)\.jpg$", r"/labels/\1.png"),
                encoding="mapillary",
                splits=_VALIDATION,
            ),
        ),
    )


def _ade20k() -> BenchmarkDomain:
    return BenchmarkDomain(
        name="a150",
        dataset="ADE20K, 150 classes",
        url="http://sceneparsing.csail.mit.edu",
        vocabulary="ade20k-150",
        sizes=SizeRule(shortest=0, longest=700),
        layouts=tuple(
            Layout(
                images="ADEChallengeData2016/images/{split}/*.jpg",
                labels=f"ADEChallengeData2016/{folder}/{{split}}/*.png",
                rename=(
                    r"^ADEChallengeData2016/images/(.*)\.jpg$",
                    rf"ADEChallengeData2016/{folder}/\1.png",
                ),
                encoding=encoding,
                splits=_VALIDATION,
            )
            for folder, encoding in (("annotations", "ade20k numbers"), ("annotations_detectron2", "ade20k indices"))
        ),
    )


def _idd() -> BenchmarkDomain:
    return BenchmarkDomain(
        name="idd",
        dataset="India Driving Dataset, level 3",
        url="https://idd.insaan.iiit.ac.in",
        vocabulary="idd-26",
        sizes=SizeRule(),
        layouts=(
            Layout(
                images="IDD_Segmentation/leftImg8bit/{split}/*/*_leftImg8bit.*",
                labels="IDD_Segmentation/gtFine/{split}/*/*_gtFine_labellevel3Ids.png",
                rename=(
                    r"^IDD_Segmentation/leftImg8bit/(.*)_leftImg8bit\.(png|jpg)$",
                    r"IDD_Segmentation/gtFine/\1_gtFine_labellevel3Ids.png",
                ),
                encoding="idd level 3",
            ),
        ),
    )


def _pascal_context() -> BenchmarkDomain:
    return BenchmarkDomain(
        name="pc59",
        dataset="PASCAL-Context, 59 classes",
        url="https://cs.stanford.edu/~roozbeh/pascal-context",
        vocabulary="pascal-context-59",
        sizes=SizeRule(),
        layouts=(
            Layout(
                images="pascal_ctx_d2/images/{split}/*.jpg",
                labels="pascal_ctx_d2/annotations_ctx59/{split}/*.png",
                rename=(r"^pascal_ctx_d2/images/(.*)\.jpg$", r"pascal_ctx_d2/annotations_ctx59/\1.png"),
                encoding="pascal context indices",
                splits=_VALIDATION,
            ),
            Layout(  # as published: VOC 2010 images and one .mat of 459 labels per image
                kind="names",
                index="VOCdevkit/VOC2010/pascalcontext_{split}.txt",
                images="VOCdevkit/VOC2010/JPEGImages/{name}.jpg",
                labels="VOCdevkit/VOC2010/trainval/{name}.mat",
                encoding="pascal context mat",
            ),
        ),
    )


def _nyu() -> BenchmarkDomain:
    return BenchmarkDomain(
        name="nyu",
        dataset="NYU-Depth v2, 40 classes",
        url="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
        vocabulary="nyu-40",
        sizes=SizeRule(shortest=468, longest=625),
        layouts=(
            Layout(
                kind="list",
                index="nyudv2/{split}.txt",
                images="nyudv2",
                labels="'image,labels,depth' lines, labels 0 to 39 and 255",
                encoding="nyu indices",
                splits={"train": "train", "val": "test"},
            ),
            *(
                Layout(  # labels numbered from 1; "labels_40" is what ESANet's export of the .mat file writes
                    images="nyudv2/{split}/rgb/*.*",
                    labels=f"nyudv2/{{split}}/{folder}/*.png",
                    rename=(r"/rgb/([^/]*)\.(png|jpg)$", rf"/{folder}/\1.png"),
                    encoding="nyu numbers",
                    splits={"train": "train", "val": "test"},
                )
                for folder in ("labels_40", "label40")
            ),
        ),
    )


def _coconut() -> BenchmarkDomain:
    return BenchmarkDomain(
        name="coconutL",
        dataset="COCONut-L",
        url="https://github.com/bytedance/coconut_cvpr2024",
        vocabulary="coco-133",
        sizes=SizeRule(),
        layouts=(
            Layout(
                kind="labels",  # a few of COCO's validation images have no COCONut labels
                images="coco/{split}2017/*.jpg",
                labels="coco/panoptic_semseg_{split}2017/*.png",
                rename=(r"^coco/panoptic_semseg_([a-z]+2017)/([^/]*)\.png$", r"coco/\1/\2.jpg"),
                encoding="coco indices",
            ),
            Layout(
                kind="panoptic",
                index="coco/annotations/panoptic_{split}2017.json",
                images="coco/{split}2017",
                labels="coco/panoptic_{split}2017",
                encoding="coco panoptic",
            ),
        ),
    )


SEMLA20: dict[str, BenchmarkDomain] = {
    domain.name: domain
    for domain in (
        *(_acdc(condition) for condition in ("rain", "fog", "snow", "night")),
        *(_muses(weather, time) for weather in ("clear", "rain", "fog", "snow") for time in ("day", "night")),
        _cityscapes(),
        _bdd(),
        _mapillary(),
        _ade20k(),
        _idd(),
        _pascal_context(),
        _nyu(),
        _coconut(),
    )
}


@dataclass(frozen=True, kw_only=True)
class DiskBenchmark:
    """The published 20 domains over ten data sets.

    Attributes:
        root: Folder of all data sets, `$DETECTRON2_DATASETS` of the published code.
        split: "val" or "train".
    """

    name: ClassVar[str] = "semla20"
    domain_names: ClassVar[tuple[str, ...]] = tuple(SEMLA20)
    unseen_names: ClassVar[tuple[str, ...]] = ()
    source_names: ClassVar[tuple[str, ...]] = ()  # the published base model was trained on COCO-Stuff, none of the 20
    chunk_size: ClassVar[int] = 4  # one image's class probabilities can take gigabytes: 65 classes at 12 megapixels

    root: Path
    split: str = "val"

    def family(self, domain: str) -> str:
        """Weather for the driving sets that state it, "street", "indoor" or "photos" for the rest."""
        for word in ("night", "fog", "rain", "snow"):
            if word in domain:
                return word
        return {"nyu": "indoor", "a150": "photos", "pc59": "photos", "coconutL": "photos"}.get(domain, "street")

    def are_relatives(self, domain: str, other: str) -> bool:
        """Whether two domains are of one family."""
        return self.family(domain) == self.family(other)

    def check(self, names: Sequence[str]) -> None:
        """Every domain's folders are looked for at once."""
        check_domains(names, self.root, self.split)

    def open(self, domain: str) -> DomainImages:
        """The images of one domain."""
        return open_domain(domain, self.root, self.split)
