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
import itertools
import json
import logging
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from semla_ros.commands.options import add_model_options, output_folder
from semla_ros.commands.tables import print_table
from semla_ros.engines.cache import CacheEntry, EngineCache
from semla_ros.errors import ConfigError, EngineError, SemlaError, counted

if TYPE_CHECKING:  # torch and what stands on it, imported where a model is loaded
    from semla_ros.engines.component_engine import Runtime
    from semla_ros.engines.gates import Verdict
    from semla_ros.engines.torch_engine import TorchEngine
    from semla_ros.results import ImageArray
    from semla_ros.segmentation.fixed_component import FixedComponent

ACTIONS = {  # name -> summary, description, example
    "build": (
        "make the engines of a model and say which will serve",
        "Make the engines of a model, compare them with torch, and serve nothing.",
        "--model semla-tiny",
    ),
    "list": ("a table of the engines", "Show the engines on this machine.", ""),
    "check": (
        "verify the files, and compare a model's engines with torch",
        "Verify every file and compare what was built for a model, in each runtime that is installed, with torch; exit "
        "status 2 where a file is damaged or an answer in fp32 is wrong. An engine that is only slower than torch, or "
        "another precision that differs too much, is no error: it does not serve.",
        "--model semla-tiny",
    ),
    "clean": (
        "remove engines that no longer serve",
        "Remove damaged engines, those of other versions, and what builds left that were interrupted over an hour ago.",
        "--all --dry-run",
    ),
}
PROBE_CLASSES = ("road", "building", "sky", "car")  # for models without a class list of their own
FIGURES = {"cosine": 6, "deviation": 6, "torch_ms": 3, "engine_ms": 3}  # of a verdict -> digits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla engine`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    subs = {}
    for name, (summary, description, example) in ACTIONS.items():
        epilog = f"example: semla engine {name} {example}".rstrip()
        subs[name] = actions.add_parser(name, help=summary, description=description, epilog=epilog)
    for name in ("build", "check"):
        _model_arguments(subs[name])
    subs["build"].add_argument(
        "--runtime",
        choices=("auto", "onnx", "openvino", "tensorrt"),
        default="auto",
        help="auto: tensorrt on a CUDA device that has it, else the fastest of what is installed; default: %(default)s",
    )
    subs["clean"].add_argument("--all", action="store_true", help="remove every engine")
    subs["clean"].add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    for sub in subs.values():
        sub.add_argument("--folder", type=Path, help="where engines lie (default: see 'semla engine --help')")
        sub.add_argument("--json", action="store_true", help="for scripts")


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("--encoder", default="", help="scene encoder (default: the one beside the model, or published)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = physical cores; default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Run one action; returns the exit status."""
    # What is refused is part of the answer here, not a warning beside it.
    logging.getLogger("semla_ros.engines").setLevel(logging.ERROR)
    act = {"build": _build, "list": _list, "check": _check, "clean": _clean}[arguments.action]
    return act(arguments, EngineCache(arguments.folder))


class _Subject:
    """A loaded model with everything that its engines are compared on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        from semla_ros.config import InferenceConfig
        from semla_ros.engines.components import fixed_components
        from semla_ros.engines.probe_images import probe_images
        from semla_ros.engines.torch_engine import TorchEngine
        from semla_ros.resources import find_model
        from semla_ros.segmentation.checkpoint import load_model

        path = find_model(arguments.model, arguments.model_dir)
        config = InferenceConfig(device=arguments.device, engine="torch", threads=arguments.threads)
        loaded = load_model(path)
        self.notes: list[str] = []
        self.torch_engine: TorchEngine = TorchEngine(loaded.model, config)
        self.device = self.torch_engine.device
        encoder = self._encoder(arguments, path)
        tokens = loaded.tokenizer.tokenize(loaded.class_names or PROBE_CLASSES, loaded.template)
        with torch.inference_mode():
            self.torch_engine.set_text(loaded.model.encode_text(tokens.to(self.device)))
        self.scenes: list[ImageArray] = probe_images(*loaded.model.config.working_resolution)
        self.components: list[FixedComponent] = fixed_components(loaded.model, encoder, probe_scenes=self.scenes)

    def _encoder(self, arguments: argparse.Namespace, model: Path) -> Any:
        from semla_ros.adaptation.scene_embedding import SceneEncoder
        from semla_ros.adaptation.scene_encoder_files import encoder_of
        from semla_ros.resources import PUBLISHED_ENCODER

        source = arguments.encoder or encoder_of(model)
        try:
            return SceneEncoder.load(source, model_dir=arguments.model_dir, device=self.device)
        except ConfigError as error:
            if source != PUBLISHED_ENCODER:
                raise
            self.notes.append(f"scene encoder left out: {error}")
            return None

    def compare(self, runtimes: Sequence[Runtime], but_for: Collection[str] = ()) -> tuple[list[Verdict], list[Any]]:
        """Let runtimes serve as they may, but for some components; every comparison, and the same as rows.

        Why torch goes on with something is added to `notes`.
        """
        from semla_ros.engines.component_engine import ComponentEngine

        components = [item for item in self.components if item.name not in but_for]
        engine = ComponentEngine(self.torch_engine, components, runtimes, probe_images=self.scenes)
        engine.warm_up()
        served = [id(verdict) for verdict in engine.serving.values()]
        rows = [_row(verdict, id(verdict) in served) for verdict in engine.comparisons]
        self.notes += engine.notes
        engine.close()
        return engine.comparisons, rows


def _build(arguments: argparse.Namespace, cache: EngineCache) -> int:
    from semla_ros.engines.choice import find_runtimes

    output_folder(str(cache.folder))  # what cannot be kept is not worth minutes of building
    subject, runtime = _Subject(arguments), arguments.runtime
    lacking: list[str] = []
    runtimes = find_runtimes(
        runtime, subject.device, cache=cache, threads=arguments.threads, builds=False, tell=lacking.append
    )
    if all(item.name == "torch" for item in runtimes):
        raise EngineError(f"there is no runtime to build for: {'; '.join(lacking)}")
    failed: dict[str, str] = {}
    with Console(stderr=True).status("") as status:
        for maker, component in itertools.product(runtimes, subject.components):
            if component.name not in maker.components:
                continue
            status.update(f"{maker.name}: {component.name}")
            try:
                maker.build(component)
            except SemlaError as error:
                failed[component.name] = f"{component.name}: {error}"
        status.update("compare with torch")
        _, rows = subject.compare(runtimes, but_for=failed)
    notes = [*failed.values(), *subject.notes]
    if arguments.json:
        _print_json(runtime=runtime, folder=str(cache.folder), components=rows, notes=notes)
    else:
        where = "the fastest runtime" if runtime == "auto" else runtime
        _print_rows(f"{arguments.model} in {where}, engines in {cache.folder}", rows, notes)
    return 2 if failed else 0


def _row(verdict: Verdict, serves: bool) -> dict[str, Any]:
    """One runner that was compared."""
    figures = {name: getattr(verdict, name) for name in FIGURES}
    return {
        "component": verdict.name,
        "runtime": verdict.runtime,
        "serves": serves,
        **{name: round(value, FIGURES[name]) if math.isfinite(value) else None for name, value in figures.items()},
        "reason": verdict.reason.partition(": ")[2],
    }


def _print_json(**answer: object) -> None:
    print(json.dumps(answer, indent=2))


def _print_rows(title: str, rows: Sequence[dict[str, Any]], notes: Sequence[str]) -> None:
    shown = ("component", "runtime", "serves", "torch_ms", "engine_ms", "cosine")
    _print_table(title, shown, ([row[name] for name in shown] for row in rows), first_number=3)
    for note in notes:
        Console().print(Text(f"torch goes on: {note}"))


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, first_number: int) -> None:
    words: dict[object, str] = {True: "yes", False: "no", None: ""}
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(
            name.replace("_", " "), no_wrap=not place, justify="right" if place >= first_number else "left"
        )
    for row in rows:
        table.add_row(*(words[item] if isinstance(item, bool | None) else str(item) for item in row))
    print_table(table)


def _list(arguments: argparse.Namespace, cache: EngineCache) -> int:
    rows = [_entry_row(entry) for entry in cache.entries()]
    if arguments.json:
        _print_json(folder=str(cache.folder), engines=rows)
    elif not rows:
        print(f"no engines in {cache.folder}; 'semla engine build' makes them")
    else:
        shown = ("component", "runtime", "runtime_version", "device", "precision", "model_digest", "bytes")
        short = [row | {"model_digest": row["model_digest"][:12]} for row in rows]
        _print_table(
            f"engines in {cache.folder}", shown, ([row[name] for name in shown] for row in short), first_number=6
        )
    return 0


def _entry_row(entry: CacheEntry) -> dict[str, Any]:
    named = ("component", "runtime", "runtime_version", "device", "precision", "shapes", "model_digest")
    key = {name: getattr(entry.key, name) for name in named}
    return {**key, "path": str(entry.path), "bytes": entry.num_bytes, "problem": entry.problem}


def _check(arguments: argparse.Namespace, cache: EngineCache) -> int:
    from semla_ros.engines.choice import find_runtimes
    from semla_ros.engines.gates import parity_problem

    entries = cache.entries(verify=True)
    damaged = [entry for entry in entries if entry.problem]
    subject = _Subject(arguments)
    runtimes: list[Runtime] = []
    lacking: list[str] = []
    if not damaged:
        parts = subject.components
        runtimes = find_runtimes(
            "auto",
            subject.device,
            cache=cache,
            threads=arguments.threads,
            builds=False,
            built_for=parts,
            tell=lacking.append,
        )
    verdicts, rows = subject.compare(runtimes) if any(item.name != "torch" for item in runtimes) else ([], [])
    in_fp32 = [item for item in verdicts if item.runtime in ("onnx", "openvino")]
    wrong = [f"{item.name} in {item.runtime}" for item in in_fp32 if parity_problem(item.cosine, item.deviation)]
    nothing = ""
    if entries and not damaged and not rows:
        nothing = f"nothing was compared with torch: {'; '.join(lacking) or f'no engine is of {arguments.model}'}"
    if arguments.json:
        _print_json(
            folder=str(cache.folder),
            files=len(entries),
            damaged=[_entry_row(entry) for entry in damaged],
            components=rows,
            wrong=wrong,
            notes=[*subject.notes, *([nothing] if nothing else [])],
        )
    else:
        for entry in damaged:
            print(f"damaged: {entry.path.name}: {entry.problem}; 'semla engine clean' removes it")
        if rows:
            _print_rows(f"{arguments.model}, engines in {cache.folder}", rows, subject.notes)
        if nothing:
            print(nothing)
        intact = counted(len(entries) - len(damaged), "engine")
        print(f"{cache.folder}: {intact} intact, {len(damaged)} damaged, {len(wrong)} with a wrong answer")
    return 2 if damaged or wrong else 0


def _clean(arguments: argparse.Namespace, cache: EngineCache) -> int:
    from semla_ros.engines.export import EXPORT_REVISION, export_version
    from semla_ros.engines.tensorrt.builder import load_tensorrt

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
        _print_json(removed=[_entry_row(entry) for entry in removed], dry_run=arguments.dry_run)
        return 0
    for entry in removed:
        print(f"{entry.path.name}: {entry.problem or entry.key.runtime_version}")
    megabytes = sum(entry.num_bytes for entry in removed) / 1e6
    verb = "would be removed" if arguments.dry_run else "removed"
    print(f"{cache.folder}: engines {verb}: {len(removed)}, {megabytes:.1f} MB")
    return 0
