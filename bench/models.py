"""What a frame costs by kind of model, counted without values and timed: `python -m bench.models --repeats 3`.

Times are those of one thread of this machine, in plain PyTorch, with random weights: ratios of one run count.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from torch import Tensor

from bench.threads import torch_threads
from bench.traffic import Traffic, traffic_of
from semla_ros.segmentation.class_buckets import bucket_size
from semla_ros.segmentation.inference import InferenceMode, probability_maps
from semla_ros.segmentation.model import CatSeg, CatSegConfig
from semla_ros.segmentation.protocol import SegmentationModel
from semla_ros.segmentation.sed import Sed, SedConfig

IMAGE = (720, 1280)
SIZES = ((768, 768), (480, 768))  # of SED: published, and 16:9 with little distortion
BASELINE = "catseg-b sliding"

Ways = dict[str, tuple[SegmentationModel, InferenceMode]]  # model and view, by name


def published_ways() -> Ways:
    """The published B sizes, on torch's default device."""
    catseg = CatSeg(CatSegConfig.catseg_b()).eval()
    ways: Ways = {"catseg-b whole": (catseg, "whole"), BASELINE: (catseg, "sliding")}
    for size in SIZES:
        model = Sed(replace(SedConfig.sed_b(), working_resolution=size))
        ways[f"sed-b {size[0]}x{size[1]}"] = (model.eval(), "whole")
    return ways


def counted(classes: int) -> dict[str, Traffic]:
    """Traffic of one frame each."""
    with torch.device("meta"):
        ways = published_ways()
    return {name: traffic_of(model, mode, IMAGE, classes) for name, (model, mode) in ways.items()}


def timed(ways: Ways, classes: int, repeats: int) -> dict[str, float]:
    """Seconds of one frame each, the least of some repeats; the ways take turns, after one unmeasured round."""
    image = torch.randint(0, 256, (3, *IMAGE), dtype=torch.uint8)
    seconds = dict.fromkeys(ways, float("inf"))
    with torch_threads(1), torch.inference_mode():
        for number in range(repeats + 1):
            for name, (model, mode) in ways.items():
                start = time.perf_counter()
                _answer(model, mode, image, classes)
                if number:
                    seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def _answer(model: SegmentationModel, mode: InferenceMode, image: Tensor, classes: int) -> Tensor:
    rows = bucket_size(classes, model.class_limit)
    text = torch.nn.functional.normalize(torch.ones(rows, *model.text_shape), dim=-1)
    presence = (torch.arange(rows) < classes).float()
    return probability_maps(lambda views: model(views, text, presence), model.config, image, mode)


def table(classes: int, repeats: int) -> str:
    """The counts as Markdown, and with repeats the times."""
    found = counted(classes)
    most = found[BASELINE].flops
    seconds = timed(published_ways(), classes, repeats) if repeats else {}
    lines = [
        f"| {classes} classes | GFLOP | of {BASELINE} | weights read (MB) |" + " s | of it |" * bool(seconds),
        "| --- | ---: | ---: | ---: |" + " ---: | ---: |" * bool(seconds),
    ]
    for name, item in found.items():
        row = f"| {name} | {item.flops / 1e9:.0f} | {item.flops / most:.2f} | {item.weight_bytes / 1e6:.0f} |"
        if seconds:
            row += f" {seconds[name]:.2f} | {seconds[name] / seconds[BASELINE]:.2f} |"
        lines.append(row)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=19, metavar="N", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=0, metavar="N", help="frames timed of each; default: none")
    arguments = parser.parse_args()
    print(table(arguments.classes, arguments.repeats))
