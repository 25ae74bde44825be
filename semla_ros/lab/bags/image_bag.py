"""A recording made of image files: stamps from a rate, from the files' names or from EXIF, labels as ground truth."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal

from semla_ros.errors import BagError, ConfigError, SemlaError
from semla_ros.image_files import read_exif, read_image
from semla_ros.lab.bags.writer import NANOSECONDS, SEGMENT_TOPIC, START_NS, BagWriter
from semla_ros.labels import labels_json
from semla_ros.results import MaskArray

_DATE_TIME, _ORIGINAL, _FRACTION = 306, 36867, 37521  # tags of EXIF
_UNITS = {10: NANOSECONDS, 13: 1_000_000, 16: 1000, 19: 1}  # digits of a time since 1970 -> its unit in ns
_NUMBER = re.compile(r"(?<![\d.])(\d{10}|\d{13}|\d{16}|\d{19})(?:\.(\d{1,9}))?(?!\d)")
_DATE = re.compile(
    r"(?<!\d)((?:19|20)\d\d)[-_]?(\d\d)[-_]?(\d\d)[T _-]?(\d\d)[-_:]?(\d\d)[-_:]?(\d\d)(?:[._-]?(\d{1,9}))?(?!\d)"
)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Images that belong together.

    Attributes:
        name: Of the stretch; empty = it has none.
        files: The images.
        mask: Reads the labels of an image: class index per pixel, (H, W), uint8; None where it has none.
    """

    name: str
    files: Sequence[Path]
    mask: Callable[[Path], MaskArray | None] = lambda _: None


@dataclass(frozen=True, kw_only=True)
class ImageBagOptions:
    """How images are recorded.

    Attributes:
        stamps: Where they come from.
        rate_hz: Images per second, for stamps from a rate.
        camera: Its images are on `/<camera>/image`, its labels on `/<camera>/label`.
        transport: "png" (lossless), "jpeg", or "raw" (rgb8).
        class_names: Of the labels; empty = none are recorded.
    """

    stamps: Literal["rate", "names", "exif"] = "rate"
    rate_hz: float = 2.0
    camera: str = "camera"
    transport: Literal["png", "jpeg", "raw"] = "png"
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz <= 1000:
            raise ConfigError(f"--rate must be above 0 and at most 1000 Hz, got {self.rate_hz:g}")
        if not self.camera.replace("_", "").isalnum():
            raise ConfigError(f"--camera: '{self.camera}' cannot be part of a topic name; use letters, digits and _")


def record_images(
    path: Path,
    stretches: Sequence[Stretch],
    options: ImageBagOptions,
    *,
    progress: Callable[[], object] = lambda: None,
    on_problem: Callable[[SemlaError], object] = lambda _error: None,
) -> float:
    """Write a bag of images in the order of their stamps; with a rate, stretch after stretch in natural order.

    Args:
        path: Folder to make.
        stretches: The images.
        options: How.
        progress: Called for each image.
        on_problem: Told of each image that is left out: it or its labels cannot be read, or its stamp cannot be told.

    Returns:
        Seconds from the first image to the last.

    Raises:
        BagError: The folder exists or cannot be written, or no image is left.
        ConfigError: Two images have the same stamp, or the stamp of none can be told.
    """
    frames = _stamped(stretches, options, on_problem)
    writer = BagWriter(path)
    try:
        with writer as bag:
            stamps = _write(bag, frames, options, progress, on_problem)
            if not stamps:
                raise BagError(f"bag {path} is not written: none of its images can be used")
    except SemlaError:
        shutil.rmtree(path)  # an interrupt leaves a bag of what was written, an error nothing
        raise
    return (stamps[-1] - stamps[0]) / NANOSECONDS


def _write(
    bag: BagWriter,
    frames: Sequence[tuple[int, Stretch, Path]],
    options: ImageBagOptions,
    progress: Callable[[], object],
    on_problem: Callable[[SemlaError], object],
) -> list[int]:
    """Write what can be read; the stamps of it."""
    topic, frame_id = f"/{options.camera}/image", f"{options.camera}_camera_optical_frame"
    name, stamps = "", list[int]()
    for stamp_ns, stretch, file in frames:
        progress()
        try:
            image, mask = read_image(file), stretch.mask(file)
        except SemlaError as error:
            on_problem(error)
            continue
        if options.class_names and not stamps:
            bag.string("/labels", labels_json(options.class_names, 1), stamp_ns)
        if stretch.name != name:
            bag.string(SEGMENT_TOPIC, stretch.name, stamp_ns)
            name = stretch.name
        stamps.append(stamp_ns)
        if options.transport == "raw":
            bag.image(topic, image, stamp_ns, frame_id)
        else:
            bag.compressed_image(f"{topic}/compressed", image, stamp_ns, frame_id, format=options.transport)
        if mask is not None:
            bag.image(f"/{options.camera}/label", mask, stamp_ns, frame_id)
    return stamps


