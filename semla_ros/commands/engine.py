"""Build, list, check and clean inference engines.

Examples:
  semla engine build --model semla-tiny
  semla engine build --model catseg-b --runtime tensorrt
  semla engine build --model catseg-b --runtime openvino
  semla engine list
  semla engine check --model semla-tiny --json
  semla engine clean --dry-run

Engines hold the parts of a model that adapters never change. They lie in $SEMLA_ENGINE_DIR, else in the user's cache
folder. 'build' serves nothing: it prepares a machine, so that the node starts with engines at hand. What is slower than
torch or answers otherwise is told and will not serve.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.scene_encoder_files import ENCODER_FILE
from semla_ros.config import InferenceConfig
from semla_ros.engines.cache import CacheEntry, EngineCache
from semla_ros.engines.choice import cpu_runtimes
from semla_ros.engines.component_engine import ComponentEngine, FastestEngine, Runtime
from semla_ros.engines.components import FixedComponent, fixed_components
from semla_ros.engines.export import EXPORT_REVISION, export_version, exported
from semla_ros.engines.gates import parity_problem
from semla_ros.engines.onnx_engine import OnnxRuntime, servable
from semla_ros.engines.openvino_engine import OpenVinoRuntime
from semla_ros.engines.tensorrt.build import provision
from semla_ros.engines.tensorrt.builder import load_tensorrt
from semla_ros.engines.tensorrt.engine import TensorRtEngine
from semla_ros.engines.tensorrt.runtime import TensorRtToolkit
from semla_ros.engines.torch_engine import TorchEngine, street_scenes
from semla_ros.errors import ConfigError, EngineError
from semla_ros.pipeline_parts import PUBLISHED_ENCODER
from semla_ros.resources import find_model
from semla_ros.results import ImageArray
from semla_ros.segmentation.checkpoint import load_model

PROBE_CLASSES = ("road", "building", "sky", "car")  # for models without a class list of their own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla engine`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    build = actions.add_parser(
        "build",
        help="make the engines of a model and say which will serve",
        description="Make the engines of a model, compare them with torch, and serve nothing.",
        epilog="example: semla engine build --model semla-tiny",
    )
    _model_arguments(build)
    build.add_argument(
        "--runtime",
        choices=("auto", "onnx", "openvino", "tensorrt"),
        default="auto",
        help="auto: tensorrt on a CUDA device that has it, else the fastest of what is installed; default: %(default)s",
    )
    build.add_argument(
        "--precision", choices=("fp16", "fp32"), default="fp16", help="of TensorRT plans; default: %(default)s"
    )
    build.set_defaults(act=_build)

    listing = actions.add_parser(
        "list",
        help="a table of the engines",
        description="Show the engines on this machine.",
        epilog="example: semla engine list",
    )
    listing.set_defaults(act=_list)

    check = actions.add_parser(
        "check",
        help="verify the files, and compare a model's engines with torch",
        description="Verify every file and compare a model's exported graphs, in each runtime that is installed, with "
        "torch; exit status 2 where a file is damaged or an answer in fp32 is wrong. An engine that is only slower "
        "than torch, or another precision that differs too much, is no error: it does not serve.",
        epilog="example: semla engine check --model semla-tiny",
    )
    _model_arguments(check)
    check.set_defaults(act=_check)

    clean = actions.add_parser(
        "clean",
        help="remove engines that no longer serve",
        description="Remove damaged engines, those of other versions, what builds left that were interrupted over an "
        "hour ago, and the notes that keep a plan from being built again.",
        epilog="example: semla engine clean --all --dry-run",
    )
    clean.add_argument("--all", action="store_true", help="remove every engine")
    clean.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    clean.set_defaults(act=_clean)

    for sub in (build, listing, check, clean):
        sub.add_argument("--folder", type=Path, help="where engines lie (default: see 'semla engine --help')")
        sub.add_argument("--json", action="store_true", help="for scripts")


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="semla-tiny", help="model id or path; default: %(default)s")
    parser.add_argument("--model-dir", default="", help="where models are looked for first")
    parser.add_argument("--encoder", default="", help="scene encoder (default: the one beside the model, or published)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = physical cores; default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Run one action; returns the exit status."""
    # What is refused is part of the answer here, not a warning beside it.
    logging.getLogger("semla_ros.engines").setLevel(logging.ERROR)
    status: int = arguments.act(arguments)
    return status


@dataclass(frozen=True, eq=False)
class _Subject:
    """A loaded model with everything that its engines are compared on."""

    torch_engine: TorchEngine
    components: list[FixedComponent]
    scenes: list[ImageArray]
    notes: list[str]


def _load(arguments: argparse.Namespace) -> _Subject:
    path = find_model(arguments.model, arguments.model_dir)
    config = InferenceConfig(device=arguments.device, engine="torch", threads=arguments.threads)
    loaded = load_model(path)
    torch_engine = TorchEngine(loaded.model, config)
    notes: list[str] = []
    encoder = _encoder(arguments, path, torch_engine.device, notes)
    tokens = loaded.tokenizer.tokenize(loaded.class_names or PROBE_CLASSES, loaded.template)
    with torch.inference_mode():
        torch_engine.set_text(loaded.model.encode_text(tokens.to(torch_engine.device)))
    scenes = street_scenes(loaded.model)
    return _Subject(torch_engine, fixed_components(loaded.model, encoder, probe_scenes=scenes), scenes, notes)


