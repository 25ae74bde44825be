"""Vocabularies filled up to a bucket: the same answer, and nothing to compile or capture anew."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from small_model import small_model

from semla_ros.config import InferenceConfig
from semla_ros.engines import torch_engine
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.errors import ConfigError
from semla_ros.segmentation.class_buckets import bucket_size, pad_vocabulary
from semla_ros.segmentation.model import CatSeg


def make_model(pad_len: int, pooling: tuple[int, int] = (1, 1)) -> CatSeg:
    model = small_model(pad_len, pooling)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "padding" in name:  # zero until it is trained
                parameter.normal_()
    return model.requires_grad_(False)


def vocabulary(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(1)), dim=-1)


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 64, generator=torch.Generator().manual_seed(2))


def test_buckets_cover_every_count_and_waste_at_most_a_quarter() -> None:
    sizes = [bucket_size(count) for count in range(1, 1000)]
    assert sizes[:21] == [4, 4, 4, 4, 5, 6, 7, 8, 10, 10, 12, 12, 14, 14, 16, 16, 20, 20, 20, 20, 24]
    assert all(count <= size <= max(4, 1.25 * count) for count, size in enumerate(sizes, start=1))
    assert bucket_size(250, 256) == 256
    assert bucket_size(25, 26) == 26  # not past the model's own padding


@pytest.mark.parametrize("pad_len", [0, 12, 16])
@pytest.mark.parametrize("pooling", [(1, 1), (2, 2)])
@pytest.mark.parametrize("has_rewrites", [True, False])
def test_fillers_change_nothing_for_the_classes(pad_len: int, pooling: tuple[int, int], has_rewrites: bool) -> None:
    model = make_model(pad_len, pooling)
    model.exact_rewrites = has_rewrites
    text = vocabulary(9)
    padded, presence = pad_vocabulary(text, 12)
    with torch.inference_mode():
        expected = model(images(), text)
        found = model(images(), padded, presence)
        unmasked = model(images(), padded)
    scale = expected.abs().max()
    assert found.shape[1] == 12
    assert (found[:, :9] - expected).abs().max() < 2e-6 * scale
    assert (unmasked[:, :9] - expected).abs().max() > 1e-4 * scale  # fillers that are attended to would show


def test_more_classes_than_the_model_keeps_cannot_be_filled_up() -> None:
    with pytest.raises(ConfigError, match="more than 8"):
        make_model(8)(images(), *pad_vocabulary(vocabulary(9), 10))


@pytest.mark.parametrize(("pad_len", "counts", "compilations"), [(0, (9, 10, 9, 11, 12), 2), (10, (9, 10, 11), 2)])
def test_another_vocabulary_in_the_same_bucket_compiles_nothing_anew(
    monkeypatch, pad_len: int, counts: tuple[int, ...], compilations: int
) -> None:
    compiled: list[int] = []

    def backend(graph, inputs):
        compiled.append(len(inputs))
        return graph

    compile_with = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch_engine.torch, "compile", lambda model, **kw: compile_with(model, backend=backend, **kw))
    model = make_model(pad_len)
    engine = TorchEngine(model, InferenceConfig(device="cpu", threads=1, compile=True))
    eager = TorchEngine(model, InferenceConfig(device="cpu", threads=1))
    image = torch.randint(0, 256, (32, 64, 3), generator=torch.Generator().manual_seed(3)).byte().numpy()
    engine.set_text(vocabulary(counts[0]))
    engine.warm_up()
    assert not engine.notes
    graphs = len(compiled)
    for count in counts:
        engine.set_text(vocabulary(count))
        eager.set_text(vocabulary(count))
        answer, expected = engine.segment(image), eager.segment(image)
        assert (answer.mask == expected.mask).mean() > 0.99
        assert abs(answer.confidence.astype(int) - expected.confidence).max() <= 1
    assert len(compiled) == compilations * graphs
    torch._dynamo.reset()
