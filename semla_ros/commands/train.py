"""Train the tiny models, or one adapter for a model of your own.

Examples:
  semla train all
  semla train adapter --name dusk --model catseg-l --images DIR --labels DIR --classes FILE --library DIR
  semla train adapter --name dusk --from-bag BAG --worklist out/replay/worklist.json --library DIR
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from semla_ros.errors import ConfigError
from semla_ros.lab.report.progress import training_progress
from semla_ros.resources import find_model, share_folder

if TYPE_CHECKING:
    import torch

    from semla_ros.lab.training.adapter_training import AdapterTrainingConfig
    from semla_ros.lab.training.bag_samples import BagSamples
    from semla_ros.lab.training.samples import SampleSource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla train`."""
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    text = "everything: CLIP, segmenter, adapters, library; resumable"
    everything = parts.add_parser("all", help=text, description=text)
    everything.add_argument("--recipe", type=Path, help="YAML file; default: config/training.yaml")
    everything.add_argument("--budget", type=float, default=1.0, help="factor on every number of steps (default 1)")
    everything.add_argument("--work", type=Path, default=Path("out/training"), help="progress and rendered images")
    everything.add_argument("--model-out", type=Path, default=Path("out/training/models/semla-tiny"))
    everything.add_argument("--library-out", type=Path, default=Path("out/training/adapters/semla-tiny"))
    everything.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    adapter = parts.add_parser(
        "adapter",
        help="one LoRA adapter from images and labels, or from a bag",
        description="Train one adapter with peft and write it in the published folder layout, with its centroid.",
    )
    adapter.add_argument("--name", required=True, help="folder name of the adapter")
    adapter.add_argument("--images", type=Path, help="folder of images, searched recursively")
    adapter.add_argument("--labels", type=Path, help="folder of 8-bit class-index PNGs; 255 is ignored")
    adapter.add_argument("--classes", type=Path, help="text file, one class name a line, in index order")
    bag = adapter.add_argument_group("from a bag, instead of --images and --labels")
    bag.add_argument("--from-bag", type=Path, metavar="BAG", help="train on its frames that have ground truth")
    bag.add_argument(
        "--stretch",
        action="append",
        default=[],
        metavar="START:END",
        help="seconds after the first image, repeatable; default: the whole bag",
    )
    bag.add_argument("--worklist", type=Path, metavar="FILE", help="stretches from semla replay --propose-adapter")
    bag.add_argument("--topic", action="append", default=[], help="image topic, repeatable; default: found by type")
    bag.add_argument(
        "--truth", action="append", default=[], metavar="TOPIC|DIR", help="ground truth as for semla replay"
    )
    bag.add_argument("--truth-tolerance", type=float, default=0.0, metavar="MS", help="stamps may differ by (0 ms)")
    bag.add_argument("--label-map", type=Path, metavar="FILE", help="YAML or JSON: pixel value -> class name")
    bag.add_argument("--assume-encoding", default="", metavar="NAME", help="as for semla replay")
    bag.add_argument("--bits", type=int, default=0, metavar="N", help="as for semla replay")
    adapter.add_argument("--library", type=Path, required=True, help="folder to write the adapter into")
    adapter.add_argument("--model", default="semla-tiny", help="base model id or checkpoint")
    adapter.add_argument("--model-dir", default="", help="where model files are")
    adapter.add_argument("--encoder", default="", help="scene encoder; default: the one that goes with the model")
    adapter.add_argument("--recipe", type=Path, help="YAML file with an 'adapter' part; default: as published")
    adapter.add_argument("--steps", type=int, default=2000, help="with the published settings (default 2000)")
    adapter.add_argument("--batch-size", type=int, default=2, help="with the published settings (default 2)")
    adapter.add_argument("--seed", type=int, default=0)
    adapter.add_argument("--device", default="auto")


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen part."""
    from semla_ros.engines.torch_engine import choose_device

    device = choose_device(arguments.device)
    if arguments.part == "adapter":
        return _train_adapter(arguments, device)
    from semla_ros.lab.training.recipe import Recipe, TrainingFolders, train_all

    recipe = Recipe.load(arguments.recipe or share_folder() / "config" / "training.yaml", arguments.budget)
    folders = TrainingFolders(work=arguments.work, model=arguments.model_out, library=arguments.library_out)
    train_all(recipe, folders, device)
    print(f"model in {folders.model}, library in {folders.library}")
    return 0


def _train_adapter(arguments: argparse.Namespace, device: torch.device) -> int:
    with ExitStack() as stack:
        if arguments.from_bag is None:
            class_names, source = _folder_samples(arguments)
        else:
            class_names, samples = _bag_samples(arguments)
            source = stack.enter_context(samples)
            for problem in samples.problems:
                print(f"warning: {problem}", file=sys.stderr)
            print(f"{len(source)} labelled frames from {arguments.from_bag}: {samples.topics}")
        return _train_on(arguments, device, class_names, source)


def _folder_samples(arguments: argparse.Namespace) -> tuple[list[str], SampleSource]:
    for name in ("images", "labels", "classes"):
        if getattr(arguments, name) is None:
            raise ConfigError(f"--{name} is missing; give --images, --labels and --classes, or --from-bag")
    for name in ("stretch", "worklist", "topic", "truth", "truth_tolerance", "label_map", "assume_encoding", "bits"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name.replace('_', '-')} goes with --from-bag")
    from semla_ros.lab.training.samples import FolderSamples

    class_names = _class_names(arguments.classes)
    return class_names, FolderSamples(arguments.images, arguments.labels, len(class_names))


def _bag_samples(arguments: argparse.Namespace) -> tuple[list[str], BagSamples]:
    bag = arguments.from_bag
    if arguments.images is not None or arguments.labels is not None:
        raise ConfigError("--from-bag stands instead of --images and --labels; give one of the two")
    from semla_ros.lab.bags.frames import FrameOptions
    from semla_ros.lab.bags.label_map import read_label_map
    from semla_ros.lab.training.bag_samples import BagSamples, Stretch, bag_class_names, read_worklist

    stretches = [Stretch.parse(text) for text in arguments.stretch]
    if arguments.worklist is not None:
        stretches += read_worklist(arguments.worklist, bag)
    label_map = read_label_map(arguments.label_map) if arguments.label_map else {}
    if arguments.classes is not None:
        class_names = _class_names(arguments.classes)
    elif label_map:
        class_names = list(dict.fromkeys(name for _, name in sorted(label_map.items())))
    else:
        class_names = list(bag_class_names(bag))
    if not class_names:
        raise ConfigError(f"bag {bag}: it has no label topic with class names; give --classes or --label-map")
    options = FrameOptions(
        topics=tuple(arguments.topic),
        truth=tuple(arguments.truth) or ("auto",),
        label_map=label_map,
        truth_tolerance_ms=arguments.truth_tolerance,
        assume_encoding=arguments.assume_encoding,
        bits=arguments.bits,
    )
    return class_names, BagSamples(bag, class_names, options, stretches)


def _train_on(arguments: argparse.Namespace, device: torch.device, class_names: list[str], source: SampleSource) -> int:
    from semla_ros.adaptation.scene_embedding import SceneEncoder
    from semla_ros.adaptation.scene_encoder_files import encoder_of
    from semla_ros.lab.training.adapter_training import train_adapter
    from semla_ros.lab.training.loop import Run
    from semla_ros.library.adapter_files import AdapterReader
    from semla_ros.library.adapter_library import AdapterLibrary
    from semla_ros.library.importing import completed_entry
    from semla_ros.library.manifest import AdapterEntry, change_manifest
    from semla_ros.segmentation.checkpoint import load_model
    from semla_ros.segmentation.targets import lora_signature

    model_path = find_model(arguments.model, arguments.model_dir)
    base = load_model(model_path)
    tokens = base.tokenizer.tokenize(class_names, base.template)
    for index in range(len(source)):
        source.mask(index)  # every label is checked before hours are spent
    encoder = SceneEncoder.load(arguments.encoder or encoder_of(base.path))
    config = _adapter_config(arguments)
    target = arguments.library / arguments.name
    if target.exists():
        raise ConfigError(f"{target} exists already; remove it, or choose another name")
    arguments.library.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".training.", dir=arguments.library))
    try:
        with training_progress(f"train adapter {arguments.name}", config.loop.steps) as (_, on_step):
            statistics = train_adapter(
                base.model,
                source,
                tokens,
                config,
                name=arguments.name,
                library=staging,
                encoder=encoder,
                run=Run(device=device, on_step=on_step),
            )
        # What was written must load before it joins the library.
        AdapterLibrary.load(staging, targets=lora_signature(base.model)).adapter(arguments.name).layers  # noqa: B018
        (staging / arguments.name).rename(target)
        entry = completed_entry(AdapterEntry(), AdapterReader().read(arguments.library, arguments.name))
        change_manifest(
            arguments.library,
            lambda manifest: replace(manifest, adapters={**manifest.adapters, arguments.name: entry}),
        )
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    print(
        f"adapter '{arguments.name}' in {target}: rank {config.rank}, alpha {config.alpha}, centroid of "
        f"{statistics.images} images, mean distance {statistics.spread_mean:.3g} "
        f"(95 % within {statistics.spread_p95:.3g})"
    )
    return 0


def _adapter_config(arguments: argparse.Namespace) -> AdapterTrainingConfig:
    from semla_ros.lab.training.adapter_training import published_adapter_training
    from semla_ros.lab.training.recipe import adapter_recipe

    if arguments.recipe:
        return adapter_recipe(arguments.recipe)
    return published_adapter_training(arguments.steps, arguments.batch_size, arguments.seed)


def _class_names(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ConfigError(f"class list {path}: {error.strerror}; give a text file with one class name a line") from None
    return [name for name in names if name]
