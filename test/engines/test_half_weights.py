from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_model import small_model

from semla_ros.config import InferenceConfig
from semla_ros.engines.half_weights import HalfWeights
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.errors import NotFiniteError
from semla_ros.segmentation import cached_inference


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves on a CPU alone takes weights in parts, and casts some of them otherwise."""
    monkeypatch.setattr(cached_inference, "is_possible", lambda *_: False)


IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def logits(run, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images, text = torch.randn(2, 3, 32, 64, generator=generator), torch.randn(5, 32, generator=generator)
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, cache_enabled=False):
        return run(images, text)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_copy_in_half_precision_answers_as_autocast_bit_for_bit(dtype: torch.dtype) -> None:
    model = small_model().requires_grad_(False)
    half = HalfWeights(model, dtype)
    before = logits(model, dtype)
    assert torch.equal(logits(half.run, dtype), before)
    places = [item.data_ptr() for item in half._copies.values()]
    for parameter in model.parameters():
        parameter.mul_(1.1)
    half.refresh()
    assert torch.equal(logits(half.run, dtype), logits(model, dtype))
    assert not torch.equal(logits(model, dtype), before)
    assert [item.data_ptr() for item in half._copies.values()] == places
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_weights_act_with_the_class_embeddings_that_are_committed_after_them() -> None:
    def engine_of(model) -> TorchEngine:
        engine = TorchEngine(model, InferenceConfig(device="cpu", threads=1))
        engine.set_text(text)
        engine.precision = "fp16"
        return engine

    text = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    engine = engine_of(small_model().requires_grad_(False))
    engine._way |= {"half_weights"}  # as on a GPU
    before = engine.segment(IMAGE).confidence
    engine._model.aggregator.head.weight.mul_(2)
    assert np.array_equal(engine.segment(IMAGE).confidence, before)
    with pytest.raises(NotFiniteError):
        engine.set_text(text * float("nan"))
    assert np.array_equal(engine.segment(IMAGE).confidence, before)
    engine.set_text(text)
    after = engine.segment(IMAGE).confidence
    assert not np.array_equal(after, before)
    assert np.array_equal(after, engine_of(copy.deepcopy(engine._model)).segment(IMAGE).confidence)
    engine.precision = "fp32"
    assert engine._half is None
