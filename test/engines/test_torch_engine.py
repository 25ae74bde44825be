import re

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from small_model import small_model

import semla_ros.engines.torch_engine as torch_engine
from semla_ros.config import InferenceConfig
from semla_ros.engines import mask_from_maps as mask_from_maps_module
from semla_ros.engines.mask_from_maps import mask_from_maps
from semla_ros.engines.torch_engine import TorchEngine, choose_device
from semla_ros.errors import EngineError, ImageError
from semla_ros.segmentation.inference import whole_view
from semla_ros.segmentation.model import CatSeg
from semla_ros.segmentation.one_image import segment_probabilities

CLASSES = 5


@pytest.fixture
def model() -> CatSeg:
    """A random model for images of 32 x 64 pixels."""
    made = small_model()
    with torch.no_grad():
        made.aggregator.head.weight.mul_(4)  # maps that differ by more than rounding
    return made.requires_grad_(False)


@pytest.fixture
def text() -> torch.Tensor:
    return F.normalize(torch.randn(CLASSES, 32, generator=torch.Generator().manual_seed(1)), dim=-1)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ready_engine(model: CatSeg, text: torch.Tensor, **settings: object) -> TorchEngine:
    engine = TorchEngine(model, InferenceConfig(device="cpu", threads=1, **settings))
    engine.set_text(text)
    return engine


@pytest.mark.parametrize("mode", ["whole", "sliding"])
@pytest.mark.parametrize("size", [(32, 64), (48, 40), (20, 90)])
def test_the_mask_is_the_arg_max_of_the_resized_probabilities(model, text, mode: str, size: tuple[int, int]) -> None:
    image = random_image(*size)
    output = ready_engine(model, text, inference=mode).segment(image)
    maps = segment_probabilities(model, torch.from_numpy(image).permute(2, 0, 1), text, size, mode)
    assert output.mask.shape == output.confidence.shape == size
    best, second = maps.topk(2, dim=0).values
    clear = (best - second > 1e-5).numpy()
    assert clear.mean() > 0.95
    assert np.array_equal(output.mask[clear], maps.argmax(dim=0).numpy()[clear])
    assert np.abs(output.confidence - best.numpy() * 255).max() <= 0.51
    assert len(np.unique(output.mask)) > 1


def test_one_image_alone_reaches_the_model_in_the_layout_of_its_view(model, text) -> None:
    """Another layout rounds otherwise: a recorded drive would get other masks."""
    image = random_image(32, 64)  # of the size that the model works at
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    ready_engine(model, text).segment(image)
    view = whole_view(torch.from_numpy(image).permute(2, 0, 1), model.config)
    assert seen[-1].stride() == view.stride() != view.contiguous().stride()
    assert torch.equal(seen[-1], view)


@pytest.mark.parametrize("size", [(7, 9), (64, 100), (241, 317)])
def test_a_mask_at_any_size_equals_the_arg_max_over_full_maps(size: tuple[int, int]) -> None:
    maps = torch.rand(300, 16, 24, generator=torch.Generator().manual_seed(0))
    mask, confidence = mask_from_maps(maps, size, True)
    full = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    best, second = full.topk(2, dim=0).values
    clear = (best - second > 1e-6).numpy()
    assert mask.dtype == np.uint16
    assert np.array_equal(mask[clear], full.argmax(dim=0).numpy()[clear])
    assert np.abs(confidence - best.numpy() * 255).max() <= 0.51


