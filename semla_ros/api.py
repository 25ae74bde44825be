"""The package in a few lines: images in, masks out, with the adapters that fit the scene and why they were taken.

    from semla_ros import Pipeline

    pipeline = Pipeline("semla-tiny")
    result = pipeline("photo.jpg")
    print(result)
    result.save("out")

A thin layer over `pipeline.PerceptionPipeline`, which the node runs.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageOps

from semla_ros.config import MAX_IMAGE_PIXELS, InferenceConfig, SemlaConfig
from semla_ros.errors import ConfigError, ImageError, SemlaError
from semla_ros.image_files import check_pixels, read_image, rgb_of
from semla_ros.labels import colour_of, overlay, palette_of
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.importing import add_adapter
from semla_ros.library.manifest import NOT_FOR_CAMERAS, RENDERED
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.resources import shipped_library
from semla_ros.results import BASE_MODEL, AdapterMix, Frame, ImageArray, MaskArray

logger = logging.getLogger(__name__)

ImageLike = str | Path | Image.Image | NDArray[Any]
WIDEST_SHOWN = 960  # pixels of the picture in a notebook


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result:
    """What a pipeline answers to one image. A notebook shows it as a picture with the mix below.

    Attributes:
        image: As it was segmented: RGB, shape (H, W, 3), uint8.
        mask: Class index per pixel, shape (H, W), uint8 (uint16 above 254 classes); 255 (65535) = no class.
        confidence: Probability of the chosen class, shape (H, W), float32, 0..1.
        classes: Names, index in the mask -> name.
        mix: The adapters that the model was fused from, with weights and distances.
        distances: Distance of the scene to every adapter of the library, nearest first; empty where the mix was not
            chosen for a scene.
        latency_ms: Milliseconds by stage.
        name: What its files are called after: that of the image file without suffix, or "image".
    """

    image: ImageArray
    mask: MaskArray
    confidence: NDArray[np.float32]
    classes: tuple[str, ...]
    mix: AdapterMix
    distances: Mapping[str, float]
    latency_ms: Mapping[str, float]
    name: str = "image"

    @property
    def is_out_of_library(self) -> bool:
        """Whether the scene is strange to every adapter, so that the base model should answer."""
        return self.mix.is_out_of_library

    @property
    def shares(self) -> dict[str, float]:
        """Share of the image's pixels by class, largest first, without those that do not occur."""
        indices, counts = np.unique(self.mask[self.mask < len(self.classes)], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {self.classes[indices[item]]: float(counts[item] / self.mask.size) for item in order}

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image with the class colours laid over it; `alpha` is their opacity, 0..1."""
        return Image.fromarray(overlay(self.image, self._mask_of_image, palette_of(self.classes), alpha))

    @property
    def _mask_of_image(self) -> MaskArray:
        if self.mask.shape == self.image.shape[:2]:
            return self.mask
        size = self.image.shape[1], self.image.shape[0]
        return np.asarray(Image.fromarray(self.mask).resize(size, Image.Resampling.NEAREST))

    def save(self, folder: str | Path, name: str = "") -> dict[str, Path]:
        """Write `<name>_mask.png` (class index per pixel) and `<name>_overlay.png`; earlier ones are replaced.

        Args:
            folder: Made where it is missing.
            name: Instead of the result's own.

        Returns:
            "mask" and "overlay" -> the file.

        Raises:
            OSError: They cannot be written.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        files = output_files(Path(folder), name or self.name)
        Image.fromarray(self.mask).save(files["mask"])
        self.overlay().save(files["overlay"])
        return files

    def as_json(self) -> dict[str, Any]:
        """As plain values, without the pixels."""
        return {
            "mix": self.mix.as_dict(),
            "base_weight": self.mix.base_weight,
            "distances": {name: round(distance, 6) for name, distance in self.distances.items()},
            "out_of_library": self.is_out_of_library,
            "share_of_pixels": {name: round(share, 4) for name, share in self.shares.items()},
            "latency_ms": {stage: round(value, 3) for stage, value in self.latency_ms.items()},
        }

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items() if share >= 0.005)
        return f"{self.name}: {shares}\n{self._mix_in_words}"

    @property
    def _mix_in_words(self) -> str:
        return f"mix: {self.mix}{'; the scene lies outside the library' if self.is_out_of_library else ''}"

    def _repr_html_(self) -> str:
        picture = self.overlay()
        picture.thumbnail((WIDEST_SHOWN, WIDEST_SHOWN))
        legend = Markup(" ").join(
            Markup('<span style="white-space:nowrap"><span style="color:rgb{}">&#9632;</span> {} {:.0%}</span>').format(
                colour_of(name), name, share
            )
            for name, share in self.shares.items()
            if share >= 0.005
        )
        return Markup(
            '<figure style="margin:0"><img src="{}" alt="{} with the colours of its classes" style="max-width:100%">'
            "<figcaption>{}<br>{}</figcaption></figure>"
        ).format(_png_uri(picture), self.name, legend, self._mix_in_words)


