"""Fixtures shared by all tests: a small random model, its scene encoder and a library of four adapters."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_parts import CLASSES, FakeEncoder, PipelineFactory, write_library, write_model

from semla_ros.config import DriftConfig, InferenceConfig, RetrievalConfig
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.pipeline_parts import PipelineParts
from semla_ros.segmentation.checkpoint import load_model
from semla_ros.segmentation.targets import lora_signature

torch.set_num_threads(1)  # tests run in parallel, on models too small to split


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: random segmenter for `CLASSES` and random scene encoder. Read only."""
    return write_model(tmp_path_factory.mktemp("models") / "semla-tiny-random")


@pytest.fixture(scope="session")
def tiny_library_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of the adapters "day", "fog", "night" and "snow" for that model. Read only."""
    return write_library(tmp_path_factory.mktemp("adapters") / "library", load_model(tiny_model_folder).model)


@pytest.fixture
def library_copy(tiny_library_folder: Path, tmp_path: Path) -> Path:
    """A copy of the library that a test may damage."""
    return Path(shutil.copytree(tiny_library_folder, tmp_path / "library"))


@pytest.fixture
def make_pipeline(tiny_model_folder: Path, tiny_library_folder: Path) -> Iterator[PipelineFactory]:
    """Pipelines on the tiny model with a fake scene encoder; closed at the end."""
    made: list[PerceptionPipeline] = []

    def make(
        *,
        library_folder: Path | None = None,
        retrieval: RetrievalConfig | None = None,
        drift: DriftConfig | None = None,
        memory: str = "double",
    ) -> PerceptionPipeline:
        loaded = load_model(tiny_model_folder)
        library = AdapterLibrary.load(library_folder or tiny_library_folder, targets=lora_signature(loaded.model))
        parts = PipelineParts(
            model=loaded.model,
            engine=TorchEngine(loaded.model, InferenceConfig(threads=1, device="cpu")),
            encoder=FakeEncoder(),  # type: ignore[arg-type]
            library=library,
            tokens_of=loaded.tokenizer.tokenize,
            class_names=CLASSES,
            retrieval=retrieval or RetrievalConfig(),
            drift=drift or DriftConfig(),
            memory=memory,  # type: ignore[arg-type]
        )
        made.append(PerceptionPipeline(parts))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()
