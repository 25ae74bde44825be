r"""Train the tiny models, a library for your own camera, or one adapter for a model of your own.

Examples:
  semla train all
  semla train library --benchmark camvid --data DIR --minutes 60 --out MY
  semla train adapter --name dusk --model catseg-l --library DIR \
    --images DIR --labels DIR --classes FILE
  semla train adapter --benchmark camvid --data DIR --domain dusk --library DIR
  semla train adapter --name dusk --library DIR \
    --from-bag BAG --worklist out/replay/worklist.json
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from semla_ros.commands.options import add_log_option, add_model_options, logging_to, output_folder
from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import ConfigError, DatasetError, LibraryError, VocabularyError, counted, known_names
from semla_ros.lab.processes import terminate_like_interrupt
from semla_ros.lab.report.progress import training_progress
from semla_ros.resources import find_model, share_folder
from semla_ros.results import AdapterMix

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from semla_ros.lab.evaluation.datasets.benchmark import DiskBenchmark, DomainImages
    from semla_ros.lab.training.adapter_training import AdapterTrainingConfig
    from semla_ros.lab.training.bag_samples import BagSamples, Stretch
    from semla_ros.lab.training.library_training import LibraryRun
    from semla_ros.lab.training.samples import SampleSource
    from semla_ros.segmentation.checkpoint import LoadedModel

_EMBEDDED = 16  # frames of a stretch of a worklist, about, by which unlike ones are told apart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla train`."""
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    text = "everything: CLIP, segmenter, adapters, library; resumable"
    everything = parts.add_parser("all", help=text, description=text)
    everything.add_argument(
        "--recipe", type=Path, help="YAML file; default: config/training.yaml; config/training_sed.yaml: a small SED"
    )
    everything.add_argument("--budget", type=float, default=1.0, help="factor on every number of steps (default 1)")
    everything.add_argument("--work", type=output_folder, default="out/training", help="progress and rendered images")
    everything.add_argument(
        "--model-out", type=output_folder, metavar="DIR", help="default: models/ and the recipe's name in out/training"
    )
    everything.add_argument("--library-out", type=output_folder, metavar="DIR", help="likewise, in adapters/")
    everything.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add_log_option(everything)
    _add_library_arguments(parts)
    adapter = parts.add_parser(
        "adapter",
        help="one LoRA adapter from images and labels, or from a bag",
        description="Train one adapter with peft and write it in the published folder layout, with its centroid.",
    )
    adapter.add_argument("--name", default="", help="folder name of the adapter; default: that of the --domain")
    adapter.add_argument("--images", type=Path, help="folder of images, searched recursively")
    adapter.add_argument("--labels", type=Path, help="folder of class-index images (PNG); 255 is not trained")
    adapter.add_argument("--classes", type=Path, help="text file, one class name a line, in index order")
    adapter.add_argument(
        "--label-map", type=Path, metavar="FILE", help="YAML or JSON: pixel value -> class name, or 'void'"
    )
    adapter.add_argument(
        "--trust-labels", action="store_true", help="go on where the base model sees the classes in another order"
    )
    file = adapter.add_argument_group("from a domain of a benchmark file, instead of --images and --labels")
    file.add_argument("--benchmark", default="", metavar="NAME|FILE", help="as for semla evaluate")
    file.add_argument("--data", type=Path, metavar="ROOT", help="folder that its images are below")
    file.add_argument("--domain", default="", metavar="NAME", help="its train split is trained on, its val measured")
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
    bag.add_argument("--group", type=int, default=0, metavar="N", help="the stretches of the worklist that are alike")
    bag.add_argument("--topic", action="append", default=[], help="image topic, repeatable; default: found by type")
    bag.add_argument(
        "--truth", action="append", default=[], metavar="TOPIC|DIR", help="ground truth as for semla replay"
    )
    bag.add_argument("--truth-tolerance", type=float, default=0.0, metavar="MS", help="stamps may differ by (0 ms)")
    bag.add_argument("--assume-encoding", default="", metavar="NAME", help="as for semla replay")
    bag.add_argument("--bits", type=int, default=0, metavar="N", help="as for semla replay")
    adapter.add_argument("--library", type=output_folder, required=True, help="folder to write the adapter into")
    add_model_options(adapter, what="base model")
    adapter.add_argument("--encoder", default="", help="scene encoder; default: the one that goes with the model")
    adapter.add_argument("--recipe", type=Path, help="YAML file with an 'adapter' part; default: as published")
    adapter.add_argument("--steps", type=int, help="optimiser steps (default: the recipe's, as published 2000)")
    adapter.add_argument("--batch-size", type=int, help="images a step (default: the recipe's, as published 2)")
    adapter.add_argument("--seed", type=int, help="of everything random (default: the recipe's, else 0)")
    adapter.add_argument("--device", default="auto")
    add_log_option(adapter)


