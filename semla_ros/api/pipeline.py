"""A model that follows the scene, for images one by one: a thin layer over `PerceptionPipeline`."""

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
from PIL import Image

from semla_ros.api.images import ImageLike, name_of, pixels_of
from semla_ros.api.library import Library
from semla_ros.atomic_files import write_atomically
from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import ConfigError, SemlaError, counted
from semla_ros.labels import colour_of, overlay, palette_of
from semla_ros.library.manifest import NOT_FOR_CAMERAS, RENDERED
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import BASE_MODEL, AdapterMix, Frame, ImageArray, MaskArray

logger = logging.getLogger(__name__)

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
        distances: Distance of the scene that the mix was chosen for to every adapter of the library, nearest first;
            empty where it was chosen for none.
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
        for file, picture in zip(files.values(), (Image.fromarray(self.mask), self.overlay()), strict=True):
            write_atomically(file, _png(picture))
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
        uri = "data:image/png;base64," + base64.b64encode(_png(picture)).decode()
        figure = Markup(
            '<figure style="margin:0"><img src="{}" alt="{} with the colours of its classes" style="max-width:100%">'
            "<figcaption>{}<br>{}</figcaption></figure>"
        )
        return str(figure.format(uri, self.name, legend, self._mix_in_words))


class Pipeline:
    """A model that follows the scene: for each image the adapters that fit it are fused into its weights.

    Args:
        model: Id, path, or `hf://owner/repo`.
        library: Folder of adapters, `hf://owner/repo`, or a `Library`; empty = the model's own.
        classes: What to look for; empty = the model's own list.
        model_dir: Where model files are looked for first.
        inference: "whole" images, or "sliding" over windows, which is slower and finer.
        working_resolution: Height and width that images are resized to, such as "480x768", where the model leaves that
            open; empty = its own.
        early_rejection: Classes that go on at each pixel of the decoder, where the model can; 0 = all.
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
        working_resolution: str = "",
        early_rejection: int = 0,
        device: str = "auto",
        threads: int = 0,
    ) -> None:
        folder = library.folder if isinstance(library, Library) else library
        self._config = SemlaConfig(
            model=model,
            model_dir=model_dir,
            library=str(folder) if folder != "" else "",
            classes=_listed(classes),
            inference=InferenceConfig(
                inference=inference,
                working_resolution=working_resolution,
                early_rejection=early_rejection,
                device=device,
                threads=threads,
            ),
        )
        self._inner = PerceptionPipeline.load(self._config)
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
        frame = Frame(image=pixels_of(image), stamp_ns=round((stamp_s or 0.0) * 1e9))
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
            name=name_of(image),
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
        self._look_at(Frame(image=pixels_of(to), stamp_ns=0), is_new=True)
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
        config = self._config
        return Library(self._inner.library.folder, model=config.model, model_dir=config.model_dir)

    def __repr__(self) -> str:
        names = self._inner.library.names
        classes, adapters = counted(len(self.classes), "class", "classes"), counted(len(names), "adapter")
        return f"Pipeline of {classes} and {adapters}; mix: {self.mix}"

    def _look_at(self, frame: Frame, *, is_new: bool) -> Mapping[str, float]:
        """One turn of the adaptation path; milliseconds by stage."""
        if is_new:
            self._inner.reset_gate()
        step = self._inner.adapt(frame)
        if step.error is not None:
            raise SemlaError(step.error)
        return step.latency_ms


def output_files(folder: Path, name: str) -> dict[str, Path]:
    """What `Result.save` writes: "mask" and "overlay" -> the file."""
    return {kind: folder / f"{name}_{kind}.png" for kind in ("mask", "overlay")}


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


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