def test_a_mask_above_4k_differs_at_the_borders_of_classes_alone_and_costs_no_more(monkeypatch) -> None:
    maps = torch.rand(6, 8, 12, generator=torch.Generator().manual_seed(0))
    exact, confidence = mask_from_maps(maps, (433, 770), True)
    largest: list[int] = []
    on_cpu = mask_from_maps_module._on_cpu
    monkeypatch.setattr(mask_from_maps_module, "MOST_PIXELS", 433 * 770 / 4)
    monkeypatch.setattr(mask_from_maps_module, "LONGEST_SIDE", 1000)
    monkeypatch.setattr(
        mask_from_maps_module, "_on_cpu", lambda maps, size: largest.append(size[0] * size[1]) or on_cpu(maps, size)
    )
    mask, coarse = mask_from_maps(maps, (433, 770), True)
    differs = mask != exact
    assert 0 < differs.mean() < 0.02
    around = np.ones((5, 5))
    borders = cv2.dilate(exact, around) != cv2.erode(exact, around)
    assert borders[differs].all()
    assert np.abs(coarse.astype(int) - confidence).max() <= 8
    for size in ((1, 500_000), (500_000, 1), (3, 1001)):
        assert mask_from_maps(maps, size, True)[0].shape == size
    assert max(largest) < 433 * 770 / 4 * 1.02


def test_up_to_254_classes_fit_a_byte_and_more_do_not() -> None:
    for count, dtype in ((254, np.uint8), (255, np.uint16)):
        mask, confidence = mask_from_maps(torch.rand(count, 2, 2), (2, 2), False)
        assert mask.dtype == dtype
        assert confidence is None


def test_read_only_and_mirrored_images_are_taken(model, text) -> None:
    engine = ready_engine(model, text)
    image = random_image(32, 64)
    expected = engine.segment(image).mask
    frozen = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    assert np.array_equal(engine.segment(frozen).mask, expected)
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    assert np.array_equal(engine.segment(mirrored).mask, expected)


def test_latency_is_told_by_stage_and_adds_up(model, text) -> None:
    latency = ready_engine(model, text).segment(random_image(32, 64)).latency_ms
    assert set(latency) == {"preprocess", "forward", "postprocess", "total"}
    parts = latency["preprocess"] + latency["forward"] + latency["postprocess"]
    assert 0.5 * latency["total"] < parts <= latency["total"]


@pytest.mark.parametrize("inference", ["whole", "sliding"])
def test_cameras_answered_at_once_get_the_masks_that_they_get_alone(model, text, inference: str) -> None:
    engine = ready_engine(model, text, inference=inference)
    images = [random_image(height, width, seed) for seed, (height, width) in enumerate([(32, 64), (48, 40), (20, 90)])]
    together = engine.segment_batch(images)
    assert [answer.mask.shape for answer in together] == [image.shape[:2] for image in images]
    for answer, image in zip(together, images, strict=True):
        alone = engine.segment(image)
        assert (answer.mask == alone.mask).mean() > 0.99
        assert np.abs(answer.confidence.astype(int) - alone.confidence).max() <= 1
        assert set(answer.latency_ms) == set(alone.latency_ms)
    assert all(answer.confidence is None for answer in engine.segment_batch(images, want_confidence=False))
    with pytest.raises(ImageError, match="uint8 RGB"):
        engine.segment_batch([images[0], images[1].astype(float)])


def test_weights_overwritten_in_place_act_on_the_next_image(model, text) -> None:
    engine = ready_engine(model, text)
    engine.warm_up()
    image = random_image(32, 64)
    before = engine.segment(image).confidence
    for parameter in model.parameters():
        parameter.data.mul_(1.05)
    assert not np.array_equal(engine.segment(image).confidence, before)


def test_a_first_image_is_all_that_eager_pytorch_warms_up_with(model, text, monkeypatch) -> None:
    engine, seen = ready_engine(model, text), []
    segment = engine.segment
    monkeypatch.setattr(engine, "segment", lambda image, *wanted: seen.append(image.shape) or segment(image, *wanted))
    engine.warm_up()
    assert seen == [(*model.config.working_resolution, 3)]
    engine.warm_up()
    assert len(seen) == 1


def test_weights_that_are_not_finite_are_an_error_not_a_mask(model, text) -> None:
    engine = ready_engine(model, text)
    model.aggregator.head.bias.data.fill_(float("nan"))
    with pytest.raises(EngineError, match="not finite"):
        engine.segment(random_image(32, 64))


