"""What a pipeline is made of, and which setting counts where several places have one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.scene_encoder_files import encoder_of
from semla_ros.config import DriftConfig, RetrievalConfig, SemlaConfig
from semla_ros.engines.base import Engine
from semla_ros.engines.choice import choose_engine
from semla_ros.engines.torch_engine import choose_device, choose_threads
from semla_ros.errors import LibraryError, VocabularyError
from semla_ros.hub.published import PUBLISHED
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.finding import find_library
from semla_ros.library.manifest import read_manifest
from semla_ros.resources import find_model
from semla_ros.segmentation.checkpoint import LoadedModel, load_model, model_file
from semla_ros.segmentation.protocol import SegmentationModel
from semla_ros.segmentation.targets import lora_signature


@dataclass(frozen=True, kw_only=True, eq=False)
class PipelineParts:
    """Everything that a pipeline owns, loaded and fitting together.

    Attributes:
        model: With its base weights; the pipeline changes them.
        engine: Runs the forward pass of `model`.
        encoder: Made the library's centroids.
        library: Fits `model`.
        tokens_of: Class names -> token ids for `model.encode_text`; raises VocabularyError on a bad list.
        class_names: The vocabulary to start with.
        retrieval: Settings to start with.
        drift: Settings to start with.
        memory: See `Fuser`.
        domain: What kind of images library or model were made for; empty where neither says.
        own_class_names: The model's own vocabulary; empty where it has none.
    """

    model: SegmentationModel
    engine: Engine
    encoder: SceneEncoder
    library: AdapterLibrary
    tokens_of: Callable[[Sequence[str]], Tensor]
    class_names: tuple[str, ...]
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    memory: Literal["double", "single"] = "double"
    domain: str = ""
    own_class_names: tuple[str, ...] = ()


def load_parts(config: SemlaConfig, library: AdapterLibrary | None = None) -> PipelineParts:
    """Load model, scene encoder and library, each checked against the others.

    Args:
        config: Settings; empty ones are filled from the model and the library.
        library: Used instead of loading `config.library`.

    Raises:
        SemlaError: A file is missing, damaged or does not fit the others.
    """
    device = choose_device(config.inference.device)
    if device.type == "cpu":  # before the weights: thousands of small steps, which several threads make slower
        torch.set_num_threads(choose_threads(config.inference.threads))
    path = find_model(config.model, config.model_dir)
    model_file(path)  # before the encoder of what is no model is looked for
    library_folder = find_library(config.library, model=config.model, model_dir=config.model_dir)
    if library is None and not library_folder.is_dir():
        missing = f"adapter library {library_folder} is not there"
        if not config.library:
            missing = f"no adapter library ships with model '{config.model}' ({library_folder} is not there)"
        fetched = {item.library_of: item.id for item in PUBLISHED.values() if item.library_of}.get(config.model)
        hint = f"'semla fetch {fetched}' downloads the published one; or " if fetched and not config.library else ""
        raise LibraryError(f"{missing}; {hint}give the folder that holds one folder per adapter as 'library'")
    manifest = library.manifest if library is not None else read_manifest(library_folder)
    loaded = load_model(path, device)  # first: where it is damaged, that is what to tell
    loaded.model.choose(config.inference.working_size, config.inference.early_rejection)
    encoder = SceneEncoder.load(encoder_of(path, manifest.encoder.id), model_dir=config.model_dir, device=device)
    if library is None:
        library = AdapterLibrary.load(
            library_folder,
            targets=lora_signature(loaded.model),
            encoder_id=encoder.id,
            encoder_dim=encoder.dim,
            base_sha=loaded.sha256 if manifest.base.sha256 else None,  # reading a published file takes seconds
        )
    return PipelineParts(
        model=loaded.model,
        engine=choose_engine(loaded.model, encoder, config.inference),
        encoder=encoder,
        library=library,
        tokens_of=lambda names: loaded.tokenizer.tokenize(names, loaded.template),
        class_names=_class_names(config, loaded),
        retrieval=config.retrieval or library.manifest.retrieval or RetrievalConfig(),
        drift=config.drift or library.manifest.drift or DriftConfig(),
        memory=config.inference.memory,
        domain=library.manifest.domain or str(loaded.metadata.get("domain", "")),
        own_class_names=tuple(loaded.class_names),
    )


def _class_names(config: SemlaConfig, loaded: LoadedModel) -> tuple[str, ...]:
    names = config.classes or loaded.class_names
    if not names:
        raise VocabularyError(f"model '{loaded.model_id}' has no class list of its own; name the classes to segment")
    return tuple(names)
