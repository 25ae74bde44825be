"""The frame path of a GPU without one: what it asks of the device, and that its answers are those of a CPU."""

from __future__ import annotations

import contextlib
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from cuda_traffic import FakeGpu, Traffic, frame_traffic
from small_model import small_model

from semla_ros.config import InferenceConfig
from semla_ros.engines import cuda_frames
from semla_ros.engines.cuda_frames import CudaFrames, PageLocked
from semla_ros.engines.cuda_graph import GraphedForward
from semla_ros.engines.mask_from_maps import mask_from_maps
from semla_ros.engines.packed_mask import packed_mask, unpacked_mask
from semla_ros.engines.torch_engine import TorchEngine

GRAPHS = frozenset({"batches", "graphs", "pinned", "device_masks"})


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    ("settings", "downloaded"),
    [
        ({}, 1080 * 1920 + 1),
        ({"inference": "sliding", "want_confidence": True}, 2 * 1080 * 1920 + 1),
        ({"classes": 300}, 2 * 1080 * 1920 + 1),
    ],
)
def test_a_frame_is_one_upload_three_graphs_and_one_download(settings, downloaded: int) -> None:
    traffic = frame_traffic(1080, 1920, model_size="toy", **settings)
    assert traffic.uploads == [1080 * 1920 * 3]
    assert traffic.downloads == [downloaded]
    assert traffic.operators == ["aten::copy_"] * 4  # up, to the model's graph, from it, and down
    assert traffic.replays == 3
    assert (traffic.waits, traffic.device_waits) == (2, 0)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("cameras", [2, 3])
def test_cameras_of_one_size_answered_together_ask_no_more_than_one(cameras: int) -> None:
    traffic = frame_traffic(48, 64, cameras=cameras, model_size="toy")
    assert (traffic.uploads, traffic.downloads) == ([cameras * 48 * 64 * 3], [cameras * (48 * 64 + 1)])
    assert traffic.operators == ["aten::copy_"] * 4
    assert (traffic.replays, traffic.waits, traffic.device_waits) == (3, 2, 0)


def test_what_is_asked_of_a_gpu_is_counted() -> None:
    with FakeGpu().installed() as gpu:
        host, pinned = torch.ones(10), torch.empty(10, pin_memory=True)
        x = host.to("cuda:0")
        y = (x.view(2, 5)[0] + x[5:]).float()
        pinned[:5].copy_(y)
        torch.cuda.synchronize()
        bool((y > 0).all())
        torch.cuda.CUDAGraph().capture_begin()
        y.add(y)
        with pytest.raises(RuntimeError, match="a transfer in a capture"):
            host.to("cuda:0")
    assert gpu.traffic == Traffic(
        operators=[
            *("aten::_to_copy", "aten::add.Tensor", "aten::copy_"),
            *("aten::gt.Scalar", "aten::all", "aten::_local_scalar_dense"),
        ],
        uploads=[40],
        downloads=[20, 1],
        waits=4,
        device_waits=1,
    )


class Captured:
    """Stands for a graph: what it is made of runs on inputs and gives an output that keep their places."""

    def __init__(self, forward, inputs) -> None:
        self.forward, self.inputs = forward, [item.clone() for item in inputs]
        self.output = forward(*self.inputs).clone()

    def __call__(self, inputs):
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        return self.output.copy_(self.forward(*self.inputs))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> TorchEngine:
    """An engine on a CPU that answers as on a GPU."""
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda _: 0.25)
    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, stand_in in {
        "Stream": lambda *_, **__: stream,
        "Event": lambda **_: event,
        "current_stream": lambda _: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "device": lambda _: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(cuda_frames, "GraphedForward", partial(GraphedForward, capture=Captured))
    made = make_engine(getattr(request, "param", "whole"))
    frames = CudaFrames(torch.device("cpu"), made._model.config, made._config.inference)
    frames._up, frames._down = (PageLocked(lambda shape: torch.empty(shape, dtype=torch.uint8)) for _ in range(2))
    made._frames = frames
    made._graph = GraphedForward(lambda images: made._autocast_forward(images, *made._held), 4, capture=Captured)
    made._way |= GRAPHS
    return made


def make_engine(inference: str = "whole") -> TorchEngine:
    model = small_model().requires_grad_(False)
    model.aggregator.head.weight.mul_(4)  # maps that differ by more than rounding
    engine = TorchEngine(model, InferenceConfig(device="cpu", threads=1, inference=inference))
    engine.set_text(text_of(5))
    return engine


def text_of(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(count)), dim=-1)


def images_of(*sizes: tuple[int, int]) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8) for seed, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("engine", "left_out"),
    [
        *(("whole", left_out) for left_out in ((), ("graphs",), ("pinned",), ("device_masks",), ("graphs", "pinned"))),
        *(("sliding", left_out) for left_out in ((), ("graphs",))),
    ],
    indirect=["engine"],
)
def test_answers_are_those_of_a_cpu_whatever_is_left_out(engine, left_out: tuple[str, ...]) -> None:
    engine._way -= set(left_out)
    plain = make_engine(engine._config.inference)
    for classes in (5, 9):
        for item in (engine, plain):
            item.set_text(text_of(classes))
        if engine._graph is None:  # of the engine's own making, whose captures need a GPU
            engine._graph = GraphedForward(
                lambda given: engine._autocast_forward(given, *engine._held), 4, capture=Captured
            )
        for images in (images_of((40, 56), (32, 64), (40, 56)), images_of((40, 56)), images_of((32, 64), (40, 56))):
            for given, expected in zip(engine.segment_batch(images), plain.segment_batch(images), strict=True):
                assert (given.mask == expected.mask).mean() > 0.999
                assert np.abs(given.confidence.astype(int) - expected.confidence).max() <= 1
                parts = (given.latency_ms[name] for name in ("preprocess", "forward", "postprocess"))
                assert sum(parts) == pytest.approx(given.latency_ms["total"], rel=0.1)
    assert engine.segment(images_of((40, 56))[0], want_confidence=False).confidence is None
    assert engine.notes == []


def test_scores_that_are_not_finite_are_an_error_although_the_host_sees_only_bytes(engine) -> None:
    image = images_of((40, 56))[0]
    engine.segment(image)
    engine._model.aggregator.head.bias.fill_(float("inf"))
    with pytest.raises(Exception, match="weights are damaged"):
        engine.segment(image)


@pytest.mark.parametrize(("count", "size"), [(5, (31, 47)), (254, (31, 47)), (255, (31, 47)), (300, (33, 16400))])
def test_a_mask_comes_out_of_its_bytes(count: int, size: tuple[int, int]) -> None:
    maps = torch.rand(count, 8, 12, generator=torch.Generator().manual_seed(0))
    expected, certainty = mask_from_maps(maps, size, True)
    for want_confidence in (False, True):
        data = packed_mask(maps, size, want_confidence, torch.tensor(True)).numpy()
        mask, confidence = unpacked_mask(data, size, count, want_confidence)
        assert (mask.dtype, mask.shape) == (expected.dtype, size)
        assert (mask == expected).mean() > 0.999
        assert not np.shares_memory(mask, data)
        if want_confidence:
            assert np.abs(confidence.astype(int) - certainty).max() <= 1
    assert unpacked_mask(packed_mask(maps, size, True, torch.tensor(False)).numpy(), size, count, True) is None