def _encoder(arguments: argparse.Namespace, model: Path, device: torch.device, notes: list[str]) -> SceneEncoder | None:
    if arguments.encoder or (model / ENCODER_FILE).is_file():
        return SceneEncoder.load(arguments.encoder or model, model_dir=arguments.model_dir, device=device)
    try:
        return SceneEncoder.load(PUBLISHED_ENCODER, model_dir=arguments.model_dir, device=device)
    except ConfigError as error:
        notes.append(f"scene encoder left out: {error}")
        return None


def _build(arguments: argparse.Namespace) -> int:
    cache = EngineCache(arguments.folder)
    subject = _load(arguments)
    runtime = _runtime(arguments.runtime, subject.torch_engine.device)
    engine: ComponentEngine
    failures: dict[str, str] = {}
    with _progress() as progress:
        if runtime != "tensorrt":
            runtimes = _runtimes(runtime, subject.torch_engine.device, cache, arguments.threads)
            candidates = servable(subject.components, subject.torch_engine.device)
            task = progress.add_task("export", total=len(candidates))
            ready = []
            for component in candidates:
                progress.update(task, description=f"export {component.name}")
                try:
                    exported(component, cache)
                    ready.append(component)
                except EngineError as error:
                    failures[component.name] = str(error)
                progress.advance(task)
            progress.update(task, description="compare with torch")
            engine = FastestEngine(subject.torch_engine, ready, runtimes, probe_images=subject.scenes)
        else:
            toolkit = TensorRtToolkit(subject.torch_engine.device)
            shown = _Shown(progress)
            outcome = provision(subject.components, toolkit, cache, precision=arguments.precision, report=shown.report)
            failures = {name: text for name, text in outcome.items() if text not in ("built", "present")}
            ready = [component for component in subject.components if component.name not in failures]
            engine = TensorRtEngine(
                subject.torch_engine,
                ready,
                toolkit,
                probe_images=subject.scenes,
                cache=cache,
                precision=arguments.precision,
                builds=False,
            )
        engine.warm_up()
    rows = _judged(engine, failures)
    _print_judged(arguments, cache, runtime, rows, [*subject.notes, *engine.notes])
    engine.close()
    return 2 if failures else 0


def _runtime(wanted: str, device: torch.device) -> str:
    if wanted != "auto" or device.type != "cuda":
        return wanted
    try:
        load_tensorrt()
    except EngineError:
        return "onnx"
    return "tensorrt"


def _runtimes(wanted: str, device: torch.device, cache: EngineCache, threads: int) -> list[Runtime]:
    """What runs exported graphs; "auto" is what the node would try."""
    if wanted == "openvino":
        return [OpenVinoRuntime(device, cache=cache, threads=threads)]
    if wanted == "onnx" or device.type == "cuda":
        return [OnnxRuntime(device, cache=cache, threads=threads)]
    return cpu_runtimes(device, cache=cache, threads=threads)


def _judged(engine: ComponentEngine, failures: dict[str, str]) -> list[dict[str, Any]]:
    """One row for each runner that was compared, and for each component that could not be made."""
    rows: list[dict[str, Any]] = [
        {
            "component": verdict.name,
            "runtime": verdict.runtime,
            "serves": verdict.name in engine.serving and engine.verdicts[verdict.name] is verdict,
            "cosine": _known(verdict.cosine, 6),
            "deviation": _known(verdict.deviation, 6),
            "torch_ms": _known(verdict.torch_ms, 3),
            "engine_ms": _known(verdict.engine_ms, 3),
            "reason": verdict.reason.partition(": ")[2],
        }
        for verdict in engine.comparisons
    ]
    unknown = dict.fromkeys(("cosine", "deviation", "torch_ms", "engine_ms"))
    rows += [
        {"component": name, "runtime": "", "serves": False, **unknown, "reason": reason}
        for name, reason in failures.items()
    ]
    return rows


