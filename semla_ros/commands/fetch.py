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
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from semla_ros.commands.options import output_folder
from semla_ros.errors import ConfigError, SemlaError
from semla_ros.library.fetching import PUBLISHED, FetchedFile, PublishedItem, fetch, published_item, unpack_library
from semla_ros.library.importing import import_library
from semla_ros.library.manifest import ModelReference
from semla_ros.resources import PUBLISHED_ENCODER, share_folder

BASE_ID = "catseg-l"  # the published adapters were trained on it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla fetch`."""
    parser.add_argument("name", nargs="*", help=f"all, or any of: {', '.join(PUBLISHED)}")
    parser.add_argument("--list", action="store_true", help="show what can be fetched, and stop")
    parser.add_argument(
        "--dest", type=output_folder, help="folder of models (default: $SEMLA_MODEL_DIR, then the package's models)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the repository (default: the newest)")
    parser.add_argument("--endpoint", help="another server with the hub's interface (default: $HF_ENDPOINT)")
    parser.add_argument("--json", action="store_true", help="for scripts")


def run(arguments: argparse.Namespace) -> int:
    """Fetch what is asked for; returns the exit status."""
    if arguments.list:
        _print_items(arguments.json)
        return 0
    if not arguments.name:
        raise ConfigError(f"say what to fetch: all, {', '.join(PUBLISHED)}")
    names = list(PUBLISHED) if "all" in arguments.name else list(dict.fromkeys(arguments.name))
    items = [published_item(name) for name in names]
    dest = arguments.dest or Path(os.environ.get("SEMLA_MODEL_DIR") or share_folder() / "models")
    report: list[dict[str, Any]] = []
    # The base model comes before the adapters, so that their library can state its digest.
    for item in sorted(items, key=lambda item: item.is_library):
        files = fetch(item, dest, revision=arguments.revision, endpoint=arguments.endpoint)
        library = _make_library(item, files, dest) if item.is_library else None
        report.append(_described(item, files, library))
        if not arguments.json:
            for file in files:
                state = "already there" if file.was_there else "fetched"
                print(f"{item.id}: {state}: {file.path} (SHA-256 {file.sha256})")
            if library:
                print(f"{item.id}: {library}")
    if arguments.json:
        print(json.dumps(report, indent=2))
    return 0


def _make_library(item: PublishedItem, files: list[FetchedFile], dest: Path) -> str:
    """Unpack the adapters and check them; one line that says how to use them, or what they lack."""
    folder = dest / item.id / "library"
    archive = files[0]
    if archive.was_there and (folder / "library.yaml").is_file():
        return f"library in {folder}"
    folder.mkdir(exist_ok=True)
    names = unpack_library(archive.path, folder)
    base_record = dest / BASE_ID / "fetched.json"
    digests: list[str] = []
    if base_record.is_file():
        digests = [entry["sha256"] for entry in json.loads(base_record.read_text(encoding="utf-8")).values()]
    try:
        import_library(
            folder,
            base=ModelReference(id=BASE_ID, sha256=digests[0] if len(digests) == 1 else ""),
            encoder=ModelReference(id=PUBLISHED_ENCODER),
        )
    except SemlaError as error:
        return f"{len(names)} adapters in {folder}, not yet a library: {error}"
    return f"library of {len(names)} adapters in {folder}"


def _described(item: PublishedItem, files: list[FetchedFile], library: str | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": item.id,
        "files": [
            {"path": str(file.path), "sha256": file.sha256, "commit": file.commit, "was_there": file.was_there}
            for file in files
        ],
    }
    if library:
        described["library"] = library
    return described


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
    Console().print(table)
