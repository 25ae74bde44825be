"""Measure mIoU over the domains: zero-shot, uniform, SemLA, late fusion, oracle, each with and without the own adapter.

    semla evaluate --seeds 0 1 2 --images 100 --html out/report.html
    semla evaluate --variants paper extra --domains monsoon-rain --images 20
    semla evaluate --drive --seeds 0 --markdown out/drive.md
    semla evaluate --drive steady --images 0 --frames ~/images --frame-rate 2
    semla evaluate --benchmark semla20 --data ~/datasets --model catseg-l

The world's scenes are rendered by seed; test scenes are never seen in training. With --benchmark semla20
the published 20 domains are read from the folders that the data sets come in, and with a file of your own your images.
With --drive the drift gate is measured on drives; see docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semla_ros.atomic_files import write_atomically
from semla_ros.commands.options import (
    Listed,
    add_library_option,
    add_log_option,
    add_model_options,
    add_view_options,
    logging_to,
    output_file,
    view_settings,
)
from semla_ros.commands.tables import print_table
from semla_ros.config import InferenceConfig, RetrievalConfig, SemlaConfig
from semla_ros.errors import ConfigError, DatasetError, ImageError, counted
from semla_ros.lab.evaluation.datasets.benchmark import DiskBenchmark, load_benchmark
from semla_ros.lab.evaluation.drives import KINDS, make_drives
from semla_ros.lab.evaluation.protocol import Benchmark, JobResult, Plan, make_plan
from semla_ros.lab.evaluation.protocol import run as run_plan
from semla_ros.lab.evaluation.sources import WorldBenchmark
from semla_ros.lab.evaluation.variants import VARIANTS, choose_variants
from semla_ros.lab.processes import terminate_like_interrupt
from semla_ros.lab.report.experiment_log import log_scalars
from semla_ros.lab.report.progress import progress
from semla_ros.library.finding import find_library
from semla_ros.resources import find_model

if TYPE_CHECKING:
    from semla_ros.lab.evaluation.aggregate import Evaluation
    from semla_ros.lab.evaluation.following import Look
    from semla_ros.lab.evaluation.kept import KeptResults
    from semla_ros.lab.evaluation.subject import PipelineSpec, PipelineSubject

_SHOWN = 20  # lines about images that were left out
MOST_WORKERS = 8  # each holds a model; the shipped one is small, published ones are not


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla evaluate`."""
    what = parser.add_argument_group("what to evaluate")
    what.add_argument(
        "--benchmark",
        default="world",
        metavar="NAME|FILE",
        help="world (default), semla20, camvid, idd_lite, or a benchmark file",
    )
    what.add_argument("--data", type=Path, metavar="ROOT", help="folder that a benchmark file's images are below")
    what.add_argument(
        "--classes",
        action=Listed,
        default=[],
        metavar="NAME",
        help="of a benchmark file: score these alone; default: all that the model has words for",
    )
    what.add_argument(
        "--seeds", type=int, action=Listed, default=[0], metavar="N", help="test seeds, 0 to 99; default: 0"
    )
    what.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="per domain and seed, 0 = all on disk; default: 100. Of a drive: whose masks are compared; default: 40",
    )
    what.add_argument(
        "--drive",
        action=Listed,
        nargs="*",
        metavar="KIND",
        help=f"measure the drift gate on drives; default: {', '.join(KINDS)}",
    )
    what.add_argument(
        "--frames", type=Path, metavar="DIR", help="with --drive: photographs of a drive, in order of name"
    )
    what.add_argument("--frame-rate", type=float, default=2.0, metavar="HZ", help="of the photographs; default: 2")
    what.add_argument("--domains", action=Listed, metavar="NAME", help="only these; default: all, and the unseen ones")
    what.add_argument(
        "--variants",
        action=Listed,
        default=["paper"],
        metavar="NAME",
        help=f"paper (default), extra, all, or any of: {', '.join(VARIANTS)}",
    )
    add_log_option(parser)
    subject = parser.add_argument_group("model and library")
    add_model_options(subject)
    add_library_option(subject)
    subject.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: auto")
    add_view_options(subject, default=None, shown="what the benchmark says")
    subject.add_argument("--temperature", type=float, help="default: what the library recommends")
    subject.add_argument("--top-k", type=int, help="likewise")
    subject.add_argument("--distance", choices=("euclidean", "cosine"), help="likewise")
    subject.add_argument("--min-weight", type=float, help="drop adapters below this weight; likewise")
    subject.add_argument("--fade", action=argparse.BooleanOptionalAction, help="fade out of the library; likewise")
    out = parser.add_argument_group("output")
    out.add_argument("--json", type=output_file, metavar="FILE", help="all figures and per-image weights")
    out.add_argument("--html", type=output_file, metavar="FILE", help="one page with plots that needs no other file")
    out.add_argument("--markdown", type=output_file, metavar="FILE", help="the table of results for a README")
    out.add_argument(
        "--cards", action="store_true", help="put the figures into the cards of the model and its adapters"
    )
    where = parser.add_argument_group("where it runs; the figures are the same")
    where.add_argument(
        "--jobs",
        "--workers",
        type=int,
        metavar="N",
        help="processes, each with a model; default: one per core, at most 8; 1 on a GPU",
    )
    where.add_argument("--ray", default="", metavar="ADDRESS", help="run on a Ray cluster: auto, local or host:port")