def _known(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _print_judged(
    arguments: argparse.Namespace, cache: EngineCache, runtime: str, rows: Sequence[dict[str, Any]], notes: list[str]
) -> None:
    if arguments.json:
        answer = {"runtime": runtime, "folder": str(cache.folder), "components": rows, "notes": notes}
        print(json.dumps(answer, indent=2))
        return
    where = "the fastest runtime" if runtime == "auto" else runtime
    table = Table(title=f"{arguments.model} in {where}, engines in {cache.folder}", title_justify="left")
    for name in ("component", "runtime", "serves"):
        table.add_column(name)
    for name in ("torch ms", "engine ms", "cosine"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["component"],
            row["runtime"],
            "yes" if row["serves"] else "no",
            _figure(row["torch_ms"], 2),
            _figure(row["engine_ms"], 2),
            _figure(row["cosine"], 6),
        )
    console = Console()
    console.print(table)
    for note in notes:
        console.print(Text(f"torch goes on: {note}"))


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _list(arguments: argparse.Namespace) -> int:
    cache = EngineCache(arguments.folder)
    entries = cache.entries()
    if arguments.json:
        print(json.dumps({"folder": str(cache.folder), "engines": [_entry_row(entry) for entry in entries]}, indent=2))
        return 0
    if not entries:
        print(f"no engines in {cache.folder}; 'semla engine build' makes them")
        return 0
    table = Table(title=f"engines in {cache.folder}", title_justify="left")
    table.add_column("component", no_wrap=True)
    for name in ("runtime", "version", "device", "precision", "model"):
        table.add_column(name)
    table.add_column("MB", justify="right")
    for entry in entries:
        key = entry.key
        table.add_row(
            key.component,
            key.runtime,
            key.runtime_version,
            key.device,
            key.precision,
            key.model_digest[:12],
            f"{entry.num_bytes / 1e6:.1f}",
        )
    Console().print(table)
    return 0


def _entry_row(entry: CacheEntry) -> dict[str, Any]:
    key = entry.key
    return {
        "component": key.component,
        "runtime": key.runtime,
        "runtime_version": key.runtime_version,
        "device": key.device,
        "precision": key.precision,
        "shapes": key.shapes,
        "model_digest": key.model_digest,
        "path": str(entry.path),
        "bytes": entry.num_bytes,
        "problem": entry.problem,
    }


def _check(arguments: argparse.Namespace) -> int:
    cache = EngineCache(arguments.folder)
    entries = cache.entries(verify=True)
    damaged = [entry for entry in entries if entry.problem]
    subject = _load(arguments)
    present = {(entry.key.component, entry.key.model_digest) for entry in entries if entry.key.runtime == "onnx"}
    candidates = [
        component
        for component in servable(subject.components, subject.torch_engine.device)
        if (component.name, component.digest) in present
    ]
    rows: list[dict[str, Any]] = []
    if candidates and not damaged:
        runtimes = _runtimes("auto", subject.torch_engine.device, cache, arguments.threads)
        engine = FastestEngine(subject.torch_engine, candidates, runtimes, probe_images=subject.scenes)
        engine.warm_up()
        rows = _judged(engine, {})
        wrong = [
            f"{item.name} in {item.runtime}"
            for item in engine.comparisons
            if parity_problem(item.cosine, item.deviation) and not item.runtime.endswith("bf16")
        ]
        notes = [*subject.notes, *engine.notes]
        engine.close()
    else:
        wrong, notes = [], list(subject.notes)
    if arguments.json:
        answer = {
            "folder": str(cache.folder),
            "files": len(entries),
            "damaged": [_entry_row(entry) for entry in damaged],
            "components": rows,
            "wrong": wrong,
            "notes": notes,
        }
        print(json.dumps(answer, indent=2))
    else:
        for entry in damaged:
            print(f"damaged: {entry.path.name}: {entry.problem}; 'semla engine clean' removes it")
        if rows:
            _print_judged(arguments, cache, "auto", rows, notes)
        intact = len(entries) - len(damaged)
        print(f"{cache.folder}: {intact} engines intact, {len(damaged)} damaged, {len(wrong)} with a wrong answer")
    return 2 if damaged or wrong else 0


def _clean(arguments: argparse.Namespace) -> int:
    cache = EngineCache(arguments.folder)
    current = {"onnx": export_version()}
    with contextlib.suppress(EngineError):  # without TensorRT nothing says which of its plans are outdated
        current["tensorrt"] = str(load_tensorrt().__version__)

    def unwanted(entry: CacheEntry) -> bool:
        key = entry.key
        is_outdated = key.runtime_version != current.get(key.runtime, key.runtime_version) or (
            key.runtime == "tensorrt" and key.export_revision != str(EXPORT_REVISION)
        )
        return bool(arguments.all or entry.problem or is_outdated)

    if arguments.dry_run:
        removed = [entry for entry in cache.entries(verify=True) if unwanted(entry)]
    else:
        removed = cache.clean(unwanted)
    if arguments.json:
        print(json.dumps({"removed": [_entry_row(entry) for entry in removed], "dry_run": arguments.dry_run}, indent=2))
        return 0
    for entry in removed:
        print(f"{entry.path.name}: {entry.problem or entry.key.runtime_version}")
    megabytes = sum(entry.num_bytes for entry in removed) / 1e6
    verb = "would be removed" if arguments.dry_run else "removed"
    print(f"{cache.folder}: engines {verb}: {len(removed)}, {megabytes:.1f} MB")
    return 0


def _progress() -> Progress:
    """A bar on the error output, so that the answer can be piped."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
    )


class _Shown:
    """A bar for each component that is built."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def report(self, name: str, share: float, phase: str) -> None:
        """Move the component's bar."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1.0)
        self._progress.update(self._tasks[name], completed=share, description=f"{name} {phase}")
