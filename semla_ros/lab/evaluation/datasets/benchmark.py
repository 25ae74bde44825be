"""Benchmark files: domains of images with labels on disk, described in YAML; see docs/evaluation.md."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from semla_ros.config import from_mapping
from semla_ros.errors import ConfigError, DatasetError, SemlaError, counted, known_names
from semla_ros.lab.evaluation.datasets.images import LabelledImages
from semla_ros.lab.evaluation.datasets.labels import Encoding
from semla_ros.lab.evaluation.datasets.layouts import NAME, Layout, SamplePaths, folder_wildcards
from semla_ros.lab.evaluation.datasets.sizes import SizeRule
from semla_ros.lab.evaluation.sources import EvaluationImage
from semla_ros.resources import share_folder

_SHOWN = 3
_AS_STORED = SizeRule(shortest=0)


@dataclass(frozen=True, kw_only=True)
class BenchmarkDomain:
    """One domain of a benchmark file.

    Attributes:
        dataset: Full name of the data set; empty where the file's title says all.
        url: Where the data set can be had.
        role: "domain": it may have an adapter; "source": the base model was trained on it; "unseen": nothing was.
        family: Its weather or light; domains of one family are relatives. Empty = its name.
        words: Word -> value, for `{word}` in the patterns of its layouts.
        sizes: How images are resized.
        val_share: Where train and val are not apart on disk: this share of the images, the last by path, is val.
        layouts: Name -> a way that it may lie on disk, the first that is there counts.
    """

    dataset: str = ""
    url: str = ""
    role: Literal["domain", "source", "unseen"] = "domain"
    family: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    sizes: SizeRule = _AS_STORED
    val_share: float = 0.0
    layouts: Mapping[str, Layout] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class DiskBenchmark:
    """A benchmark file, and where its data sets lie.

    Attributes:
        name: For reports.
        title: The data sets, for people.
        licence: What may be done with images and labels.
        inference: How the published evaluation looks at an image.
        classes: Name -> class list, in the order of the class index.
        encodings: Name -> how labels are written.
        domains: Name -> domain.
        root: Folder that the patterns are below.
        split: "val" or "train".
        left_out: Classes that take no part: their pixels are not scored.
        chunk_size: How many images one job holds at most: one image's class probabilities can take gigabytes.
    """

    name: str = ""
    title: str = ""
    licence: str = ""
    inference: Literal["whole", "sliding"] = "whole"
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    domains: Mapping[str, BenchmarkDomain] = field(default_factory=dict)
    root: Path = Path()
    split: str = "val"
    left_out: tuple[str, ...] = ()
    chunk_size: int = 4

    def __post_init__(self) -> None:
        if not self.domains:
            raise ConfigError("'domains' must name at least one")
        for name, encoding in self.encodings.items():
            if encoding.classes not in self.classes:
                raise ConfigError(
                    f"encoding '{name}': unknown class list '{encoding.classes}'; "
                    f"{known_names(encoding.classes, self.classes)}"
                )
            encoding.table(self.classes[encoding.classes])
        for name, domain in self.domains.items():
            self._check_domain(name, domain)

    def _check_domain(self, name: str, domain: BenchmarkDomain) -> None:
        used = {layout.encoding for layout in domain.layouts.values()}
        if not used:
            raise ConfigError(f"domain '{name}': 'layouts' must name at least one way that it lies on disk")
        if unknown := sorted(used - self.encodings.keys()):
            raise ConfigError(
                f"domain '{name}': unknown encoding '{unknown[0]}'; {known_names(unknown[0], self.encodings)}"
            )
        if len({self.encodings[item].classes for item in used}) > 1:
            raise ConfigError(f"domain '{name}': its layouts must have one class list, got those of {', '.join(used)}")
        if not 0 <= domain.val_share < 1:
            raise ConfigError(f"domain '{name}': 'val_share' must be in [0, 1), got {domain.val_share}")
        known = {"name", "split", *domain.words}
        for layout in domain.layouts.values():
            patterns = (layout.images, layout.labels)
            words = re.findall(r"\{(\w*)\}", " ".join((*patterns, layout.index)))
            if strange := sorted(set(words) - known):
                raise ConfigError(f"domain '{name}': '{{{strange[0]}}}' is none of {', '.join(sorted(known))}")
            if layout.kind in ("files", "names") and not all(item.count(NAME) == 1 for item in patterns):
                raise ConfigError(f"domain '{name}': 'images' and 'labels' must hold {NAME} once, got {patterns}")
            if len({folder_wildcards(item) for item in patterns}) > 1:
                raise ConfigError(
                    f"domain '{name}': each '*' that stands for a folder must be in 'images' and in 'labels', so that "
                    f"images have the labels of their own folder, got {patterns}"
                )
            if layout.kind != "files" and not layout.index:
                raise ConfigError(f"domain '{name}': a layout of kind '{layout.kind}' needs an 'index'")

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Domains that may have an adapter."""
        return self._of_role("domain")

    @property
    def unseen_names(self) -> tuple[str, ...]:
        """Domains that nothing was trained on."""
        return self._of_role("unseen")

    @property
    def source_names(self) -> tuple[str, ...]:
        """What the base model was trained on."""
        return self._of_role("source")

    def _of_role(self, role: str) -> tuple[str, ...]:
        return tuple(name for name, domain in self.domains.items() if domain.role == role)

    def class_names(self, domain: str) -> tuple[str, ...]:
        """Vocabulary of a domain, in the order of the class index, without what is left out."""
        layout = next(iter(self.domains[domain].layouts.values()))
        listed = self.classes[self.encodings[layout.encoding].classes]
        return tuple(name for name in listed if name not in self.left_out)

    def without(self, names: Iterable[str]) -> DiskBenchmark:
        """The same with these classes left out."""
        return replace(self, left_out=tuple(dict.fromkeys((*self.left_out, *names))))

    def family(self, domain: str) -> str:
        """Weather or light of a domain; the name itself of one that the file does not know."""
        known = self.domains.get(domain)
        return (known.family if known else "") or domain

    def are_relatives(self, domain: str, other: str) -> bool:
        """Whether two domains are of one family."""
        return self.family(domain) == self.family(other)

    def with_classes(self, names: Sequence[str]) -> DiskBenchmark:
        """The same with these classes alone.

        Raises:
            ConfigError: One is in no class list.
        """
        listed = list(dict.fromkeys(name for classes in self.classes.values() for name in classes))
        if unknown := [name for name in names if name not in listed]:
            raise ConfigError(
                f"benchmark '{self.name}': unknown class '{unknown[0]}'; {known_names(unknown[0], listed)}"
            )
        return self.without([name for name in listed if name not in names])

    def check(self, names: Sequence[str]) -> None:
        """Look for several domains, and report every missing one at once.

        Raises:
            DatasetError: One line per domain that is missing or does not fit.
        """
        problems = []
        for name in names:
            try:
                self.open(name)
            except DatasetError as error:
                problems.append(str(error))
        if problems:
            raise DatasetError(
                "\n  ".join([f"{counted(len(problems), 'domain')} cannot be read below {self.root}:", *problems])
            )

    def open(self, domain: str) -> DomainImages:
        """The images of one domain.

        Raises:
            DatasetError: The name is unknown, none of its classes takes part, or the folder holds none of the layouts
                whole; the message says which it wants and, where one is there in part, the first files that do not fit.
        """
        return _opened(self, domain)

    def find(self, domain: str) -> tuple[DomainImages, list[str]]:
        """The images of the first layout that is whole, else of that with the most, and what is wrong, a clause each.

        Raises:
            DatasetError: The name is unknown, or none of its classes takes part.
        """
        if domain not in self.domains:
            raise DatasetError(
                f"unknown domain '{domain}' of benchmark '{self.name}'; {known_names(domain, self.domains)}"
            )
        if not self.class_names(domain):
            raise DatasetError(f"domain '{domain}': none of its classes is left; without {', '.join(self.left_out)}")
        one = self.domains[domain]
        most: list[SamplePaths] = []
        encoding, problems = next(iter(one.layouts.values())).encoding, list[str]()
        for layout in one.layouts.values():
            try:
                samples, wrong = layout.find(self.root, self.split, one.words)
            except DatasetError as error:  # another layout may have a file of that name
                problems.append(str(error))
                continue
            if samples and not wrong:
                most, encoding, problems = samples, layout.encoding, []
                break
            problems += wrong
            if len(samples) > len(most):
                most, encoding = samples, layout.encoding
        return DomainImages(self, domain, _part(most, self.split, one.val_share), encoding), problems

    def has_split(self, domain: str) -> bool:
        """Whether any layout of a domain has the split."""
        return any(self.split in layout.splits for layout in self.domains[domain].layouts.values())

    def describe(self, domain: str) -> str:
        """What a domain wants to be there, as one clause of a message."""
        one = self.domains[domain]
        there = [layout for layout in one.layouts.values() if self.split in layout.splits]
        wanted = " or ".join(layout.describe(self.root, self.split, one.words) for layout in there)
        return wanted or f"a split '{self.split}'"


