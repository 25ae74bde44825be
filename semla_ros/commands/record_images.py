"""Write a bag of image files, to be replayed or played to a node: folder after folder, or domains of a benchmark.

    semla record-images day/ dusk/ --rate 5 --stamps names --out bag
    semla record-images drive/ --labels masks/ --classes names.txt --out bag
    semla record-images --benchmark camvid --data DIR --domains dusk --out bag

Images are upright by their EXIF data and have 8 bits, as `semla segment` reads them. Labels become the ground truth
that `semla replay` scores against. Each folder or domain is a named stretch; the source domain is named by its family.
An image that cannot be used is named and left out (exit status 1).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semla_ros.commands.options import Listed, output_folder
from semla_ros.errors import ConfigError, SemlaError, counted
from semla_ros.lab.bags.image_bag import ImageBagOptions, Stretch, natural, record_images
from semla_ros.lab.bags.label_map import read_class_list, read_label_map, trained_names
from semla_ros.lab.report.progress import progress
from semla_ros.results import MaskArray

if TYPE_CHECKING:
    from semla_ros.lab.evaluation.datasets.images import LabelledImages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla record-images`."""
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="images, searched recursively")
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="BAG", help="folder of the bag; must not exist"
    )
    parser.add_argument(
        "--labels", nargs="+", type=Path, default=[], metavar="DIR", help="label images of each FOLDER, in their order"
    )
    parser.add_argument("--classes", type=Path, metavar="FILE", help="of the labels: one class name a line")
    parser.add_argument(
        "--label-map", type=Path, metavar="FILE", help="YAML or JSON: pixel value -> class name, or 'void'"
    )
    parser.add_argument("--benchmark", default="", metavar="NAME|FILE", help="instead of folders: a benchmark file")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder that its images are below")
    parser.add_argument("--domains", action=Listed, default=[], metavar="NAME", help="of the benchmark, in this order")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="of the benchmark (%(default)s)")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="the first N of each stretch; default: all")
    parser.add_argument(
        "--stamps",
        choices=("rate", "names", "exif"),
        default="rate",
        help="from --rate, or the time in the files' names or EXIF data (%(default)s)",
    )
    parser.add_argument("--rate", type=float, default=2.0, metavar="HZ", help="images per second (%(default)s)")
    parser.add_argument("--camera", default="camera", metavar="NAME", help="its topics are below it (%(default)s)")
    parser.add_argument("--transport", choices=("png", "jpeg", "raw"), default="png", help="messages (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Write the bag; 0, or 1 where an image was left out."""
    if arguments.images < 0:
        raise ConfigError(f"--images must be at least 0, got {arguments.images}")
    if bool(arguments.folders) == bool(arguments.benchmark):
        raise ConfigError("give the folders of the images, or --benchmark with --data and --domains")
    class_names, stretches = _of_benchmark(arguments) if arguments.benchmark else _of_folders(arguments)
    options = ImageBagOptions(
        stamps=arguments.stamps,
        rate_hz=arguments.rate,
        camera=arguments.camera,
        transport=arguments.transport,
        class_names=class_names,
    )
    count, left_out = sum(len(stretch.files) for stretch in stretches), 0

    def tell(error: SemlaError) -> None:
        nonlocal left_out
        left_out += 1
        print(f"semla record-images: left out: {error}", file=sys.stderr)

    with progress() as bars:
        task = bars.add_task("recording", total=count)
        length_s = record_images(
            arguments.out, stretches, options, progress=lambda: bars.advance(task), on_problem=tell
        )
    truth = "with ground truth" if class_names else "without ground truth"
    print(
        f"wrote {arguments.out}: {counted(count - left_out, 'image')} over {length_s:.1f} s, {truth}\n"
        f"replay it: semla replay {arguments.out}"
    )
    return 1 if left_out else 0


def _of_benchmark(arguments: argparse.Namespace) -> tuple[tuple[str, ...], list[Stretch]]:
    from semla_ros.lab.evaluation.datasets.benchmark import load_benchmark

    if arguments.data is None or not arguments.domains:
        raise ConfigError("--benchmark needs --data and --domains")
    if arguments.labels or arguments.classes or arguments.label_map:
        raise ConfigError(
            "--labels, --classes and --label-map go with folders; the benchmark file says what labels mean"
        )
    benchmark = load_benchmark(arguments.benchmark, arguments.data.expanduser(), arguments.split)
    benchmark.check(arguments.domains)
    lists = list(dict.fromkeys(benchmark.class_names(name) for name in arguments.domains))
    if len(lists) > 1:
        raise ConfigError(f"--domains {' '.join(arguments.domains)}: a bag has one class list, these have {len(lists)}")
    stretches = []
    for name in arguments.domains:
        source, is_source = benchmark.open(name), benchmark.domains[name].role == "source"
        stretches.append(_stretch(benchmark.family(name) if is_source else name, None, source, arguments.images))
    return lists[0], stretches


def _of_folders(arguments: argparse.Namespace) -> tuple[tuple[str, ...], list[Stretch]]:
    from semla_ros.lab.training.samples import FolderSamples, image_files

    if arguments.labels and len(arguments.labels) != len(arguments.folders):
        folders = counted(len(arguments.labels), "folder")
        raise ConfigError(f"--labels names {folders} for {len(arguments.folders)} of images")
    if bool(arguments.labels) != bool(arguments.classes or arguments.label_map):
        raise ConfigError("--labels needs --classes or --label-map, and these need --labels")
    label_map = read_label_map(arguments.label_map) if arguments.label_map else {}
    class_names = read_class_list(arguments.classes) if arguments.classes else trained_names(label_map)
    stretches = []
    for number, folder in enumerate(arguments.folders):
        samples = None
        if arguments.labels:
            labels = arguments.labels[number]
            samples = FolderSamples(folder, labels, class_names, label_map, are_all_labelled=False)
        name = folder.resolve().name if len(arguments.folders) > 1 else ""
        stretches.append(_stretch(name, image_files(folder, "images"), samples, arguments.images))
    return tuple(class_names), stretches


def _stretch(name: str, files: Sequence[Path] | None, labelled: LabelledImages | None, most: int) -> Stretch:
    """The first images of a stretch; `files` None = those that are labelled."""
    places = {paths.image: index for index, paths in enumerate(labelled.paths)} if labelled else {}

    def mask(file: Path) -> MaskArray | None:
        return labelled.mask(places[file]) if labelled and file in places else None

    return Stretch(name=name, files=sorted(files or places, key=natural)[: most or None], mask=mask)
