"""Download published models and adapters, resumable and digest-checked.

Examples:
  semla fetch --list
  semla fetch catseg-l semla-adapters ViT-L-14-openai
  semla fetch all --dest /data/models
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from semla_ros.commands.options import output_folder
from semla_ros.commands.tables import print_table
from semla_ros.errors import ConfigError, SemlaError, counted
from semla_ros.hub.downloads import RECORD_NAME, FetchedFile, fetch, hub_folder, published_item
from semla_ros.hub.published import PUBLISHED, PublishedItem, cached_file, is_hub_name, own_assets
from semla_ros.lab.report.progress import progress
from semla_ros.library.adapter_files import CONFIG_NAME
from semla_ros.library.fetching import make_library
from semla_ros.library.manifest import ModelReference
from semla_ros.resources import PUBLISHED_ENCODER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla fetch`."""
    parser.add_argument("name", nargs="*", help=f"all, hf://owner/repo, or any of: {', '.join(PUBLISHED)}")
    parser.add_argument("--list", action="store_true", help="show what can be fetched, and stop")
    parser.add_argument(
        "--dest", type=output_folder, help="folder of models (default: $SEMLA_MODEL_DIR, then the Hugging Face cache)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the repository (default: the newest)")
    parser.add_argument("--endpoint", help="another server with the hub's interface (default: $HF_ENDPOINT)")
    parser.add_argument("--json", action="store_true", help="for scripts")


def run(arguments: argparse.Namespace) -> int:
    """Fetch what is asked for; 0, 1 where some could not be fetched, 2 where none could be, or through SemlaError."""
    if arguments.list:
        _print_items(arguments.json)
        return 0
    if not arguments.name:
        raise ConfigError(f"say what to fetch: all, hf://owner/repo, {', '.join(PUBLISHED)}")
    names = list(PUBLISHED) if "all" in arguments.name else list(dict.fromkeys(arguments.name))
    items = [published_item(name) for name in names if not is_hub_name(name)]
    dest = arguments.dest or (Path(folder).expanduser() if (folder := os.environ.get("SEMLA_MODEL_DIR")) else None)
    # The base model comes before the adapters, so that their library can state its digest.
    items.sort(key=lambda item: bool(item.library_of))
    jobs: list[Callable[[], dict[str, Any]]] = [
        *(partial(_fetched_folder, name, arguments) for name in names if is_hub_name(name)),
        *(partial(_fetched_item, item, dest, arguments) for item in items),
    ]
    report = []
    for job in jobs:
        try:
            report.append(job())
        except SemlaError as error:
            print(f"semla fetch: {error}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(report, indent=2))
    elif arguments.dest and items and report:
        print(f"they are found with --model-dir {arguments.dest}, or SEMLA_MODEL_DIR={arguments.dest}")
    return 0 if len(report) == len(jobs) else 1 if report else 2


def _fetched_folder(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A repository of somebody's own, in its newest state."""
    folder = hub_folder(name, endpoint=arguments.endpoint, is_new=True)
    if not arguments.json:
        print(f"{name}: in {folder}")
    return {"id": name, "folder": str(folder)}


def _fetched_item(item: PublishedItem, dest: Path | None, arguments: argparse.Namespace) -> dict[str, Any]:
    with progress() as bars:
        task = bars.add_task(item.id, total=None)
        files = fetch(
            item,
            dest,
            revision=arguments.revision,
            endpoint=arguments.endpoint,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    library = _library_of(item, files[0], dest) if item.library_of else ""
    if not arguments.json:
        for file in files:
            state = "already there" if file.was_there else "fetched"
            print(f"{item.id}: {state}: {file.path} (SHA-256 {file.sha256})")
        if library:
            print(f"{item.id}: {library}")
    described: dict[str, Any] = {
        "id": item.id,
        "files": [
            {"path": str(file.path), "sha256": file.sha256, "commit": file.commit, "was_there": file.was_there}
            for file in files
        ],
    }
    return {**described, "library": library} if library else described


def _library_of(item: PublishedItem, archive: FetchedFile, dest: Path | None) -> str:
    """Unpack the adapters where their model looks for its library; one line that says what they are, or lack."""
    base = item.library_of
    folder = dest / "adapters" / base if dest else own_assets("adapters", base)
    if archive.was_there and (folder / "library.yaml").is_file():
        return f"library of {base} in {folder}"
    try:
        names = make_library(
            archive.path,
            folder,
            base=ModelReference(id=base, sha256=_digest(PUBLISHED[base], dest)),
            encoder=ModelReference(id=PUBLISHED_ENCODER),
        )
    except SemlaError as error:
        if not any(folder.glob(f"*/{CONFIG_NAME}")):
            raise
        return f"adapters in {folder}, not yet a library: {error}"
    return f"library of {counted(len(names), 'adapter')} for {base} in {folder}"


def _digest(base: PublishedItem, dest: Path | None) -> str:
    """SHA-256 of the base model as it was fetched; empty where it is not there."""
    if dest is None:
        cached = cached_file(base)
        return cached.resolve().name if cached else ""
    record = dest / base.id / RECORD_NAME
    entries = json.loads(record.read_text(encoding="utf-8")).values() if record.is_file() else ()
    return next((entry["sha256"] for entry in entries), "")


def _print_items(is_json: bool) -> None:
    if is_json:
        rows = [
            {"id": item.id, "repository": item.repository, "files": list(item.files), "summary": item.summary}
            for item in PUBLISHED.values()
        ]
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("name", "what", "from"):
        table.add_column(heading, no_wrap=heading == "name", overflow="fold")
    for item in PUBLISHED.values():
        table.add_row(item.id, item.summary, f"{item.repository}: {', '.join(item.files)}")
    print_table(table)