def run(arguments: argparse.Namespace, *, spec: PipelineSpec | None = None, benchmark: Benchmark | None = None) -> int:
    """Run the command; `spec` and `benchmark` stand in for what the options describe."""
    check(arguments)
    with logging_to(arguments, "evaluate"):
        return _run(arguments, spec, benchmark)


def _run(arguments: argparse.Namespace, spec: PipelineSpec | None, benchmark: Benchmark | None) -> int:
    if arguments.drive is not None:
        return _run_drives(arguments, spec or make_spec(arguments, WorldBenchmark()))
    if benchmark is None and arguments.benchmark != "world":
        benchmark = load_benchmark(arguments.benchmark, arguments.data.expanduser())
        if arguments.classes:
            benchmark = benchmark.with_classes(arguments.classes)
        benchmark.check(arguments.domains or list(benchmark.domains))  # before a large model is loaded
    benchmark = benchmark or WorldBenchmark()
    return _run_protocol(arguments, benchmark, spec or make_spec(arguments, benchmark))


def check(arguments: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is loaded.

    Raises:
        ConfigError: They do.
    """
    if arguments.benchmark != "world" and arguments.data is None:
        raise ConfigError(
            f"'--benchmark {arguments.benchmark}' needs '--data ROOT', the folder that holds the data sets"
        )
    if arguments.benchmark == "world" and arguments.classes:
        raise ConfigError("'--classes' goes with '--benchmark FILE'; the world has its own classes")
    if len(set(arguments.seeds)) != len(arguments.seeds):
        raise ConfigError(f"'--seeds' must differ from each other, got {arguments.seeds}")
    if arguments.images is None:
        arguments.images = 100 if arguments.drive is None else 40
    if arguments.images < 0:
        raise ConfigError(f"'--images' must be 0 or more, got {arguments.images}")
    if not 0 < arguments.frame_rate <= 1000:
        raise ConfigError(f"'--frame-rate' must be above 0 and at most 1000, got {arguments.frame_rate:g}")
    if arguments.frames is not None and arguments.drive is None:
        raise ConfigError("'--frames' is measured with '--drive'; add it, with no kind for the photographs alone")
    for path in filter(None, (arguments.json, arguments.html, arguments.markdown)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error}") from None
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ConfigError(f"'--jobs' must be at least 1, got {arguments.jobs}")
    if arguments.ray and arguments.drive is not None:
        raise ConfigError("'--ray' goes with domains; drives are measured on this machine")


def default_jobs(device: str) -> int:
    """One process per core with one thread each is fastest on CPUs; a GPU takes one process."""
    import torch

    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return 1
    return max(1, min(os.cpu_count() or 1, MOST_WORKERS))


def make_spec(arguments: argparse.Namespace, benchmark: Benchmark | None = None) -> PipelineSpec:
    """The model under test as the options and the benchmark describe it."""
    from semla_ros.lab.evaluation.subject import PipelineSpec

    on_disk = benchmark if isinstance(benchmark, DiskBenchmark) else None
    view = view_settings(arguments)
    view["inference"] = view["inference"] or (on_disk.inference if on_disk else "whole")
    overrides = {
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "distance": arguments.distance,
        "min_weight": arguments.min_weight,
        "fade_out_of_library": arguments.fade,
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    replace(RetrievalConfig(), **given)  # a bad value is told before models are loaded
    config = SemlaConfig(
        model=arguments.model,
        model_dir=arguments.model_dir,
        library=arguments.library,
        # A published model has no class list of its own; each domain brings its own when its turn comes.
        classes=on_disk.class_names(next(iter(arguments.domains or on_disk.domains))) if on_disk else (),
        inference=InferenceConfig(**view, device=arguments.device, engine="torch"),
    )
    return PipelineSpec(config=config, retrieval=given)


def _run_protocol(arguments: argparse.Namespace, benchmark: Benchmark, spec: PipelineSpec) -> int:
    from semla_ros.lab.evaluation.aggregate import Evaluation, as_json
    from semla_ros.lab.report.embedding_map import Scenery
    from semla_ros.lab.report.evaluation_page import write_html
    from semla_ros.lab.report.evaluation_tables import markdown_table, terminal_tables

    terminate_like_interrupt()  # it keeps what it has
    subject = spec.load(1)  # as many threads as each of several jobs has: sums keep their order
    if isinstance(benchmark, DiskBenchmark):
        domains = arguments.domains or benchmark.domains
        lacking = subject.lacking(name for domain in domains for name in benchmark.class_names(domain))
        benchmark = benchmark.without(lacking)
        if lacking:
            print(
                f"not scored, as model '{arguments.model}' has no words for them: {', '.join(lacking)}", file=sys.stderr
            )
    plan = make_plan(
        benchmark,
        subject.adapter_names,
        choose_variants(arguments.variants),
        domains=arguments.domains,
        seeds=arguments.seeds,
        images=arguments.images,
    )
    kept = _kept_results(arguments, plan, spec)
    try:
        evaluation = Evaluation.collect(plan, run_with_progress(plan, spec, subject, arguments, kept))
    except KeyboardInterrupt:
        print(
            f"interrupted; {'the same command goes on where it stopped' if kept else 'nothing is kept without --json'}"
        )
        return 130
    results = as_json(evaluation)
    results["subject"] = dict(subject.description)
    if isinstance(benchmark, DiskBenchmark) and benchmark.left_out:
        results["subject"]["classes not scored"] = ", ".join(benchmark.left_out)
    for line in _wrong_orders(evaluation):
        print(f"warning: {line}", file=sys.stderr)
    for table in terminal_tables(results):
        print_table(table)
        print()
    log_scalars(_figures(results), 0)
    if arguments.json:
        write_json(results, arguments.json)
    if arguments.html:
        centroids = dict(zip(subject.adapter_names, subject.centroids, strict=True))
        families = {name: benchmark.family(name) for name in (*centroids, *plan.all_domains)}
        scenery = Scenery(points=evaluation.embeddings, centroids=centroids, families=families)
        write_html(results, arguments.html, scenery=scenery, command=_command_line())
    if arguments.markdown:
        write_text(markdown_table(results), arguments.markdown)
    if arguments.cards and not evaluation.left_out:
        _write_cards(arguments, results)
    if kept and not evaluation.left_out:
        kept.remove()
    _say_written(arguments)
    return _say_left_out(evaluation, arguments)


def _say_left_out(evaluation: Evaluation, arguments: argparse.Namespace) -> int:
    """Name what was not scored; returns the exit status."""
    lines = [line for lines in evaluation.left_out.values() for line in lines]
    for line in lines[:_SHOWN]:
        print(f"left out: {line}", file=sys.stderr)
    if len(lines) > _SHOWN:
        print(f"and {len(lines) - _SHOWN} more; '--json FILE' lists them all", file=sys.stderr)
    if lines:
        again = "; once they are mended, the same command scores them alone" if arguments.json else ""
        cards = ", and not in the cards" if arguments.cards else ""
        print(f"the figures are without {counted(len(lines), 'image')}{cards}{again}", file=sys.stderr)
    return 1 if lines else 0


def _figures(results: Mapping[str, Any]) -> dict[str, float]:
    """What a log is told: mIoU by domain and variant, and the means over the domains."""
    figures = {f"h_mean/{variant}": value for variant, value in results["h_mean"].items()}
    for group in ("domains", "unseen", "source"):
        for domain, scores in results[group].items():
            figures |= {f"{domain}/{variant}": value for variant, value in scores.items()}
    return {name: value for name, value in figures.items() if value is not None}


def _wrong_orders(evaluation: Evaluation) -> Iterator[str]:
    """Domains whose labels another order of the class list explains far better, by what the base model sees in them."""
    from semla_ros.lab.training.label_order import wrong_order

    plan = evaluation.plan
    for name in plan.all_domains if any(variant.name == "zero_shot" for variant in plan.variants) else ():
        counts = np.sum([evaluation.counts[name, "zero_shot", seed] for seed in plan.seeds], axis=0)
        if words := wrong_order(counts, evaluation.class_names[name]):
            yield f"domain '{name}': {words}"


def _kept_results(arguments: argparse.Namespace, plan: Plan, spec: PipelineSpec) -> KeptResults | None:
    """Where the results of single jobs are kept until the figures are written; None without `--json`."""
    if not arguments.json:
        return None
    from semla_ros.lab.evaluation.kept import KeptResults

    folders = [find_model(arguments.model, arguments.model_dir), _library(arguments)]
    files = [path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob("*"))]
    part = arguments.json.with_name(arguments.json.name + ".part")
    return KeptResults(part, plan, repr(spec), [path for path in files if path.is_file()])


def _run_drives(arguments: argparse.Namespace, spec: PipelineSpec) -> int:
    from semla_ros.lab.evaluation import following
    from semla_ros.lab.report.drive_tables import drive_table, markdown_drives, photograph_table

    kinds = arguments.drive or (KINDS if arguments.frames is None else ())
    drives = [(seed, drive) for seed in arguments.seeds for drive in make_drives(seed, kinds)]
    subject = spec.load(1)  # one thread, since drives are measured side by side
    with progress() as bars:
        total = sum(len(drive.times_s()) for _, drive in drives)
        task = bars.add_task("driving", total=total)
        rows = following.measure_all(
            spec,
            [drive for _, drive in drives],
            images=arguments.images,
            workers=arguments.jobs or default_jobs(arguments.device),
            on_drive=lambda drive: bars.advance(task, len(drive.times_s())),
        )
    results: dict[str, Any] = {
        "seeds": arguments.seeds,
        "images": arguments.images,
        "subject": dict(subject.description),
        "drift": dataclasses.asdict(subject.drift),
    }
    if drives:
        names = [f"{seed}: {drive.name}" for seed, drive in drives]
        by_name = dict(zip(names, rows, strict=True))
        kind_of = {name: drive.kind for name, (_, drive) in zip(names, drives, strict=True)}
        results |= {"summary": following.summary(by_name, kind_of), "drives": by_name}
        print_table(drive_table(results["summary"]))
        print()
    if arguments.frames is not None:
        looks = _photographs(arguments, subject)
        retrieve = subject.retriever(subject.recommended).retrieve
        results["photographs"] = following.photograph_scores(looks, subject.drift, retrieve)
        print_table(photograph_table(results["photographs"]))
        print()
    if arguments.json:
        write_json(results, arguments.json)
    if arguments.markdown and drives:
        write_text(markdown_drives(results["summary"]), arguments.markdown)
    _say_written(arguments)
    return 0


def _photographs(arguments: argparse.Namespace, subject: PipelineSubject) -> list[Look]:
    """A look at each."""
    from semla_ros.image_files import read_image
    from semla_ros.lab.evaluation.following import Look
    from semla_ros.lab.training.samples import image_files

    retriever = subject.retriever(subject.recommended)
    looks = []
    for index, path in enumerate(image_files(arguments.frames.expanduser(), "photograph")):
        try:
            embedding = subject.embed(read_image(path))
        except ImageError as error:
            print(f"warning: left out: {error}", file=sys.stderr)
            continue
        stamp_ns = round(index / arguments.frame_rate * 1e9)
        looks.append(Look(stamp_ns=stamp_ns, embedding=embedding, mix=retriever.retrieve(embedding)))
    if not looks:
        raise DatasetError(f"{arguments.frames}: none of its images can be read")
    return looks


def _write_cards(arguments: argparse.Namespace, results: Mapping[str, Any]) -> None:
    from semla_ros.lab.report.evaluation_tables import write_card_figures

    model = find_model(arguments.model, arguments.model_dir)
    folder = model if model.is_dir() else model.parent
    written = write_card_figures(results, _library(arguments), folder, _command_line())
    print(f"figures in {counted(len(written), 'card')}")


def _library(arguments: argparse.Namespace) -> Path:
    return find_library(arguments.library, model=arguments.model, model_dir=arguments.model_dir)


def run_with_progress(
    plan: Plan,
    spec: PipelineSpec,
    subject: PipelineSubject,
    arguments: argparse.Namespace,
    kept: KeptResults | None = None,
) -> list[JobResult]:
    """Run a plan with a bar for its images; see `protocol.run`."""
    jobs = arguments.jobs or (0 if arguments.ray else default_jobs(arguments.device))
    total = sum(len(job.indices) for job in plan.jobs())
    with progress() as bars:
        advance = partial(bars.advance, bars.add_task("evaluating", total=total))
        return run_plan(
            plan, spec, jobs=jobs, ray_address=arguments.ray, subject=subject, kept=kept, on_progress=advance
        )


def write_json(results: Mapping[str, Any], path: Path) -> None:
    """Write figures: indented, but one line per image in the traces, so that files stay readable and small."""
    traces = results.get("weights")
    head = {key: value for key, value in results.items() if key != "weights"}
    text = json.dumps(head, indent=1, allow_nan=False)
    if traces is not None:
        lines = [
            f"  {json.dumps(name)}: [\n"
            + ",\n".join(f"   {json.dumps(item, allow_nan=False)}" for item in items)
            + "\n  ]"
            for name, items in traces.items()
        ]
        text = text[:-2] + ',\n "weights": {\n' + ",\n".join(lines) + "\n }\n}"
    write_text(text + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a file, making its folder.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None


def _say_written(arguments: argparse.Namespace) -> None:
    written = [str(path) for path in (arguments.json, arguments.html, arguments.markdown) if path]
    if written:
        print(f"written: {', '.join(written)}")


def _command_line() -> str:
    return shlex.join(["semla", *sys.argv[1:]])
