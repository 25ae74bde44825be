"""Segment image files, each with the adapters that fit its scene.

    semla segment street.png fog.jpg --out out/segment
    semla segment *.png --model catseg-l --library adapters/catseg-l --inference sliding --classes road car sky

Writes <name>_mask.png (class index per pixel, 255 = unlabelled; 16 bits above 254 classes) and <name>_overlay.png, and
prints the mix, the time and the peak memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import SemlaError
from semla_ros.image_files import read_image
from semla_ros.labels import overlay, palette_of
from semla_ros.results import BASE_MODEL, Frame, Segmentation
from semla_ros.serving.memory import peak_resident_bytes
from semla_ros.timing import Stopwatch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla segment`."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument("--model", default=SemlaConfig.model, help="id or path; default: %(default)s")
    parser.add_argument("--model-dir", default="", metavar="DIR", help="where model files are looked for first")
    parser.add_argument("--library", default="", metavar="DIR", help="adapter library; default: the model's own")
    parser.add_argument("--out", type=Path, default=Path("out/segment"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--classes", nargs="+", default=(), metavar="NAME", help="default: the model's own list")
    parser.add_argument("--inference", choices=("whole", "sliding"), default="whole", help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores but one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Segment the images; 0, or 2 through SemlaError on bad input, before anything is written."""
    images = [read_image(path) for path in arguments.images]
    import torch

    from semla_ros.pipeline import PerceptionPipeline

    inference = InferenceConfig(inference=arguments.inference, device=arguments.device, threads=arguments.threads)
    config = SemlaConfig(
        model=arguments.model,
        model_dir=arguments.model_dir,
        library=arguments.library,
        classes=tuple(arguments.classes),
        inference=inference,
    )
    watch = Stopwatch()
    with watch.stage("load"):
        pipeline = PerceptionPipeline.load(config)
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = pipeline.class_names
    records = []
    for path, image, stem in zip(arguments.images, images, _unique_stems(arguments.images), strict=True):
        pipeline.reset_gate()  # each image is a scene of its own
        result, step = pipeline.process(Frame(image=image, stamp_ns=0))
        if step.error is not None:
            raise SemlaError(step.error)
        mask_file, overlay_file = (arguments.out / f"{stem}_{kind}.png" for kind in ("mask", "overlay"))
        Image.fromarray(result.mask).save(mask_file)
        Image.fromarray(overlay(image, result.mask, palette_of(names))).save(overlay_file)
        latency_ms = {**step.latency_ms, **result.latency_ms}
        files = {"image": str(path), "mask": str(mask_file), "overlay": str(overlay_file)}
        records.append({**files, **_record(result, latency_ms, names)})
    summary = {
        "model": arguments.model,
        "inference": arguments.inference,
        "classes": list(names),
        "threads": torch.get_num_threads(),
        "load_s": watch.latency_ms["load"] / 1e3,
        "peak_memory_mib": peak_resident_bytes() / 2**20,
        "images": records,
    }
    if arguments.json:
        json.dump(summary, sys.stdout, indent=2)
        print()
    else:
        _show(summary, records, arguments.out)
    return 0


def _unique_stems(paths: Sequence[Path]) -> list[str]:
    """File names without suffix; a number is added where two would be the same."""
    seen: Counter[str] = Counter()
    stems = []
    for path in paths:
        seen[path.stem] += 1
        stems.append(path.stem if seen[path.stem] == 1 else f"{path.stem}-{seen[path.stem]}")
    return stems


def _record(result: Segmentation, latency_ms: Mapping[str, float], class_names: Sequence[str]) -> dict[str, object]:
    indices, counts = np.unique(result.mask, return_counts=True)
    mix = result.generation.mix
    return {
        "mix": mix.as_dict(),
        "base_weight": mix.base_weight,
        "share_of_pixels": {
            class_names[index]: round(count / result.mask.size, 4)
            for index, count in zip(indices.tolist(), counts.tolist(), strict=True)
            if index < len(class_names)
        },
        "latency_ms": {stage: round(value, 3) for stage, value in latency_ms.items()},
    }


def _show(summary: dict[str, object], records: Sequence[dict[str, object]], out: Path) -> None:
    console = Console()
    table = Table("image", "adapters", "largest classes", "adapt (ms)", "segment (ms)", box=None, header_style="bold")
    for record in records:
        latency, mix, share = record["latency_ms"], record["mix"], record["share_of_pixels"]
        assert isinstance(latency, dict)
        assert isinstance(mix, dict)
        assert isinstance(share, dict)
        adaptation = sum(latency.get(stage, 0.0) for stage in ("embed", "retrieve", "prepare", "commit"))
        largest = sorted(share.items(), key=lambda item: -item[1])[:3]
        table.add_row(
            Path(str(record["image"])).name,
            ", ".join(f"{name} {weight:.2f}" for name, weight in mix.items() if weight >= 0.005) or BASE_MODEL,
            ", ".join(f"{name} {part:.0%}" for name, part in largest),
            f"{adaptation:.0f}",
            f"{latency['total']:.0f}",
        )
    console.print(table)
    console.print(
        f"loaded in {summary['load_s']:.1f} s, peak memory {summary['peak_memory_mib']:.0f} MiB, "
        f"{summary['threads']} threads; masks and overlays in {out}/"
    )