def _add_library_arguments(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    library = parts.add_parser(
        "library",
        help="a model and a library for your own camera, from the labelled images of a benchmark file",
        description="Train the base model on the source domains, the scene encoder to tell the domains apart, and one "
        "adapter a domain; write a library. What is finished is kept, what was interrupted goes on.",
    )
    library.add_argument("--benchmark", required=True, metavar="FILE", help="YAML file, or the name of one that ships")
    library.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder that its patterns are below")
    library.add_argument(
        "--out", type=output_folder, required=True, metavar="MY", help="gets model/, library/ and work/"
    )
    add_model_options(library, what="base model to start from")
    library.add_argument("--recipe", type=Path, help="YAML file; default: config/own_camera.yaml")
    library.add_argument("--minutes", type=float, default=0.0, help="for all stages; default: the recipe's steps")
    library.add_argument("--stage", default="", help="segmenter, scene_encoder, adapters or library; default: all")
    library.add_argument(
        "--base",
        action=argparse.BooleanOptionalAction,
        help="train the base model and its scene encoder, too (default: those of the shipped kind only)",
    )
    library.add_argument("--trust-labels", action="store_true", help="as for an adapter")
    library.add_argument("--jobs", type=int, default=0, help="adapters at once (default: one per core; 1 on a GPU)")
    library.add_argument("--ray", default="", metavar="ADDRESS", help="on a Ray cluster that shares the folders")
    library.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add_log_option(library)


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen part."""
    from semla_ros.engines.torch_engine import choose_device

    terminate_like_interrupt()  # what was done is kept
    device = choose_device(arguments.device)
    with logging_to(arguments, f"train-{arguments.part}"):
        return _train(arguments, device)


def _train(arguments: argparse.Namespace, device: torch.device) -> int:
    if arguments.part == "adapter":
        return _train_adapter(arguments, device)
    if arguments.part == "library":
        return _train_library(arguments, device)
    from semla_ros.lab.training.recipe import Recipe, TrainingFolders, train_all

    recipe = Recipe.load(arguments.recipe or share_folder() / "config" / "training.yaml", arguments.budget)
    out = Path("out/training")
    folders = TrainingFolders(
        work=arguments.work / recipe.name,
        scenes=arguments.work / "scenes",
        model=arguments.model_out or output_folder(str(out / "models" / recipe.name)),
        library=arguments.library_out or output_folder(str(out / "adapters" / recipe.name)),
    )
    train_all(recipe, folders, device)
    print(f"model in {folders.model}, library in {folders.library}")
    return 0


def _train_library(arguments: argparse.Namespace, device: torch.device) -> int:
    from semla_ros.lab.evaluation.datasets.benchmark import load_benchmark
    from semla_ros.lab.training.library_training import STAGES, LibraryRecipe, library_run, train_library

    if arguments.stage and arguments.stage not in STAGES:
        raise ConfigError(f"unknown stage '{arguments.stage}'; {known_names(arguments.stage, STAGES)}")
    if arguments.minutes < 0 or arguments.jobs < 0:
        raise ConfigError("--minutes and --jobs must not be negative")
    run = library_run(
        LibraryRecipe.load(arguments.recipe or share_folder() / "config" / "own_camera.yaml"),
        load_benchmark(arguments.benchmark, arguments.data.expanduser(), "train"),
        find_model(arguments.model, arguments.model_dir),
        arguments.out,
        device=device,
        trains_base=arguments.base,
        jobs=arguments.jobs,
        ray_address=arguments.ray,
    )
    if not arguments.trust_labels and not run.work.exists():  # where it was begun they were looked at
        _check_labels(run)
    train_library(run, arguments.minutes, arguments.stage)
    print(f"model in {run.own_model}, library in {run.library}")
    return 0


def _check_labels(run: LibraryRun) -> None:
    """Refuse a domain whose class list is in another order than its labels."""
    from semla_ros.lab.training.label_order import check_label_order
    from semla_ros.segmentation.checkpoint import load_model

    base = load_model(run.model, run.device)
    for domain in (*run.sources, *run.benchmark.domain_names):
        class_names = run.benchmark.class_names(domain)
        tokens = base.tokenizer.tokenize(class_names, base.template)
        try:
            check_label_order(base.model, run.samples(domain, "train"), tokens, class_names, run.device)
        except DatasetError as error:
            raise DatasetError(f"domain '{domain}': {error}") from None


def _train_adapter(arguments: argparse.Namespace, device: torch.device) -> int:
    _check_source(arguments)
    from semla_ros.lab.training.label_order import check_label_order
    from semla_ros.segmentation.checkpoint import load_model

    base = load_model(find_model(arguments.model, arguments.model_dir))
    _check_library(arguments.library, base)
    source: SampleSource
    with ExitStack() as stack:
        if arguments.benchmark:
            arguments.name = arguments.name or arguments.domain
            source = images = _domain_images(arguments, base)
            class_names = list(images.class_names)
        elif arguments.from_bag is None:
            class_names, source = _folder_samples(arguments)
        else:
            class_names, stretches, samples = _bag_samples(arguments)
            source = stack.enter_context(samples)
            if arguments.worklist is not None:
                _take_group(arguments, base, stretches, samples)
            for problem in samples.problems:
                print(f"warning: {problem}", file=sys.stderr)
            print(f"{counted(len(source), 'labelled frame')} from {arguments.from_bag}: {samples.topics}")
        tokens = _tokens(base, class_names)
        if not arguments.trust_labels:
            check_label_order(base.model, source, tokens, class_names, device)
        status = _train_on(arguments, device, base, class_names, tokens, source)
    if arguments.benchmark:
        _validate(arguments, class_names)
    return status


def _check_library(library: Path, base: LoadedModel) -> None:
    """Refuse a library of another base model, before an adapter is trained that would spoil it."""
    from semla_ros.library.manifest import ModelReference, read_manifest

    stated = read_manifest(library).base
    used = ModelReference(id=base.model_id, sha256=base.sha256 if stated.sha256 else "")
    if difference := stated.difference(used):
        raise LibraryError(
            f"adapter library {library}: made for the base model with {difference} as '{base.path}'; "
            "train into a library of that model, or into a new folder"
        )


_OPTIONS = {  # what says where images come from -> what it needs, what else goes with it
    "benchmark": (("data", "domain"), ("classes",)),
    "from_bag": ((), ("classes", "label_map", "stretch", "worklist", "group", "topic", "truth", "truth_tolerance",
                      "assume_encoding", "bits")),
    "images": (("labels", "classes|label_map"), ()),
}  # fmt: skip


def _check_source(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything is loaded."""
    given = [name for name in _OPTIONS if getattr(arguments, name)]
    if len(given) != 1:
        ways = "--images with --labels, --from-bag stands instead of --images and --labels, and so does --benchmark"
        raise ConfigError(f"say where the images come from, in one way: {ways}")
    needed, others = _OPTIONS[given[0]]
    for names in needed:
        if not any(getattr(arguments, name) for name in names.split("|")):
            raise ConfigError(f"{_option(given[0])} needs {' or '.join(map(_option, names.split('|')))}")
    allowed = {given[0], *others, *(name for names in needed for name in names.split("|"))}
    for way, (needs, more) in _OPTIONS.items():
        for name in (way, *(item for names in needs for item in names.split("|")), *more):
            if getattr(arguments, name) and name not in allowed:
                raise ConfigError(f"{_option(name)} goes with {_option(way)}")
    if not arguments.name and not arguments.benchmark:
        raise ConfigError("--name is missing; an adapter is a folder, and its name a plain folder name")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _folder_samples(arguments: argparse.Namespace) -> tuple[list[str], SampleSource]:
    from semla_ros.lab.bags.label_map import read_class_list, read_label_map, trained_names
    from semla_ros.lab.training.samples import FolderSamples

    label_map = read_label_map(arguments.label_map) if arguments.label_map else {}
    class_names = read_class_list(arguments.classes) if arguments.classes else trained_names(label_map)
    return class_names, FolderSamples(arguments.images, arguments.labels, class_names, label_map)


def _benchmark(arguments: argparse.Namespace, split: str) -> DiskBenchmark:
    from semla_ros.lab.bags.label_map import read_class_list
    from semla_ros.lab.evaluation.datasets.benchmark import load_benchmark

    benchmark = load_benchmark(arguments.benchmark, arguments.data.expanduser(), split)
    return benchmark.with_classes(read_class_list(arguments.classes)) if arguments.classes else benchmark


def _domain_images(arguments: argparse.Namespace, base: LoadedModel) -> DomainImages:
    from semla_ros.lab.evaluation.subject import words_lacking

    benchmark = _benchmark(arguments, "train")
    names = benchmark.open(arguments.domain).class_names
    lacking = words_lacking(lambda some: base.tokenizer.tokenize(some, base.template), names)
    if lacking:
        print(f"not trained, as model '{arguments.model}' has no words for them: {', '.join(lacking)}", file=sys.stderr)
    return benchmark.without(lacking).open(arguments.domain)


def _tokens(base: LoadedModel, class_names: list[str]) -> Tensor:
    try:
        return base.tokenizer.tokenize(class_names, base.template)
    except VocabularyError as error:
        raise VocabularyError(
            f"class list: {error}; to leave a class out, give its pixels 255 in the labels, or call its value 'void' "
            "in a --label-map"
        ) from None


def _validate(arguments: argparse.Namespace, class_names: Sequence[str]) -> None:
    """Measure what the adapter is worth, as `semla evaluate` does, on images that were not trained on."""
    from semla_ros.lab.evaluation.protocol import domain_miou
    from semla_ros.lab.evaluation.subject import PipelineSpec
    from semla_ros.lab.evaluation.variants import equal_mix

    trained = _benchmark(arguments, "train").open(arguments.domain)
    benchmark = _benchmark(arguments, "val")
    benchmark = benchmark.without(set(benchmark.class_names(arguments.domain)) - set(class_names))
    try:
        images = benchmark.open(arguments.domain)
    except DatasetError as error:
        print(f"validation: none, there is no val split: {error}")
        return
    if seen := {path.image for path in images.paths} & {path.image for path in trained.paths}:
        print(f"validation: none, trained on {len(seen)} of its images; give '{arguments.domain}' a 'val_share'")
        return
    config = SemlaConfig(
        model=arguments.model,
        model_dir=arguments.model_dir,
        library=str(arguments.library),
        classes=tuple(class_names),
        inference=InferenceConfig(inference=benchmark.inference, device=arguments.device, engine="torch"),
    )
    subject = PipelineSpec(config=config).load(1)
    left_out: list[str] = []
    mixes = AdapterMix(), equal_mix([arguments.name])
    before, after = (domain_miou(subject, images, mix, left_out) for mix in mixes)
    wrong = dict.fromkeys(left_out)
    for line in wrong:
        print(f"left out of the validation: {line}", file=sys.stderr)
    if len(wrong) == len(images):
        print("validation: none, not one image can be used")
        return
    classes = counted(len(class_names), "class", "classes")
    print(
        f"validation mIoU of '{arguments.domain}' on {counted(len(images) - len(wrong), 'image')} not trained on, "
        f"{classes}: {100 * before:.1f} before, {100 * after:.1f} with the adapter"
    )


def _take_group(
    arguments: argparse.Namespace, base: LoadedModel, stretches: Sequence[Stretch], samples: BagSamples
) -> None:
    """Keep the stretches of one kind of scene, which an adapter is for; refuse several where none is chosen."""
    from semla_ros.adaptation.scene_embedding import SceneEncoder
    from semla_ros.adaptation.scene_encoder_files import encoder_of
    from semla_ros.lab.training.bag_samples import alike
    from semla_ros.library.manifest import read_manifest

    encoder = SceneEncoder.load(arguments.encoder or encoder_of(base.path))
    labelled = [index for index in range(len(stretches)) if samples.of_stretch(index)]
    embeddings = []
    for stretch in labelled:
        indices = samples.of_stretch(stretch)
        some = indices[:: max(1, len(indices) // _EMBEDDED)]
        embeddings.append(encoder.embed_batch([samples.image(index) for index in some]))
    entries = read_manifest(arguments.library).adapters.values() if arguments.library.is_dir() else ()
    known = [entry.spread_p95 for entry in entries if entry.spread_p95]
    groups = [[labelled[at] for at in group] for group in alike(embeddings, median(known) if known else 0.0)]
    if arguments.group > len(groups) or (len(groups) > 1 and not arguments.group):
        shown = "; ".join(f"{n}: {', '.join(str(stretches[at]) for at in g)}" for n, g in enumerate(groups, start=1))
        raise ConfigError(
            f"worklist {arguments.worklist}: {counted(len(labelled), 'stretch', 'stretches')} with ground truth, of "
            f"{counted(len(groups), 'kind')} of scene, and an adapter is for one: choose it with --group ({shown})"
        )
    samples.take(groups[max(arguments.group, 1) - 1])


def _bag_samples(arguments: argparse.Namespace) -> tuple[list[str], list[Stretch], BagSamples]:
    bag = arguments.from_bag
    from semla_ros.lab.bags.frames import FrameOptions
    from semla_ros.lab.bags.label_map import read_class_list, read_label_map, trained_names
    from semla_ros.lab.training.bag_samples import BagSamples, Stretch, bag_class_names, read_worklist

    stretches = [Stretch.parse(text) for text in arguments.stretch]
    if arguments.worklist is not None:
        stretches += read_worklist(arguments.worklist, bag)
    label_map = read_label_map(arguments.label_map) if arguments.label_map else {}
    if arguments.classes is not None:
        class_names = read_class_list(arguments.classes)
    else:
        class_names = trained_names(label_map) or list(bag_class_names(bag))
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
    return class_names, stretches, BagSamples(bag, class_names, options, stretches)


def _train_on(
    arguments: argparse.Namespace,
    device: torch.device,
    base: LoadedModel,
    class_names: Sequence[str],
    tokens: Tensor,
    source: SampleSource,
) -> int:
    from semla_ros.adaptation.scene_embedding import SceneEncoder
    from semla_ros.adaptation.scene_encoder_files import encoder_of
    from semla_ros.lab.training.adapter_training import train_adapter
    from semla_ros.lab.training.loop import Run
    from semla_ros.lab.training.samples import data_digest
    from semla_ros.library.adapter_files import AdapterReader
    from semla_ros.library.importing import change_manifest, completed_entry
    from semla_ros.library.manifest import AdapterEntry

    data = data_digest(source)  # every file is read before hours are spent
    encoder = SceneEncoder.load(arguments.encoder or encoder_of(base.path))
    config = adapter_config(arguments)
    target = arguments.library / arguments.name
    if target.exists():
        raise ConfigError(f"{target} exists already; remove it, or choose another name")
    state = arguments.library / f".{arguments.name}.training"
    made_from = {"base model": base.sha256, "class list": "\n".join(class_names), "data": data}
    with training_progress(f"train adapter {arguments.name}", config.loop.steps) as (_, on_step):
        statistics = train_adapter(
            base.model,
            source,
            tokens,
            config,
            name=arguments.name,
            library=arguments.library,
            encoder=encoder,
            run=Run(device=device, state_file=state, on_step=on_step, made_from=made_from),
        )
    entry = completed_entry(AdapterEntry(), AdapterReader().read(arguments.library, arguments.name))
    change_manifest(
        arguments.library,
        lambda manifest: replace(manifest, adapters={**manifest.adapters, arguments.name: entry}),
    )
    state.unlink()
    print(
        f"adapter '{arguments.name}' in {target}: rank {config.rank}, alpha {config.alpha}, centroid of "
        f"{counted(statistics.images, 'image')}, mean distance {statistics.spread_mean:.3g} "
        f"(95 % within {statistics.spread_p95:.3g})"
    )
    return 0


def adapter_config(arguments: argparse.Namespace) -> AdapterTrainingConfig:
    """The recipe's settings, or the published ones; what is named on the command line counts before both."""
    from semla_ros.lab.training.adapter_training import published_adapter_training
    from semla_ros.lab.training.recipe import adapter_recipe

    named = {key: getattr(arguments, key) for key in ("steps", "batch_size", "seed")}
    named = {key: value for key, value in named.items() if value is not None}
    if not arguments.recipe:
        return published_adapter_training(**named)
    config = adapter_recipe(arguments.recipe)
    return replace(config, loop=replace(config.loop, **named))