class Pipeline:
    """A model that follows the scene: for each image the adapters that fit it are fused into its weights.

    Args:
        model: Id or path.
        library: Folder of adapters, or a `Library`; empty = the model's own.
        classes: What to look for; empty = the model's own list.
        model_dir: Where model files are looked for first.
        inference: "whole" images, or "sliding" over windows, which is slower and finer.
        device: "auto", "cpu", "cuda", "cuda:1".
        threads: Of the CPU; 0 = all cores but one.

    Raises:
        SemlaError: A file is missing, damaged or does not fit the others, or a class cannot be used.
    """

    def __init__(
        self,
        model: str = SemlaConfig.model,
        *,
        library: str | Path | Library = "",
        classes: Sequence[str] = (),
        model_dir: str = "",
        inference: Literal["whole", "sliding"] = "whole",
        device: str = "auto",
        threads: int = 0,
    ) -> None:
        folder = library.folder if isinstance(library, Library) else library
        self._inner = PerceptionPipeline.load(
            SemlaConfig(
                model=model,
                model_dir=model_dir,
                library=str(folder) if folder != "" else "",
                classes=_listed(classes),
                inference=InferenceConfig(inference=inference, device=device, threads=threads),
            )
        )
        if self._inner.status().domain == RENDERED:
            logger.warning("model and library are %s", NOT_FOR_CAMERAS)

    def __call__(self, image: ImageLike, *, adapt: bool = True, stamp_s: float | None = None) -> Result:
        """Segment one image.

        Args:
            image: A file, a Pillow image, or an array: RGB (H, W, 3) or grey (H, W), of any type that image files hold.
            adapt: Choose the adapters for it; else those in use stay.
            stamp_s: When it was taken, for the images of a drive: adapters change where the scene does. Without one
                each image is a scene of its own.

        Raises:
            SemlaError: The image cannot be read or segmented.
        """
        frame = Frame(image=_pixels(image), stamp_ns=round((stamp_s or 0.0) * 1e9))
        latency_ms = self._look_at(frame, is_new=stamp_s is None) if adapt else {}
        answer = self._inner.segment(frame)
        assert answer.confidence is not None  # asked for
        return Result(
            image=frame.image,
            mask=answer.mask,
            confidence=np.divide(answer.confidence, 255, dtype=np.float32),
            classes=answer.generation.class_names,
            mix=answer.generation.mix,
            distances=self._inner.scene_distances(),
            latency_ms={**latency_ms, **answer.latency_ms},
            name=Path(image).stem if isinstance(image, str | Path) else "image",
        )

    def adapt(self, to: ImageLike | Mapping[str, float] | None) -> AdapterMix:
        """Put adapters into use for images that are then segmented with `adapt=False`.

        Args:
            to: The image of a scene; or adapters with a weight each, of which what is missing from 1 goes to the base
                model; or None for the base model alone.

        Returns:
            The mix in use.

        Raises:
            SemlaError: The image cannot be used, an adapter is not there, or the weights are no shares.
        """
        if to is None:
            return self._inner.reset_adaptation().mix
        if isinstance(to, Mapping):
            return self._inner.apply_mix(_mix_of(to), "parameters").mix
        self._look_at(Frame(image=_pixels(to), stamp_ns=0), is_new=True)
        return self.mix

    @property
    def mix(self) -> AdapterMix:
        """The adapters in use."""
        return self._inner.generation.mix

    @property
    def classes(self) -> tuple[str, ...]:
        """What is looked for, index in the mask -> name; assign a list of names to look for something else."""
        return self._inner.class_names

    @classes.setter
    def classes(self, names: Sequence[str]) -> None:
        self._inner.set_classes(_listed(names))

    @property
    def library(self) -> Library:
        """The adapters to choose from."""
        return Library(self._inner.library.folder)

    def __repr__(self) -> str:
        names = self._inner.library.names
        return f"Pipeline of {len(self.classes)} classes and {len(names)} adapters; mix: {self.mix}"

    def _look_at(self, frame: Frame, *, is_new: bool) -> Mapping[str, float]:
        """One turn of the adaptation path; milliseconds by stage."""
        if is_new:
            self._inner.reset_gate()
        step = self._inner.adapt(frame)
        if step.error is not None:
            raise SemlaError(step.error)
        return step.latency_ms


