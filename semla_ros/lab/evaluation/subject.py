"""The real model under test: the pipeline's own parts, driven one mix at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semla_ros.adaptation.fusion import Fuser, PreparedModel
from semla_ros.adaptation.retrieval import Retriever
from semla_ros.config import DriftConfig, RetrievalConfig, SemlaConfig
from semla_ros.errors import VocabularyError, counted
from semla_ros.lab.evaluation.published_retrieval import PublishedRetriever
from semla_ros.pipeline_parts import PipelineParts, load_parts
from semla_ros.results import AdapterMix, FloatArray, ImageArray
from semla_ros.segmentation.one_image import segment_probabilities


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """How to load the model under test.

    Attributes:
        config: Model, library and inference.
        retrieval: Fields of `RetrievalConfig` that replace what the library recommends.
    """

    config: SemlaConfig
    retrieval: Mapping[str, Any] = field(default_factory=dict)

    def load(self, threads: int) -> PipelineSubject:
        """Load it in this process, to run on so many threads (0 = torch's default).

        Raises:
            SemlaError: A file is missing, damaged or does not fit the others.
        """
        config = self.config
        if threads:
            config = replace(config, inference=replace(config.inference, threads=threads))
            torch.set_num_threads(threads)
        parts = load_parts(config, None)
        return PipelineSubject(parts, self._settings(parts), config)

    def _settings(self, parts: PipelineParts) -> RetrievalConfig:
        return replace(parts.retrieval, **self.retrieval)


_loaded: tuple[str, PipelineSubject] | None = None  # in a worker process: of which run, and the model


def loaded_once(spec: PipelineSpec, run_id: str) -> PipelineSubject:
    """The model in this process, for one thread; loaded when the run first asks for it."""
    global _loaded
    if _loaded is None or _loaded[0] != run_id:
        _loaded = run_id, spec.load(1)
    return _loaded[1]


def words_lacking(tokens_of: Callable[[Sequence[str]], Tensor], names: Iterable[str]) -> list[str]:
    """Those of some class names that a model has no words for, in their order.

    Args:
        tokens_of: Class names -> token ids of the model.
        names: Class names.
    """
    lacking = []
    for name in dict.fromkeys(names):
        try:
            tokens_of([name])
        except VocabularyError:
            lacking.append(name)
    return lacking


class PipelineSubject:
    """A pipeline's model, fuser, encoder and library, without its gates: each image gets exactly the mix asked for."""

    def __init__(self, parts: PipelineParts, recommended: RetrievalConfig, config: SemlaConfig) -> None:
        self._parts = parts
        self._config = config
        # All of them where it has words for none, which is then said.
        lacking = self.lacking(parts.class_names)
        self._class_names = tuple(name for name in parts.class_names if name not in lacking) or parts.class_names
        self._fuser = Fuser(
            parts.model,
            parts.library,
            parts.tokens_of(self._class_names),
            memory="single",  # nothing is served meanwhile, so nothing needs a standby copy
        )
        self._in_use: PreparedModel | None = None
        self._retrievers: dict[tuple[RetrievalConfig, bool], Retriever | PublishedRetriever] = {}
        self._device = next(parts.model.parameters()).device
        self.recommended = recommended

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Adapters of the library."""
        return self._parts.library.names

    @property
    def class_names(self) -> tuple[str, ...]:
        """The vocabulary in use."""
        return self._class_names

    @property
    def drift(self) -> DriftConfig:
        """Settings of the gate: the library's, where it has any."""
        return self._parts.drift

    @property
    def centroids(self) -> FloatArray:
        """One per adapter, shape (N, D)."""
        return self._parts.library.centroids

    @property
    def description(self) -> Mapping[str, str]:
        """What was measured."""
        settings, inference = self.recommended, self._config.inference
        manifest = self._parts.library.manifest
        fade = f", fade {settings.fade_start:g} to {settings.fade_end:g}" if settings.fade_out_of_library else ""
        return {
            "model": self._config.model + (f" ({manifest.base.sha256[:12]})" if manifest.base.sha256 else ""),
            "library": f"{self._parts.library.folder.name}, {counted(len(self.adapter_names), 'adapter')}",
            "retrieval": f"{settings.distance}, temperature {settings.temperature:g}, top_k {settings.top_k}{fade}",
            "inference": f"{inference.view} on {self._device.type}",
        }

    def retriever(self, settings: RetrievalConfig, *, as_published: bool = False) -> Retriever | PublishedRetriever:
        """A retriever over the library; made once per setting."""
        key = (settings, as_published)
        if key not in self._retrievers:
            kind = PublishedRetriever if as_published else Retriever
            self._retrievers[key] = kind(self._parts.library, settings)
        return self._retrievers[key]

    def embed(self, image: ImageArray) -> FloatArray:
        """Scene embedding, shape (D,), float32."""
        return self._parts.encoder.embed(image)

    def lacking(self, names: Iterable[str]) -> list[str]:
        """Those of some class names that the model has no words for."""
        return words_lacking(self._parts.tokens_of, names)

    def set_classes(self, names: Sequence[str]) -> None:
        """Change the vocabulary, where it differs; it counts from the next `use`."""
        if tuple(names) != self._class_names:
            self._fuser.set_tokens(self._parts.tokens_of(names))
            self._class_names = tuple(names)

    def use(self, mix: AdapterMix) -> None:
        """Fuse a mix into the model."""
        self._in_use = self._fuser.prepare(mix)
        self._fuser.commit(self._in_use)

    def probabilities(self, image: ImageArray, size: tuple[int, int]) -> NDArray[np.float32]:
        """Class probabilities of the model in use, shape (K, *size), float32, 0..1."""
        assert self._in_use is not None  # `use` comes first
        tensor = torch.from_numpy(np.ascontiguousarray(image)).to(self._device).permute(2, 0, 1)
        text_features = self._in_use.text_features
        maps = segment_probabilities(self._parts.model, tensor, text_features, size, self._config.inference.inference)
        values: NDArray[np.float32] = maps.float().cpu().numpy()
        return values
