"""Segment image files, each with the adapters that fit its scene.

    semla segment street.png fog.jpg --out out/segment
    semla segment *.png --model catseg-l --inference sliding --classes road,car

Writes <name>_mask.png (class index per pixel, 255 = unlabelled; 16 bits above 254 classes) and <name>_overlay.png, and
prints the mix, the time and the peak memory. An image that cannot be segmented is named, and the others follow.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from semla_ros.commands.options import (
    Listed,
    add_library_option,
    add_model_options,
    add_view_options,
    output_folder,
    unique_stems,
    view_settings,
)
from semla_ros.commands.tables import print_table
from semla_ros.errors import SemlaError, counted
from semla_ros.image_files import read_image
from semla_ros.results import BASE_MODEL
from semla_ros.serving.peak_memory import peak_resident_bytes
from semla_ros.timing import Stopwatch

if TYPE_CHECKING:
    from semla_ros.api.pipeline import Pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla segment`."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    add_model_options(parser)
    add_library_option(parser)
    parser.add_argument("--out", type=output_folder, default="out/segment", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--classes", action=Listed, default=(), metavar="NAME", help="what to look for; default: the model's own list"
    )
    add_view_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores but one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Segment the images; 0, 1 where some could not be, 2 where none could be, or through SemlaError."""
    import torch

    from semla_ros.api.pipeline import output_files

    watch, pipeline = Stopwatch(), None
    records: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    stems = unique_stems(arguments.images, lambda stem: output_files(arguments.out, stem).values())
    for path, stem in zip(arguments.images, stems, strict=True):
        try:
            image = read_image(path)
        except SemlaError as error:
            failed.append(_failure(path, error))
            continue
        if pipeline is None:
            with watch.stage("load"):
                pipeline = _load(arguments)
        try:
            result = pipeline(image)
        except SemlaError as error:
            failed.append(_failure(path, error))
            continue
        files = {kind: str(file) for kind, file in result.save(arguments.out, stem).items()}
        records.append({"image": str(path), **files, **result.as_json()})
    if pipeline is None:
        return 2
    summary = {
        "model": arguments.model,
        **view_settings(arguments),
        "classes": list(pipeline.classes),
        "threads": torch.get_num_threads(),
        "load_s": watch.latency_ms["load"] / 1e3,
        "peak_memory_mib": peak_resident_bytes() / 2**20,
        "images": records,
        "failed": failed,
    }
    if arguments.json:
        json.dump(summary, sys.stdout, indent=2)
        print()
    else:
        _show(summary, records, arguments.out)
    return 0 if not failed else 1 if records else 2


def _load(arguments: argparse.Namespace) -> Pipeline:
    from semla_ros.api.pipeline import Pipeline

    return Pipeline(
        arguments.model,
        library=arguments.library,
        classes=arguments.classes,
        model_dir=arguments.model_dir,
        **view_settings(arguments),
        device=arguments.device,
        threads=arguments.threads,
    )


def _failure(path: Path, error: SemlaError) -> dict[str, str]:
    text = str(error)
    print(f"semla segment: {text if str(path) in text else f'{path}: {text}'}", file=sys.stderr)
    return {"image": str(path), "error": text}


def _show(summary: dict[str, Any], records: Sequence[dict[str, Any]], out: Path) -> None:
    console = Console()
    table = Table("image", "adapters", "largest classes", box=None, header_style="bold")
    for heading in ("adapt (ms)", "segment (ms)"):
        table.add_column(heading, justify="right")
    for record in records:
        latency, mix, share = record["latency_ms"], record["mix"], record["share_of_pixels"]
        adaptation = sum(latency.get(stage, 0.0) for stage in ("embed", "retrieve", "prepare", "commit"))
        largest = list(share.items())[:3]
        table.add_row(
            Path(record["image"]).name,
            ", ".join(f"{name} {weight:.2f}" for name, weight in mix.items() if weight >= 0.005) or BASE_MODEL,
            ", ".join(f"{name} {part:.0%}" for name, part in largest),
            f"{adaptation:.0f}",
            f"{latency['total']:.0f}",
        )
    print_table(table, console)
    console.print(
        f"loaded in {summary['load_s']:.1f} s, peak memory {summary['peak_memory_mib']:.0f} MiB, "
        f"{counted(summary['threads'], 'thread')}; masks and overlays in {out}/"
    )