@functools.cache  # a job is a few images, a data set's folder or annotation file has thousands
def _opened(benchmark: DiskBenchmark, name: str) -> DomainImages:
    images, problems = benchmark.find(name)
    if len(images) and not problems:
        return images
    domain = benchmark.domains[name]
    shown = problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])
    lacking = f" ({'; '.join(shown)})" if shown else ""
    hint = f"The data set is at {domain.url}; " if domain.url else ""
    raise DatasetError(
        f"domain '{name}' ({domain.dataset or benchmark.title}) wants {benchmark.describe(name)}; not found{lacking}. "
        f"{hint}'--domains' runs the others"
    )


def _part(samples: list[SamplePaths], split: str, val_share: float) -> list[SamplePaths]:
    if not val_share or not samples:
        return samples
    first_val = len(samples) - max(1, round(val_share * len(samples)))
    return samples[first_val:] if split == "val" else samples[:first_val]


class DomainImages(LabelledImages):
    """The images of one domain on disk, as the protocol shows and scores them."""

    def __init__(self, benchmark: DiskBenchmark, name: str, paths: list[SamplePaths], encoding: str) -> None:
        how = benchmark.encodings[encoding]
        super().__init__(paths, benchmark.classes[how.classes], how, benchmark.left_out)
        self._name, self._rule = name, benchmark.domains[name].sizes

    def read(self, seed: int, index: int) -> EvaluationImage:
        """Read and resize one image and decode its labels.

        Raises:
            DatasetError: A file is missing or unreadable, image and labels differ in size, or a label is unknown.
        """
        del seed  # an index is the same image for every seed
        try:
            image, labels = self.image(index), self.mask(index)
        except DatasetError as error:
            raise DatasetError(f"domain '{self._name}': {error}") from None
        return EvaluationImage(
            name=self.paths[index].image.stem,
            scene=image,
            image=self._rule.apply(image),
            labels=labels,
            answer_size=self._rule.fixed or (int(labels.shape[0]), int(labels.shape[1])),
        )

    def indices(self, seed: int, count: int) -> list[int]:
        """Indices of `count` images drawn by `seed`, ascending; all where there are no more, or where count is 0."""
        if count <= 0 or count >= len(self.paths):
            return list(range(len(self.paths)))
        return sorted(int(item) for item in np.random.default_rng(seed).choice(len(self.paths), count, replace=False))