def test_an_engine_without_vocabulary_says_so(model) -> None:
    engine = TorchEngine(model, InferenceConfig(device="cpu", threads=1))
    with pytest.raises(EngineError, match="set_text"):
        engine.segment(random_image(32, 64))
    with pytest.raises(EngineError, match=r"\(T, 32\)"):
        engine.set_text(torch.zeros(3, 31))


@pytest.mark.parametrize("image", [np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_not_an_rgb_image_is_refused(model, text, image: np.ndarray) -> None:
    with pytest.raises(ImageError, match="uint8 RGB"):
        ready_engine(model, text).segment(image)


def test_lower_precision_that_agrees_serves(model, text) -> None:
    engine = ready_engine(model, text[:1], precision="bf16")  # one class: no rounding can change the mask
    engine.warm_up()
    assert engine.precision == "bf16"
    assert not engine.notes
    lower = engine.segment(random_image(32, 64)).confidence.astype(int)
    full = ready_engine(model, text[:1]).segment(random_image(32, 64)).confidence.astype(int)
    assert 0 < np.abs(lower - full).max() < 26


def test_disagreement_with_full_precision_is_refused_with_the_figure(model, text, monkeypatch) -> None:
    engine = TorchEngine(model, InferenceConfig(device="cpu", threads=1, precision="bf16"))
    engine.set_text(text)
    plain = engine._probe

    def disagreeing(images, answer):
        masks, spent = plain(images, answer)
        return ([mask + CLASSES for mask in masks] if engine.precision == "bf16" else masks), spent

    monkeypatch.setattr(engine, "_probe", disagreeing)
    engine.warm_up()
    assert engine.precision == "fp32"
    assert "0.00% of the probe pixels" in engine.notes[0]


def compiled_engine(model, text, monkeypatch, compiled) -> TorchEngine:
    monkeypatch.setattr(torch_engine.torch, "compile", lambda _model, **_options: compiled)
    engine = TorchEngine(model, InferenceConfig(device="cpu", threads=1, compile=True))
    engine.set_text(text)
    engine.warm_up()
    return engine


def test_a_compiled_forward_pass_that_agrees_serves(model, text, monkeypatch) -> None:
    calls = []

    def compiled(*inputs):
        calls.append(len(inputs))
        return model(*inputs)

    engine = compiled_engine(model, text, monkeypatch, compiled)
    assert engine.notes == []
    before = len(calls)
    engine.segment(random_image(32, 64))
    assert len(calls) == before + 1


def test_a_compiled_forward_pass_with_other_masks_is_refused_with_the_figure(model, text, monkeypatch) -> None:
    engine = compiled_engine(model, text, monkeypatch, lambda *inputs: -model(*inputs))
    (note,) = engine.notes
    assert re.match(
        r"eager serves: compiled, it agrees with eager on \d+\.\d\d% of the probe pixels, below 99\.5%", note
    )
    eager = TorchEngine(model, InferenceConfig(device="cpu", threads=1))
    eager.set_text(text)
    assert np.array_equal(engine.segment(random_image(32, 64)).mask, eager.segment(random_image(32, 64)).mask)


def test_a_compiler_that_fails_leaves_eager_with_its_first_line(model, text, monkeypatch) -> None:
    def failing(*_inputs):
        raise RuntimeError("no C++ compiler\nsecond line")

    engine = compiled_engine(model, text, monkeypatch, failing)
    assert engine.notes == ["eager serves: torch.compile failed (no C++ compiler)"]
    assert engine.segment(random_image(32, 64)).mask.shape == (32, 64)


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(EngineError, match=name):
        choose_device(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_graph_follows_weights_and_vocabulary(model, text) -> None:
    import copy

    reference = ready_engine(copy.deepcopy(model), text)
    engine = TorchEngine(model, InferenceConfig(device="cuda"))
    engine.set_text(text)
    engine.warm_up()
    image = random_image(48, 40)
    for factor in (1.0, 1.05, 1.05):
        for parameter in [*model.parameters(), *reference._model.parameters()]:
            parameter.data.mul_(factor)
        assert (engine.segment(image).mask == reference.segment(image).mask).mean() > 0.99
    assert engine._graph is not None
    assert engine._graph.captures == 1