def _stamped(
    stretches: Sequence[Stretch], options: ImageBagOptions, on_problem: Callable[[SemlaError], object]
) -> list[tuple[int, Stretch, Path]]:
    frames = [(stretch, file) for stretch in stretches for file in sorted(stretch.files, key=natural)]
    if options.stamps == "rate":
        step_ns = NANOSECONDS / options.rate_hz
        return [(START_NS + round(index * step_ns), stretch, file) for index, (stretch, file) in enumerate(frames)]
    stamp_of = name_stamp_ns if options.stamps == "names" else exif_stamp_ns
    stamped, problems = [], []
    for stretch, file in frames:
        try:
            stamped.append((stamp_of(file), stretch, file))
        except SemlaError as error:
            problems.append(error)
    if problems and not stamped:
        raise problems[0]  # not the files are wrong, but the choice
    for problem in problems:
        on_problem(problem)
    stamped.sort(key=lambda frame: frame[0])  # equal ones stay in natural order
    if options.stamps == "exif":
        stamped = _spread_seconds(stamped)
    for (stamp_ns, _, file), (next_ns, _, other) in pairwise(stamped):
        if stamp_ns == next_ns:
            raise ConfigError(f"{file} and {other} have the same stamp; record one camera a bag")
    return stamped


def _spread_seconds(frames: Sequence[tuple[int, Stretch, Path]]) -> list[tuple[int, Stretch, Path]]:
    """Images of the same second, which is all that many cameras write, evenly over that second."""
    spread = []
    for stamp_ns, group in groupby(frames, key=lambda frame: frame[0]):
        same = list(group)
        spread += [(stamp_ns + at * NANOSECONDS // len(same), *frame[1:]) for at, frame in enumerate(same)]
    return spread


def natural(path: Path) -> list[tuple[int, str]]:
    """Sorting key by which frame 10 comes after frame 9."""
    parts = re.findall(r"\d+|\D+", path.as_posix())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def name_stamp_ns(path: Path) -> int:
    """The time that a file is named by, in ns since 1970: a number of s, ms, µs or ns, or a date in UTC.

    Raises:
        ConfigError: It is none.
    """
    if found := list(_NUMBER.finditer(path.stem)):
        whole, fraction = found[-1].groups()
        unit = _UNITS[len(whole)]
        return int(whole) * unit + (int(fraction.ljust(9, "0")) * unit // NANOSECONDS if fraction else 0)
    if date := _DATE.search(path.stem):
        *parts, fraction = date.groups()
        return _date_ns(path, [int(part) for part in parts], fraction or "")
    raise ConfigError(
        f"image {path}: its name holds no time; expected seconds since 1970 (10 digits), ms (13), µs (16) or ns (19), "
        "or a date such as 20260131_154500; give them a --rate"
    )


def exif_stamp_ns(path: Path) -> int:
    """When a camera says it took a picture, in ns since 1970, its clock taken for UTC.

    Raises:
        ConfigError: It does not say.
        ImageError: It is no image.
    """
    tags = read_exif(path)
    text = str(tags.get(_ORIGINAL) or tags.get(_DATE_TIME) or "").strip("\0 ")
    numbers = re.fullmatch(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)", text)
    if not numbers:
        raise ConfigError(f"image {path}: its EXIF data say no time ('{text}'); use --stamps names or --rate")
    fraction = re.match(r"\d*", str(tags.get(_FRACTION) or ""))
    return _date_ns(path, [int(item) for item in numbers.groups()], fraction[0] if fraction else "")


def _date_ns(path: Path, parts: Sequence[int], fraction: str) -> int:
    try:
        seconds = datetime(*parts, tzinfo=timezone.utc).timestamp()  # type: ignore[misc, arg-type]
    except ValueError as error:
        raise ConfigError(f"image {path}: {'-'.join(map(str, parts))} is no date: {error}") from None
    return round(seconds) * NANOSECONDS + int(fraction[:9].ljust(9, "0"))