def load_benchmark(name: str, root: Path, split: str = "val") -> DiskBenchmark:
    """Read a benchmark file.

    Args:
        name: One that ships ("semla20", "camvid", "idd_lite"), or the path of a file.
        root: Folder that its patterns are below.
        split: "val" or "train".

    Raises:
        ConfigError: There is no such file, or it says something that cannot be; the message names it.
    """
    folder = share_folder() / "config" / "benchmarks"
    path = Path(name).expanduser()
    if not path.is_file():
        path = folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ("world", *sorted(item.stem for item in folder.glob("*.yaml")))
        raise ConfigError(
            f"there is no benchmark '{name}'; {known_names(name, known)}, or the path of a file"
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"benchmark {path}: cannot be read: {error}") from None
    if isinstance(content, Mapping):
        content = {key: value for key, value in content.items() if not str(key).startswith(".")}  # what anchors are for
    try:
        if stray := [key for key in ("root", "split", "left_out") if key in (content or ())]:
            raise ConfigError(f"unknown setting '{stray[0]}': it is said when the file is used")
        benchmark = from_mapping(DiskBenchmark, content)
    except SemlaError as error:
        raise ConfigError(f"benchmark {path}: {error}") from None
    return replace(benchmark, name=benchmark.name or path.stem, root=root, split=split)
