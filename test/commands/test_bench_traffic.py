"""FLOPs and bytes counted on tensors without values, and the plan for Jetson made of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import jetson, models
from bench.random_world import random_model
from bench.traffic import adapted_bytes, count, frame_traffic, fusion_bytes, half_copy_bytes
from semla_ros.adaptation.weight_slabs import Scratch, WeightSlab
from semla_ros.engines.half_weights import HalfWeights
from semla_ros.segmentation.class_buckets import bucket_size


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def test_a_product_reads_its_inputs_and_weights_and_writes_its_output_and_views_cost_nothing() -> None:
    layer = nn.Linear(32, 8, device="meta")
    inputs = on_meta(4, 32)
    traffic = count(layer, lambda: layer(inputs.view(2, 2, 32).transpose(0, 1).transpose(0, 1).reshape(4, 32)))
    assert traffic.operators == [(2 * 4 * 32 * 8, 4 * (4 * 32 + 32 * 8 + 8 + 4 * 8))]
    assert traffic.weight_bytes == 4 * (32 * 8 + 8)
    expanded = on_meta(1, 32).expand(100, 32)
    assert count(layer, lambda: expanded + 1).bytes == 4 * (32 + 100 * 32)


def test_attention_is_one_operator_whose_scores_never_reach_the_memory() -> None:
    query, key, value = on_meta(1, 2, 10, 16), on_meta(1, 2, 30, 16), on_meta(1, 2, 30, 16)
    traffic = count(nn.Identity(), lambda: F.scaled_dot_product_attention(query, key, value))
    assert traffic.operators == [(2 * 2 * 2 * 10 * 30 * 16, 4 * 2 * 16 * (10 + 30 + 30 + 10))]


def test_memory_of_intermediate_results_is_counted_while_they_live() -> None:
    layer, inputs = nn.Identity(), on_meta(1000)

    def three_at_most() -> torch.Tensor:
        first = inputs + 1
        for _ in range(5):
            first = first * 2  # the one before goes
        return first

    assert count(layer, three_at_most).peak_bytes == 2 * 4000


@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_the_flops_of_a_frame_are_those_that_torch_counts_on_real_tensors(mode) -> None:
    traffic = frame_traffic("toy", mode, "fp32", (96, 128), classes=5)
    model = random_model("toy")
    config, views = model.config, 5 if mode == "sliding" else 1
    text = torch.randn(bucket_size(5, config.aggregator.pad_len), config.clip.embed_dim)
    # With gradients enabled a CPU computes as a GPU does, and not in groups that suit its caches.
    with FlopCounterMode(display=False) as counted:
        model(torch.zeros(views, 3, *config.working_resolution), text, torch.ones(len(text)))
    assert traffic.flops == pytest.approx(counted.get_total_flops(), rel=0.02)
    half = frame_traffic("toy", mode, "fp16", (96, 128), classes=5)
    assert half.flops == traffic.flops
    assert half.weight_bytes == traffic.weight_bytes / 2
    assert half.bytes < traffic.bytes


def test_no_prediction_is_below_the_roof_line_and_a_faster_memory_never_makes_it_longer() -> None:
    traffic = frame_traffic("toy", "whole", "fp16")
    for flops_per_s in (1e12, 1e14):
        times = [traffic.operators_ms(bandwidth, flops_per_s) for bandwidth in (1e9, 1e11, 1e13)]
        assert times == sorted(times, reverse=True)
        assert all(time >= traffic.floor_ms(b, flops_per_s) for time, b in zip(times, (1e9, 1e11, 1e13), strict=True))


def test_a_fusion_and_its_commit_move_what_they_are_seen_to_move_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(WeightSlab, "is_fixed", True)  # as where captured graphs read the weights
    slab = WeightSlab({str(row): nn.Linear(64, 32, bias=False) for row in range(3)}, {}, has_standby=True)
    assert count(nn.Identity(), lambda: slab.fuse([], Scratch(torch.device("cpu")))).bytes == 2 * slab.base.nbytes
    assert count(nn.Identity(), slab.swap).bytes == 2 * slab.base.nbytes
    beside, waiting = fusion_bytes("l", "fp32")
    assert beside == waiting == 2 * adapted_bytes("l")
    layer = nn.Linear(64, 32, device="meta")
    layer.text_tower = "none"
    copy = HalfWeights(layer, torch.float16)
    assert count(nn.Identity(), copy.refresh).bytes == 3 * copy.nbytes == 3 * 2 * (64 * 32 + 32)
    assert fusion_bytes("l", "fp16") == (beside, waiting + 3 * half_copy_bytes("l", "fp16"))


def test_the_plan_for_jetson_has_a_time_for_each_frame_and_says_what_fits(capsys) -> None:
    jetson.main()
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines}
    assert {
        "B, whole",
        "B, sliding",
        "L, whole",
        "L, sliding",
        "scene embedding",
        "fusion + commit, L in fp16",
    } <= rows.keys()
    assert rows["L, fp32, `double`"].endswith("| no | no | yes | yes | yes |")
    assert rows["B, fp16, `single`"].endswith("| yes | yes | yes | yes | yes |")
    # Measured on a CPU, docs/memory.md: 3004 and 4972 MiB.
    assert jetson.needed_mib("b", "fp32", "double", has_graphs=False) == pytest.approx(3004, rel=0.06)
    assert jetson.needed_mib("l", "fp32", "single", has_graphs=False) == pytest.approx(4972, rel=0.06)
    # A copy in half precision comes on top of the weights, it does not take their place.
    assert jetson.needed_mib("l", "fp16", "single") > jetson.needed_mib("l", "fp32", "single") + 1000


def test_a_frame_of_sed_asks_for_less_than_the_windows_of_cat_seg() -> None:
    flops = {name: item.flops for name, item in models.counted(classes=19).items()}
    assert flops["sed-b 768x768"] <= 0.6 * flops["catseg-b sliding"]
    assert flops["sed-b 480x768"] == pytest.approx(flops["sed-b 768x768"] * 480 / 768, rel=0.02)
