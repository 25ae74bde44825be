"""What a GPU needs around the forward pass, with stand-ins for the GPU: kept graphs, reused host buffers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_model import small_model

from semla_ros.config import InferenceConfig
from semla_ros.engines.cuda_frames import PageLocked
from semla_ros.engines.cuda_graph import GraphedForward
from semla_ros.engines.torch_engine import TorchEngine


class Captured:
    """Stands for a graph: replays the function it was made of, and remembers how often."""

    made: list[Captured] = []  # noqa: RUF012

    def __init__(self, forward, inputs) -> None:
        self.forward, self.shapes, self.replays = forward, [tuple(item.shape) for item in inputs], 0
        self.made.append(self)

    def __call__(self, inputs):
        assert [tuple(item.shape) for item in inputs] == self.shapes
        self.replays += 1
        return self.forward(*inputs)


@pytest.fixture(autouse=True)
def _none_made() -> None:
    Captured.made.clear()


def test_a_graph_is_captured_once_for_each_shape_and_replayed() -> None:
    graphed = GraphedForward(lambda images, text: images.sum() + text.sum(), kept=2, capture=Captured)
    one, two, text = torch.ones(1, 3), torch.ones(2, 3), torch.ones(4)
    assert [float(graphed(images, text)) for images in (one, two, one, two)] == [7.0, 10.0, 7.0, 10.0]
    assert graphed.captures == 2
    assert [graph.replays for graph in Captured.made] == [2, 2]


def test_the_graph_that_was_used_longest_ago_makes_room_before_another_is_captured() -> None:
    held: list[int] = []

    def capture(forward, inputs):
        held.append(len(graphed._graphs))
        return Captured(forward, inputs)

    graphed = GraphedForward(lambda images: images, kept=2, capture=capture)
    for count in (1, 2, 1, 3):  # 2 makes room for 3
        graphed(torch.zeros(count))
    assert held == [0, 1, 1]
    graphed(torch.zeros(1))
    assert graphed.captures == 3
    graphed(torch.zeros(2))
    assert graphed.captures == 4


def test_graphs_go_with_the_number_of_classes_and_stay_with_a_new_generation() -> None:
    engine = TorchEngine(small_model(pad_len=10), InferenceConfig(device="cpu", threads=1))

    def survives(count: int) -> bool:
        engine._graph = graph = GraphedForward(lambda images, text: images, capture=Captured)
        engine.set_text(torch.randn(count, 32))
        return engine._graph is graph

    # 9 and 10 share a bucket; of 12 and 13 classes the best 10 are selected inside, so each is a shape of its own.
    assert [survives(count) for count in (9, 9, 10, 8, 12, 12, 13)] == [False, True, True, False, False, True, False]


def test_settings_have_graphs_of_their_own() -> None:
    graphed = GraphedForward(lambda images, factor: images.sum() * factor, kept=2, capture=Captured)
    assert [float(graphed(torch.ones(3), settings=(factor,))) for factor in (2, 5, 2)] == [6.0, 15.0, 6.0]
    assert graphed.captures == 2


def test_a_vocabulary_of_the_same_size_is_written_where_graphs_read_it() -> None:
    engine = TorchEngine(small_model(pad_len=10), InferenceConfig(device="cpu", threads=1))
    engine.set_text(torch.randn(9, 32))
    engine._graph = GraphedForward(lambda images: images, capture=Captured)
    places, given = [item.data_ptr() for item in engine._held], torch.randn(10, 32)
    engine.set_text(given)
    assert [item.data_ptr() for item in engine._held] == places
    assert torch.equal(engine._held[0], given)
    assert engine._held[1].tolist() == [1.0] * 10
    engine.set_text(given[:3])
    assert given.data_ptr() not in (engine._text.data_ptr(), engine._held[0].data_ptr())


def on_host(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.uint8)


def test_images_of_one_shape_share_a_host_buffer() -> None:
    allocated: list[tuple[int, ...]] = []
    memory = PageLocked(lambda shape: allocated.append(shape) or on_host(shape))
    rng = np.random.default_rng(0)
    for height, count in ((4, 2), (4, 1), (4, 2), (6, 1), (6, 3)):
        images = rng.integers(0, 256, (count, height, 5, 3), dtype=np.uint8)[:, :, ::-1]  # as mirrored views
        images.flags.writeable = False
        assert np.array_equal(memory.images(0, images).numpy(), images)
    assert allocated == [(2, 4, 5, 3), (1, 6, 5, 3), (3, 6, 5, 3)]  # fewer need none of their own


def test_images_of_one_batch_do_not_overwrite_each_other() -> None:
    memory = PageLocked(on_host)
    images = [np.full((2, 2, 3), value, np.uint8) for value in (1, 2, 3)]
    sent = [memory.images(place, [image]) for place, image in enumerate(images)]
    assert [int(item.max()) for item in sent] == [1, 2, 3]
