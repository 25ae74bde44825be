import dataclasses
import itertools

import torch
from fake_tensorrt import FakeToolkit
from torch import Tensor, nn

from semla_ros.engines import export
from semla_ros.engines.cache import EngineCache
from semla_ros.engines.tensorrt import runtime
from semla_ros.engines.tensorrt.runtime import TensorRtRuntime
from semla_ros.segmentation.fixed_component import DECODER, FixedComponent


class Windows(nn.Module):
    """Weights of one shape, whatever the settings, as in attention over windows."""

    def __init__(self, *, heads: int = 2, window: int = 4, size: tuple[int, int] = (4, 4), offset: float = 0.0) -> None:
        super().__init__()
        self.heads, self.window, self.size = heads, window, size
        self.projection = nn.Linear(8, 8)
        nn.init.ones_(self.projection.weight)
        nn.init.ones_(self.projection.bias)
        self.register_buffer("offset", torch.tensor(offset), persistent=False)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x) + self.offset


def component(module: nn.Module) -> FixedComponent:
    return FixedComponent(
        name="windows",
        module=module,
        inputs=(torch.zeros(1, 8),),
        input_names=("x",),
        max_batch=8,
        original=module.forward,
        shadow=(),
    )


def test_settings_that_change_no_weight_are_part_of_the_digest() -> None:
    changes: list[dict] = [{}, {"heads": 4}, {"window": 2}, {"size": (2, 8)}, {"offset": 1.0}]
    digests = [component(Windows(**change)).digest for change in changes]
    for (one, first), (other, second) in itertools.combinations(zip(changes, digests, strict=True), 2):
        assert first != second, f"{one} and {other}"
    assert component(Windows()).digest == digests[0]


def test_weights_and_buffers_are_part_of_the_digest() -> None:
    for name in ("projection.weight", "projection.bias", "count"):  # the last of no dimension
        module = Windows()
        before = component(module).digest
        module.state_dict()[name].add_(1)
        assert component(module).digest != before, name


def test_heads_and_configuration_of_the_real_model_are_part_of_the_digest(world) -> None:
    whole = component(world.model)
    before = whole.digest
    assert dataclasses.replace(whole).digest == before
    attention = world.model.clip.visual.transformer.resblocks[0].attn
    attention.heads += 1
    assert dataclasses.replace(whole).digest != before
    attention.heads -= 1
    aggregator = world.model.aggregator
    plain = aggregator.config
    aggregator.config = dataclasses.replace(plain, window=1)
    assert dataclasses.replace(whole).digest != before
    aggregator.config = plain
    assert dataclasses.replace(whole).digest == before


def test_running_a_model_and_mounting_its_components_leave_the_digests_as_they_were(world) -> None:
    before = [item.digest for item in world.components]
    decoder = world.component(DECODER)
    with decoder.mount(decoder.original):
        world.torch_engine.segment(world.images[0])
        assert [dataclasses.replace(item).digest for item in world.components] == before


def test_a_plan_of_another_export_revision_has_another_key(world, monkeypatch, tmp_path) -> None:
    tensorrt = TensorRtRuntime(FakeToolkit(world.components), cache=EngineCache(tmp_path))
    item = world.component(DECODER)
    before = tensorrt.key(item), export.export_key(item, "fp16")
    monkeypatch.setattr(runtime, "EXPORT_REVISION", export.EXPORT_REVISION + 1)
    monkeypatch.setattr(export, "EXPORT_REVISION", export.EXPORT_REVISION + 1)
    after = tensorrt.key(item), export.export_key(item, "fp16")
    assert before[0] != after[0]
    assert before[1] != after[1]
