"""What a frame costs by kind of model, counted on tensors without values: `python -m bench.models`."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from bench.traffic import Traffic, traffic_of
from semla_ros.segmentation.inference import InferenceMode
from semla_ros.segmentation.model import CatSeg, CatSegConfig
from semla_ros.segmentation.protocol import SegmentationModel
from semla_ros.segmentation.sed import Sed, SedConfig

IMAGE = (720, 1280)
SIZES = ((768, 768), (480, 768))  # of SED: published, and 16:9 with little distortion


def counted(classes: int) -> dict[str, Traffic]:
    """Traffic of one frame of each published B size, by its name."""
    with torch.device("meta"):
        ways: list[tuple[str, SegmentationModel, InferenceMode]] = [
            ("catseg-b whole", CatSeg(CatSegConfig.catseg_b()), "whole"),
            ("catseg-b sliding", CatSeg(CatSegConfig.catseg_b()), "sliding"),
        ]
        for size in SIZES:
            model = Sed(replace(SedConfig.sed_b(), working_resolution=size))
            ways.append((f"sed-b {size[0]}x{size[1]}", model, "whole"))
    return {name: traffic_of(model.eval(), mode, IMAGE, classes) for name, model, mode in ways}


def table(classes: int) -> str:
    """The counts as Markdown."""
    found = counted(classes)
    most = found["catseg-b sliding"].flops
    lines = [f"| {classes} classes | GFLOP | of catseg-b sliding | weights read (MB) |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {name} | {item.flops / 1e9:.0f} | {item.flops / most:.2f} | {item.weight_bytes / 1e6:.0f} |"
        for name, item in found.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=19, metavar="N", help="default: %(default)s")
    print(table(parser.parse_args().classes))