class Library:
    """A folder of adapters.

    Args:
        folder: Empty = the one that ships with semla-tiny.

    Attributes:
        folder: See above.

    Raises:
        LibraryError: The folder cannot be used.
    """

    def __init__(self, folder: str | Path = "") -> None:
        self.folder = Path(folder).expanduser() if folder != "" else shipped_library(SemlaConfig.model)
        self._inner = AdapterLibrary.load(self.folder, eager_bytes=0)

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that can be used."""
        return self._inner.names

    @property
    def problems(self) -> dict[str, str]:
        """Adapters that cannot be used -> why."""
        return dict(self._inner.problems)

    def add(self, folder: str | Path, name: str = "") -> str:
        """Copy an adapter's folder into the library, which it joins whole or not at all.

        Args:
            folder: In the published layout.
            name: Its name in the library; its folder's name where empty.

        Returns:
            The name.

        Raises:
            SemlaError: The adapter cannot be used, does not fit, or its name is taken.
        """
        name = add_adapter(self.folder, Path(folder), name=name)
        self._inner = AdapterLibrary.load(self.folder, eager_bytes=0)
        return name

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Library of {len(self)} adapters in {self.folder}: {', '.join(self.names)}"


def output_files(folder: Path, name: str) -> dict[str, Path]:
    """What `Result.save` writes: "mask" and "overlay" -> the file."""
    return {kind: folder / f"{name}_{kind}.png" for kind in ("mask", "overlay")}


def _pixels(image: ImageLike) -> ImageArray:
    """Any image as RGB, shape (H, W, 3), uint8; its pixels are the caller's no longer."""
    if isinstance(image, str | Path):
        return read_image(Path(image).expanduser())
    if isinstance(image, Image.Image):
        check_pixels("image", image.width, image.height)
        image = ImageOps.exif_transpose(image)
        is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        image = np.asarray(image if is_deep else image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise ImageError(f"image: expected a file, a Pillow image or an array, got {type(image).__name__}")
    is_grey = image.ndim == 2
    if 0 in image.shape or not (is_grey or (image.ndim == 3 and image.shape[2] == 3)) or image.dtype.kind not in "uif":
        raise ImageError(
            f"image: expected RGB of shape (H, W, 3) or grey (H, W), got {image.dtype} of shape {image.shape}"
        )
    check_pixels("image", image.shape[1], image.shape[0], MAX_IMAGE_PIXELS)
    return np.array(rgb_of(np.ascontiguousarray(image), "image"))


def _listed(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)


def _mix_of(weights: Mapping[str, float]) -> AdapterMix:
    """Weights by adapter, also with that of the base model as `AdapterMix.shares` has it; the rest is that one's."""
    adapters = {name: weight for name, weight in weights.items() if name != BASE_MODEL}
    values = np.array(list(adapters.values()), np.float64)
    total = sum(map(float, weights.values()))
    if not all(weight >= 0 for weight in weights.values()) or not total <= 1 + 1e-6:
        raise ConfigError(f"weights of adapters must be at least 0 and sum to at most 1, got {dict(weights)}")
    return AdapterMix(
        names=tuple(adapters),
        weights=values,
        distances=np.full(len(values), np.nan),
        base_weight=max(0.0, 1.0 - float(values.sum())),
    )


def _png_uri(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
