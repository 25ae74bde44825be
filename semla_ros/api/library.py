"""A library of adapters to look into: what it holds, where its domains lie, why an image gets its mix."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from semla_ros.adaptation.explanation import Explanation, explain
from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.scene_encoder_files import encoder_of
from semla_ros.api.images import ImageLike, name_of, pixels_of
from semla_ros.atomic_files import write_atomically
from semla_ros.errors import ConfigError, LibraryError, counted
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.finding import find_library
from semla_ros.library.importing import add_adapter
from semla_ros.library.manifest import ModelReference
from semla_ros.library.publishing import Publication, publication, push
from semla_ros.resources import find_model
from semla_ros.results import AdapterMix, FloatArray, ImageArray

THUMBNAIL_PIXELS = 240  # its longer side

if TYPE_CHECKING:  # matplotlib, imported where something is drawn
    from semla_ros.lab.report.embedding_map import Scenery
    from semla_ros.lab.report.page import Page


class Report:
    """A picture with what it shows in words. A notebook shows it, `print` writes the words.

    Args:
        picture: PNG.
        page: The same at more length.
        words: What it shows.
        figures: The numbers behind it, as plain values.

    Attributes:
        figures: See above.
    """

    def __init__(self, picture: bytes, page: Page, words: str, figures: dict[str, Any]) -> None:
        self._picture, self._page, self._words = picture, page, words
        self.figures = figures

    def save(self, path: str | Path) -> Path:
        """Write the picture (`.png`), or a page to open in a browser (`.html`); the folder is made.

        Raises:
            ConfigError: Another suffix.
            OSError: The file cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".png", ".html"):
            raise ConfigError(f"a report is saved as .png or .html, got {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            write_atomically(path, self._picture)
        else:
            from semla_ros.lab.report.page import write_page

            write_page(path, self._page)
        return path

    def __str__(self) -> str:
        return self._words

    def __repr__(self) -> str:
        return self._words

    def _repr_png_(self) -> bytes:
        return self._picture


class Why(Report):
    """Why an image gets its mix.

    Attributes:
        mix: What it gets.
        distances: Distance to every adapter, nearest first.
    """

    def __init__(self, pixels: ImageArray, explanation: Explanation, scenery: Scenery) -> None:
        from semla_ros.lab.report.library_report import explanation_page, explanation_picture

        figures, verdict = explanation.as_json(), explanation.verdict
        super().__init__(
            explanation_picture(pixels, figures, verdict, scenery),
            explanation_page(pixels, figures, verdict, explanation.sentences, scenery),
            str(explanation),
            figures,
        )
        self.mix: AdapterMix = explanation.mix
        self.distances = {reason.name: reason.distance for reason in explanation.reasons}


def _small(pixels: ImageArray) -> ImageArray:
    """A thumbnail."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return np.asarray(picture)


class Library:
    """A folder of adapters.

    Args:
        folder: Or `hf://owner/repo`, which is downloaded where it is not on this machine; empty = the one that ships
            with semla-tiny.
        model: Base model, whose scene encoder looks at images; empty = the one that the library names.
        model_dir: Where model files are looked for first.

    Attributes:
        folder: See above.

    Raises:
        LibraryError: The folder cannot be used.
    """

    def __init__(self, folder: str | Path = "", *, model: str = "", model_dir: str = "") -> None:
        self.folder = find_library(folder, model_dir=model_dir)
        self._model, self._model_dir = model, model_dir
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

    def push(self, repository: str, *, is_private: bool = False, dry_run: bool = False) -> Publication:
        """Publish it on the Hugging Face hub, with a card; `hf://owner/repo` is its name from then on.

        Args:
            repository: "owner/repo"; made where it is missing.
            is_private: Where it is made: only for its owner.
            dry_run: Send nothing.

        Returns:
            What was sent, or would be: `files`, `card`, `adapters`.

        Raises:
            LibraryError: An adapter cannot be used, or the library does not say what it is for.
            FetchError: The hub does not take it.
        """
        planned = publication(self.folder, repository)
        if not dry_run:
            push(planned, is_private=is_private)
        return planned

    def explain(self, image: ImageLike) -> Why:
        """Why an image gets its mix: distances, weights, fade, and where it falls.

        Raises:
            SemlaError: The image or the scene encoder cannot be used.
        """
        pixels, found = self._explained(image)
        return Why(pixels, found, self._scenery([found]))

    def map(self, *images: ImageLike) -> Report:
        """Where the domains lie: centroids, spreads, known scenes, and where images fall.

        Raises:
            SemlaError: An image or the scene encoder cannot be used.
        """
        from semla_ros.lab.report.library_report import map_page, map_picture

        looked_at = [self._explained(image) for image in images]
        found = [item for _, item in looked_at]
        scenery, rows = self._scenery(found), self._rows()
        thumbnails = {name: _small(pixels) for name, (pixels, _) in zip(scenery.images, looked_at, strict=True)}
        figures = [item.as_json() for item in found]
        words = [f"{counted(len(self), 'adapter')} in {self.folder}"]
        words += [
            f"{row['name']}: spread {row['spread']}"
            + (f", {row['gap']:.3g} from {row['neighbour']}" if row["neighbour"] else "")
            for row in rows
        ]
        words += [f"{item.name} {item.verdict}; mix: {item.mix}" for item in found]
        return Report(
            map_picture(scenery, words[0], thumbnails),
            map_page(scenery, rows, str(self.folder), figures, thumbnails),
            "\n".join(words),
            {"library": str(self.folder), "adapters": rows, "images": figures},
        )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Library of {counted(len(self), 'adapter')} in {self.folder}: {', '.join(self.names)}"

    @cached_property
    def _encoder(self) -> SceneEncoder:
        """The scene encoder that made the centroids."""
        stated = self._inner.manifest.encoder
        model = self._model or self._inner.manifest.base.id
        if not model and not stated.id:
            raise LibraryError(
                f"adapter library {self.folder} names neither base model nor scene encoder; give 'model'"
            )
        try:
            source = encoder_of(find_model(model, self._model_dir), stated.id) if model else stated.id
        except ConfigError:
            if self._model or "/" not in stated.id:
                raise
            source = stated.id  # a published encoder may be there without the base model
        encoder = SceneEncoder.load(source, model_dir=self._model_dir)
        if difference := ModelReference(id=encoder.id).difference(stated):
            raise LibraryError(f"adapter library {self.folder}: it was made with another scene encoder: {difference}")
        return encoder

    def _explained(self, image: ImageLike) -> tuple[ImageArray, Explanation]:
        pixels = pixels_of(image)
        name = Path(image).name if isinstance(image, str | Path) else name_of(image)
        return pixels, explain(name, self._encoder.embed(pixels), self._inner)

    def _scenery(self, explanations: list[Explanation]) -> Scenery:
        from semla_ros.lab.report.embedding_map import scenery_of

        images: dict[str, FloatArray] = {}
        for number, item in enumerate(explanations, 1):
            images[f"{item.name} ({number})" if item.name in images else item.name] = item.embedding
        return scenery_of(self._inner, images)

    def _rows(self) -> list[dict[str, Any]]:
        """What a table of the map says of each adapter."""
        library = self._inner
        rows = []
        for index, name in enumerate(library.names):
            spread = float(library.spread[index])
            gaps = np.linalg.norm(library.centroids - library.centroids[index], axis=1)
            gaps[index] = np.inf
            nearest = int(gaps.argmin())
            about = "" if library.is_spread_measured[index] else "~"
            rows.append(
                {
                    "name": name,
                    "family": library.entry(name).family,
                    "images": library.entry(name).images,
                    "spread": f"{about}{spread:.3g}" if np.isfinite(spread) else "unknown",
                    "gap": float(gaps[nearest]) if len(library.names) > 1 else None,
                    "neighbour": library.names[nearest] if len(library.names) > 1 else "",
                }
            )
        return rows
