"""Where training images and masks come from: rendered scenes (cached on disk), or folders of files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

import semla_ros.lab.world
from semla_ros.errors import DatasetError, ImageError
from semla_ros.image_files import read_image
from semla_ros.lab.bags.label_map import known_names
from semla_ros.lab.evaluation.datasets.images import LabelledImages
from semla_ros.lab.evaluation.datasets.labels import Encoding
from semla_ros.lab.evaluation.datasets.layouts import pair_folders
from semla_ros.lab.processes import worker_pool
from semla_ros.lab.world.caption import caption
from semla_ros.lab.world.domains import Domain, Split, split_seed
from semla_ros.results import ImageArray, MaskArray

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


class SampleSource(Protocol):
    """Images with their masks, by index."""

    def __len__(self) -> int:
        """Number of samples."""

    def image(self, index: int) -> ImageArray:
        """RGB image, shape (H, W, 3), uint8."""

    def mask(self, index: int) -> MaskArray:
        """Class index per pixel, shape (H, W), uint8; 255 is ignored."""


@dataclass(frozen=True, kw_only=True)
class RenderRequest:
    """A set of scenes to render: fully determined by these values and the renderer's code."""

    domain: Domain
    split: Split
    count: int
    width: int
    height: int
    first: int = 0


def _render_one(request: RenderRequest, index: int) -> tuple[ImageArray, MaskArray, str]:
    cv2.setNumThreads(1)
    seed = split_seed(request.split, request.first + index)
    member = request.domain.scene(seed)
    scene = member.render(request.width, request.height)
    text = caption(member.city, member.conditions, scene.mask, np.random.default_rng((seed, 7)))
    return scene.image, scene.mask, text


def _renderer_digest() -> str:
    folder = Path(semla_ros.lab.world.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.py"), *folder.glob("*.yaml")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class RenderedSamples:
    """Scenes of one domain, rendered once by all cores and kept as memory-mapped arrays.

    Args:
        request: What to render.
        cache: Folder of the arrays; a change of the renderer makes a new entry.
        workers: Rendering processes; 0 = one per core.
        on_progress: Called with the number of scenes just finished.
    """

    def __init__(
        self,
        request: RenderRequest,
        cache: Path,
        *,
        workers: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.request = request
        name = f"{request.domain.name}-{request.split}-{request.first}+{request.count}-{request.width}x{request.height}"
        self._folder = cache / f"{name}-{_renderer_digest()}"
        if not (self._folder / "captions.json").is_file():
            self._render(workers or os.cpu_count() or 1, on_progress)
        elif on_progress:
            on_progress(request.count)
        self._images = np.load(self._folder / "images.npy", mmap_mode="r")
        self._masks = np.load(self._folder / "masks.npy", mmap_mode="r")
        self.captions: list[str] = json.loads((self._folder / "captions.json").read_text(encoding="utf-8"))

    def _render(self, workers: int, on_progress: Callable[[int], None] | None) -> None:
        request = self.request
        self._folder.mkdir(parents=True, exist_ok=True)
        shape = (request.count, request.height, request.width)
        images = np.lib.format.open_memmap(self._folder / "images.npy", mode="w+", dtype=np.uint8, shape=(*shape, 3))
        masks = np.lib.format.open_memmap(self._folder / "masks.npy", mode="w+", dtype=np.uint8, shape=shape)
        captions: list[str] = []
        with worker_pool(workers) as pool:
            results = pool.map(_render_one, [request] * request.count, range(request.count), chunksize=8)
            for index, (image, mask, text) in enumerate(results):
                images[index], masks[index] = image, mask
                captions.append(text)
                if on_progress:
                    on_progress(1)
        images.flush()
        masks.flush()
        # Written last: its presence says that the arrays are whole.
        (self._folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> ImageArray:
        """RGB image, shape (H, W, 3), uint8."""
        return np.asarray(self._images[index])

    def mask(self, index: int) -> MaskArray:
        """Class index per pixel, shape (H, W), uint8."""
        return np.asarray(self._masks[index])


class FolderSamples(LabelledImages):
    """Images and label files of two folders, see `layouts.pair_folders` for which belong together.

    Args:
        images: Folder of images, searched recursively.
        labels: Folder of label images (of a palette image its indices).
        class_names: The vocabulary; a label holds indices of it, or 255 for what is not trained.
        label_map: Value -> class name instead; names that are not in the vocabulary are not trained.
        are_all_labelled: False: images without labels are passed over.

    Raises:
        DatasetError: A folder is missing or empty, or an image has no label or several.
        ConfigError: No name of the label map is in the vocabulary.
    """

    def __init__(
        self,
        images: Path,
        labels: Path,
        class_names: Sequence[str],
        label_map: Mapping[int, str] | None = None,
        *,
        are_all_labelled: bool = True,
    ) -> None:
        files, label_files = image_files(images, "images"), image_files(labels, "labels")
        pairs = pair_folders(files, images, label_files, labels, are_all_labelled=are_all_labelled)
        super().__init__(pairs, class_names, _encoding(class_names, label_map or {}))


def _encoding(class_names: Sequence[str], label_map: Mapping[int, str]) -> Encoding:
    if not label_map:
        return Encoding(
            what=f"values 0 to {len(class_names) - 1} of the class list, nor 255 (void); "
            "--label-map says what others mean"
        )
    known = known_names(label_map, class_names)
    return Encoding(
        what="values of the label map; name it there, as 'void' where it is not to be trained",
        values=known,
        unlabelled=", ".join(map(str, sorted({*label_map, 255} - known.keys()))),
    )


def image_files(folder: Path, what: str) -> list[Path]:
    """Image files below a folder, sorted by path; `what` they are is for messages.

    Raises:
        DatasetError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"{what} folder {folder} does not exist")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not files:
        raise DatasetError(f"{what} folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return files


def training_image(path: Path) -> ImageArray:
    """An image file as RGB, shape (H, W, 3), uint8.

    Raises:
        DatasetError: It cannot be decoded.
    """
    try:
        return read_image(path)
    except ImageError as error:
        raise DatasetError(f"image {error}") from None


def data_digest(source: SampleSource) -> str:
    """SHA-256 over all images and masks of a source, in order."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        for pixels in (source.image(index), source.mask(index)):
            digest.update(repr(pixels.shape).encode())
            digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


class ConcatenatedSamples:
    """Several sources as one."""

    def __init__(self, sources: Sequence[SampleSource]) -> None:
        self._index = [(source, item) for source in sources for item in range(len(source))]

    def __len__(self) -> int:
        return len(self._index)

    def image(self, index: int) -> ImageArray:
        """RGB image, shape (H, W, 3), uint8."""
        source, item = self._index[index]
        return source.image(item)

    def mask(self, index: int) -> MaskArray:
        """Class index per pixel, shape (H, W), uint8."""
        source, item = self._index[index]
        return source.mask(item)
