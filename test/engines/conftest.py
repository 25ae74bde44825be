"""The tiny model's fixed components, and their graphs exported once for all tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tiny_parts import EMBEDDING_DIM, tiny_model, write_encoder

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.scene_encoder_files import ENCODER_FILE
from semla_ros.config import InferenceConfig
from semla_ros.engines.cache import EngineCache
from semla_ros.engines.components import fixed_components
from semla_ros.engines.export import exported
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.segmentation.fixed_component import FixedComponent
from semla_ros.segmentation.model import CatSeg


class World:
    """A model, its scene encoder, an engine on it, and the fixed components of both."""

    def __init__(self, encoder_file: Path) -> None:
        self.model: CatSeg = tiny_model()
        with torch.no_grad():
            self.model.aggregator.head.weight.mul_(8)  # maps that differ by more than rounding
        self.encoder = SceneEncoder.load(encoder_file)
        self.torch_engine = TorchEngine(self.model, InferenceConfig(device="cpu", threads=1))
        generator = torch.Generator().manual_seed(5)
        self.text = F.normalize(torch.randn(4, EMBEDDING_DIM, generator=generator), dim=-1)
        self.torch_engine.set_text(self.text)
        rng = np.random.default_rng(3)
        self.images = [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(2)]
        self.components = fixed_components(self.model, self.encoder)

    def component(self, name: str) -> FixedComponent:
        return next(item for item in self.components if item.name == name)


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / ENCODER_FILE
    write_encoder(path)
    return path


@pytest.fixture
def world(encoder_file: Path) -> World:
    return World(encoder_file)


@pytest.fixture(scope="session")
def graphs(encoder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineCache:
    """A cache with every component's graph in fp32. Read only."""
    cache = EngineCache(tmp_path_factory.mktemp("graphs"))
    for component in World(encoder_file).components:
        exported(component, cache)
    return cache
