"""Look into adapter libraries; check, add to, index and import them.

Examples:
  semla library list
  semla library show old-town-fog
  semla library map --images photo.jpg --out out/library
  semla library explain photo.jpg
  semla library diff mine theirs
  semla library check adapters/semla-tiny --model semla-tiny
  semla library import loradb --model catseg-l --encoder ViT-L-14/openai
  semla library index loradb my-night --images night/ --encoder ViT-L-14/openai
  semla library add trained/my-night --library loradb
  semla library push loradb me/my-adapters --dry-run
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from semla_ros.commands import library_views
from semla_ros.commands.options import add_model_options, output_folder
from semla_ros.commands.tables import print_table
from semla_ros.errors import ConfigError, DatasetError, LibraryError, counted
from semla_ros.lab.report.progress import progress
from semla_ros.library.adapter_files import Signature
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.finding import find_library
from semla_ros.library.importing import add_adapter, import_library
from semla_ros.library.manifest import ModelReference
from semla_ros.resources import find_model

FITTED = "base model that the adapters must fit"
NO_DIGEST = "without digests, so that a small damage cannot be seen"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla library`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="a table of the adapters", description="Show the adapters of a library.")
    _library_argument(listing)
    listing.add_argument("--json", action="store_true", help="for scripts")
    listing.set_defaults(act=_list)

    check = actions.add_parser(
        "check",
        help="verify every file, value and digest",
        description="Verify every file, value and digest of a library; exit status 2 if anything is wrong.",
    )
    _library_argument(check)
    add_model_options(check, "", FITTED)
    check.add_argument("--encoder", help="scene encoder that the centroids must be from (id)")
    check.add_argument("--json", action="store_true", help="for scripts")
    check.set_defaults(act=_check)

    library_views.add_actions(actions)

    add = actions.add_parser(
        "add", help="copy one adapter into a library", description="Copy one adapter's folder into a library."
    )
    add.add_argument("folder", type=Path, help="the adapter's folder, in the published layout")
    add.add_argument("--library", type=output_folder, required=True, help="made where it is missing")
    add.add_argument("--name", default="", help="its name in the library (default: its folder's name)")
    add_model_options(add, "", FITTED)
    add.set_defaults(act=_add)

    index = actions.add_parser(
        "index",
        help="centroid and spread of an adapter from images of its domain",
        description="Embed the images of a domain and write its centroid. An interrupted run is gone on with.",
    )
    index.add_argument("library", type=output_folder, help="the library's folder")
    index.add_argument("name", help="the adapter")
    index.add_argument("--images", type=Path, required=True, help="folder of images, searched recursively")
    index.add_argument(
        "--encoder",
        required=True,
        help="scene encoder: model folder, file, or open_clip model as 'ViT-L-14/openai'",
    )
    index.add_argument("--model-dir", default="", metavar="DIR", help="where published weights are looked for first")
    index.add_argument("--batch-size", type=int, default=16, help="images embedded at once (default 16)")
    index.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")
    index.add_argument("--json", action="store_true", help="for scripts")
    index.set_defaults(act=_index)

    importing = actions.add_parser(
        "import",
        help="make a library of a set of adapter folders",
        description="Check adapter folders in the published layout and write library.yaml beside them.",
    )
    importing.add_argument("library", type=output_folder, help="holds one folder per adapter")
    add_model_options(importing, "", FITTED)
    importing.add_argument("--base-id", default="", help="id of the base model, where --model is not given")
    importing.add_argument("--encoder", default="", help="id of the scene encoder, for example ViT-L-14/openai")
    importing.add_argument("--licence", default="", help="of the adapters")
    importing.add_argument("--note", default="", help="one line about the library")
    importing.set_defaults(act=_import)

    push = actions.add_parser(
        "push",
        help="publish a library on the Hugging Face hub",
        description="Check a library whole and publish it with a card; 'hf://owner/repo' is its name from then on.",
    )
    push.add_argument("library", type=Path, help="the library's folder")
    push.add_argument("repository", metavar="OWNER/REPO", help="on the hub; made where it is missing")
    push.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    push.add_argument("--private", action="store_true", help="where the repository is made: only for its owner")
    push.add_argument("--endpoint", help="another server with the hub's interface (default: $HF_ENDPOINT)")
    push.set_defaults(act=_push)


def run(arguments: argparse.Namespace) -> int:
    """Run one action; returns the exit status."""
    status: int = arguments.act(arguments)
    return status


def _library_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "library",
        nargs="?",
        default="",
        help=f"folder, hf://owner/repo or a model's id (default: {library_views.SHIPPED})",
    )


def _list(arguments: argparse.Namespace) -> int:
    library = AdapterLibrary.load(find_library(arguments.library), eager_bytes=0)
    rows = adapter_rows(library)
    if arguments.json:
        print(json.dumps(_summary(library, rows), indent=2, ensure_ascii=False))
    else:
        _print_table(library, rows)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    base = _base_model(arguments)
    library = AdapterLibrary.load(
        find_library(arguments.library),
        targets=base.targets,
        base_sha=base.sha256,
        encoder_id=arguments.encoder,
        eager_bytes=sys.maxsize,
    )
    rows = adapter_rows(library)
    if arguments.json:
        print(json.dumps(_summary(library, rows), indent=2, ensure_ascii=False))
    else:
        for problem in library.problems.values():
            print(f"broken: {problem}")
        against = f" against {arguments.model}" if arguments.model else ""
        print(
            f"{library.folder}: {counted(len(library.names), 'adapter')} sound{against}, {len(library.problems)} broken"
        )
    return 2 if library.problems else 0


def _add(arguments: argparse.Namespace) -> int:
    name = add_adapter(arguments.library, arguments.folder, name=arguments.name, targets=_base_model(arguments).targets)
    print(f"adapter '{name}' added to {arguments.library}")
    return 0


def _index(arguments: argparse.Namespace) -> int:
    from semla_ros.adaptation.scene_embedding import SceneEncoder
    from semla_ros.lab.training.library_index import index_adapter

    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    if not arguments.library.is_dir():
        raise LibraryError(f"adapter library {arguments.library}: no such folder")
    encoder = SceneEncoder.load(arguments.encoder, model_dir=arguments.model_dir, device=arguments.device)
    failed = []

    def tell(error: DatasetError) -> None:
        failed.append(error)
        print(f"semla library: left out: {error}", file=sys.stderr)

    with progress() as bars:
        task = bars.add_task(f"index {arguments.name}", total=None)
        statistics = index_adapter(
            arguments.library / arguments.name,
            arguments.images,
            encoder,
            batch_size=arguments.batch_size,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
            on_problem=tell,
        )
    if arguments.json:
        spread = {
            "spread_mean": statistics.spread_mean,
            "spread_p95": statistics.spread_p95,
            "count": statistics.images,
        }
        print(json.dumps({"adapter": arguments.name, "encoder": encoder.id, **spread}, indent=2))
    else:
        print(
            f"adapter '{arguments.name}': centroid of {counted(statistics.images, 'image')}, "
            f"mean distance {statistics.spread_mean:.4g}, 95 % within {statistics.spread_p95:.4g}"
        )
    return 1 if failed else 0


def _import(arguments: argparse.Namespace) -> int:
    base = _base_model(arguments)
    reference = None
    if base.id or arguments.base_id:
        reference = ModelReference(id=base.id or arguments.base_id, sha256=base.sha256() if base.sha256 else "")
    manifest = import_library(
        arguments.library,
        targets=base.targets,
        base=reference,
        encoder=ModelReference(id=arguments.encoder) if arguments.encoder else None,
        licence=arguments.licence,
        note=arguments.note,
    )
    print(
        f"{arguments.library / 'library.yaml'}: {counted(len(manifest.adapters), 'adapter')} checked, digests written"
    )
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from semla_ros.library.publishing import CARD_NAME, publication, push

    planned = publication(arguments.library, arguments.repository)
    if not arguments.dry_run:
        print(push(planned, is_private=arguments.private, endpoint=arguments.endpoint))
        print(f"{counted(len(planned.adapters), 'adapter')} now at hf://{planned.repository}")
        return 0
    for path, file in planned.files.items():
        print(f"{path}: {file.stat().st_size / 1000:.1f} kB")
    print(f"{CARD_NAME}:\n\n{planned.card}\nnothing was sent: --dry-run")
    return 0


@dataclass(frozen=True)
class _Base:
    """What the base model named on the command line has to say; empty where none was named."""

    id: str = ""
    targets: Signature | None = None
    sha256: Callable[[], str] | None = None


def _base_model(arguments: argparse.Namespace) -> _Base:
    if not arguments.model:
        return _Base()
    from semla_ros.segmentation.checkpoint import load_model
    from semla_ros.segmentation.targets import lora_signature

    loaded = load_model(find_model(arguments.model, arguments.model_dir))
    return _Base(loaded.model_id, lora_signature(loaded.model), lambda: loaded.sha256)


def adapter_rows(library: AdapterLibrary) -> list[dict[str, Any]]:
    """One plain mapping per adapter, usable ones first, for tables and JSON."""
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(library.names):
        files, entry = library.files(name), library.entry(name)
        guess = float(library.spread[index])
        rows.append(
            {
                "name": name,
                "rank": files.settings.rank,
                "alpha": files.settings.alpha,
                "layers": files.num_layers,
                "bytes": files.num_bytes,
                "images": entry.images or None,
                "spread_mean": entry.spread_mean,
                "spread_p95": entry.spread_p95,
                "spread_estimate": None if library.is_spread_measured[index] or math.isnan(guess) else guess,
                "examples": 0 if files.statistics.known is None else len(files.statistics.known),
                "family": entry.family,
                "licence": entry.licence,
                "note": entry.note,
                "has_digest": bool(files.sha256),
                "problem": None,
            }
        )
    return rows + [{"name": name, "problem": reason} for name, reason in library.problems.items()]


def _summary(library: AdapterLibrary, rows: list[dict[str, Any]]) -> dict[str, Any]:
    manifest = library.manifest
    return {
        "library": str(library.folder),
        "base": {"id": manifest.base.id, "sha256": manifest.base.sha256},
        "encoder": {"id": manifest.encoder.id, "sha256": manifest.encoder.sha256},
        "domain": manifest.domain,
        "embedding_dim": library.centroids.shape[1],
        "adapters": rows,
    }


def _print_table(library: AdapterLibrary, rows: list[dict[str, Any]]) -> None:
    table = Table(title=Text(str(library.folder)), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("adapter", overflow="fold")
    table.add_column("family", overflow="fold")
    for heading in ("rank", "kB", "images", "spread"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row["problem"] is not None:
            continue
        spread, estimate = row["spread_p95"], row["spread_estimate"]
        table.add_row(
            Text(row["name"]),
            Text(row["family"]),
            str(row["rank"]),
            str(math.ceil(row["bytes"] / 1000)),
            str(row["images"] or ""),
            f"~{estimate:.3g}" if estimate is not None else f"{spread:.3g}" if spread else "unknown",
        )
    print_table(table)
    manifest = library.manifest
    if any(row.get("spread_estimate") is not None for row in rows):
        print("~: estimated from the library; 'semla library index' measures it on images of the domain")
    if manifest.domain:
        print(f"made for {manifest.domain} images")
    if manifest.base.id or manifest.encoder.id:
        print(f"base model: {manifest.base.id or 'not stated'}, scene encoder: {manifest.encoder.id or 'not stated'}")
    if licences := sorted({row["licence"] for row in rows if row.get("licence")}):
        print(f"licence of the adapters: {', '.join(licences)}")
    for row in rows:
        if row["problem"] is not None:
            print(f"broken: {row['problem']}")
    if names := library.without_digest:
        print(f"{NO_DIGEST}: {', '.join(names)}; 'semla library import {library.folder}' writes them")
