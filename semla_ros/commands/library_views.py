"""What `semla library` shows: one adapter, a map, what two libraries differ in, why an image gets its mix."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from semla_ros.commands.options import add_library_option, add_model_options, output_folder, unique_stems
from semla_ros.commands.tables import print_table
from semla_ros.errors import LibraryError, SemlaError, known_names
from semla_ros.file_integrity import file_sha256
from semla_ros.image_files import read_image
from semla_ros.library.adapter_files import file_names
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.finding import find_library

CARD = "CARD.md"
SHIPPED = "the one shipped with semla-tiny"
NEIGHBOURS = 3


def add_actions(actions: Any) -> None:
    """`show`, `map`, `diff` and `explain`."""
    show = actions.add_parser(
        "show", help="all that is known of one adapter", description="Show the card of an adapter."
    )
    show.add_argument("name", metavar="NAME", help="the adapter")
    add_library_option(show, SHIPPED)
    show.add_argument("--json", action="store_true", help="for scripts")
    show.set_defaults(act=_show)

    mapping = actions.add_parser(
        "map",
        help="where the domains lie, and where images fall",
        description="Draw centroids with their spreads, and where images fall, as map.png and map.html.",
    )
    mapping.add_argument("--images", nargs="+", type=Path, default=[], metavar="IMAGE", help="image files")
    _view_options(mapping)
    mapping.set_defaults(act=_map)

    diff = actions.add_parser(
        "diff",
        help="what two libraries differ in",
        description="Say what two libraries differ in; exit status 1 where they do.",
    )
    diff.add_argument("first", metavar="A", help="library: folder or hf://owner/repo")
    diff.add_argument("second", metavar="B", help="another one")
    diff.add_argument("--json", action="store_true", help="for scripts")
    diff.set_defaults(act=_diff)

    explain = actions.add_parser(
        "explain",
        help="why an image gets its adapters",
        description="Say in words why images get their adapters, and draw it as <image>_why.png and <image>_why.html.",
    )
    explain.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    _view_options(explain)
    explain.set_defaults(act=_explain)


def _view_options(parser: argparse.ArgumentParser) -> None:
    add_library_option(parser, SHIPPED)
    add_model_options(parser, "", "model whose scene encoder looks, instead of the one that the library names")
    parser.add_argument("--out", type=output_folder, default="out/library", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="for scripts")


def _load(name: str | Path) -> AdapterLibrary:
    return AdapterLibrary.load(find_library(name), eager_bytes=0)


def _show(arguments: argparse.Namespace) -> int:
    library = _load(arguments.library)
    name = arguments.name
    if name in library.problems:
        raise LibraryError(f"adapter '{name}' cannot be used: {library.problems[name]}")
    if name not in library.names:
        raise LibraryError(f"adapter '{name}' is not in {library.folder}; {known_names(name, library.names)}")
    facts, card = _facts(library, name), library.files(name).folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if arguments.json:
        print(json.dumps({**facts, "card": text}, indent=2, ensure_ascii=False))
        return 0
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, value in facts.items():
        shown = ", ".join(f"{item} {gap:.3g}" for item, gap in value.items()) if isinstance(value, dict) else value
        if shown not in (None, ""):
            table.add_row(key.replace("_", " "), Text(str(shown), overflow="fold"))
    console = Console()
    print_table(table, console)
    if text:
        console.print()
        console.print(Text(text.strip()))
    return 0


def _facts(library: AdapterLibrary, name: str) -> dict[str, Any]:
    files, entry = library.files(name), library.entry(name)
    index = library.names.index(name)
    gaps = np.linalg.norm(library.centroids - library.centroids[index], axis=1)
    nearest = [item for item in gaps.argsort(kind="stable") if item != index][:NEIGHBOURS]
    return {
        "adapter": name,
        "folder": str(files.folder),
        "family": entry.family,
        "rank": files.settings.rank,
        "alpha": files.settings.alpha,
        "layers": files.num_layers,
        "bytes": files.num_bytes,
        "images": entry.images,
        "spread_mean": _rounded(entry.spread_mean),
        "spread_p95": _rounded(entry.spread_p95),
        "known_scenes": len(files.statistics.scenes("known")),
        "strange_images": len(files.statistics.scenes("strange")),
        "nearest_adapters": {library.names[item]: round(float(gaps[item]), 6) for item in nearest},
        "licence": entry.licence,
        "note": entry.note,
        "sha256": files.sha256,
    }


def _map(arguments: argparse.Namespace) -> int:
    from semla_ros.api.library import Library

    library = Library(arguments.library, model=arguments.model, model_dir=arguments.model_dir)
    images, status = [], 0
    for path in arguments.images:
        try:
            read_image(path)
            images.append(path)
        except SemlaError as error:
            status = _told(error)
    report = library.map(*images)
    files = [report.save(arguments.out / f"map{suffix}") for suffix in (".png", ".html")]
    if arguments.json:
        print(json.dumps({**report.figures, "files": list(map(str, files))}, indent=2, ensure_ascii=False))
    else:
        print(report)
        print("in " + " and ".join(map(str, files)))
    return status


def _explain(arguments: argparse.Namespace) -> int:
    from semla_ros.api.library import Library

    library = Library(arguments.library, model=arguments.model, model_dir=arguments.model_dir)
    answers, failed = [], 0
    stems = unique_stems(arguments.images, lambda stem: _why_files(arguments.out, stem))
    for path, stem in zip(arguments.images, stems, strict=True):
        try:
            why = library.explain(path)
        except SemlaError as error:
            failed = _told(error)
            continue
        files = [why.save(file) for file in _why_files(arguments.out, stem)]
        answers.append({**why.figures, "files": list(map(str, files))})
        if not arguments.json:
            print(f"{why}\nin {' and '.join(map(str, files))}")
    if arguments.json:
        print(json.dumps(answers, indent=2, ensure_ascii=False))
    return failed if answers else 2


def _why_files(out: Path, stem: str) -> list[Path]:
    return [out / f"{stem}_why{suffix}" for suffix in (".png", ".html")]


def _told(error: SemlaError) -> int:
    """Say what is wrong with one of several files; the exit status where others can be used."""
    print(f"semla library: {error}", file=sys.stderr)
    return 1


def _diff(arguments: argparse.Namespace) -> int:
    first, second = _load(arguments.first), _load(arguments.second)
    rows = list(_differences(first, second))
    if arguments.json:
        keys = ("of", "what", "first", "second")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2, ensure_ascii=False))
    elif rows:
        table = Table("of", "what", escape(arguments.first), escape(arguments.second), box=None)
        for row in rows:
            table.add_row(*(Text(item) for item in row))
        print_table(table)
    else:
        print(f"{arguments.first} and {arguments.second} do not differ")
    return 1 if rows else 0


def _differences(first: AdapterLibrary, second: AdapterLibrary) -> Iterator[tuple[str, str, str, str]]:
    """What two libraries differ in: of what, in which respect, and how each has it."""
    both = (first, second)
    for what in ("base", "encoder"):
        for key in ("id", "sha256"):
            yield from _unlike("library", f"{what} {key}", *(getattr(getattr(it.manifest, what), key) for it in both))
    for what in ("domain", "note"):
        yield from _unlike("library", what, *(getattr(it.manifest, what) for it in both))
    for part in ("retrieval", "drift"):
        settings = [_settings(getattr(it.manifest, part)) for it in both]
        for key in sorted({*settings[0], *settings[1]}):
            yield from _unlike(part, key, *(item.get(key, "") for item in settings))
    for name in dict.fromkeys([*first.names, *second.names]):
        if name not in first.names or name not in second.names:
            yield from _unlike(name, "adapter", *("there" if name in it.names else "missing" for it in both))
            continue
        ours, theirs = (_comparable(it, name) for it in both)
        for key in ours:
            yield from _unlike(name, key, ours[key], theirs[key])
        gap = _gap(*(it.files(name).statistics.centroid for it in both))
        if gap:
            yield name, "centroid", "", f"{gap:.3g} away" if np.isfinite(gap) else "of another length"


def _comparable(library: AdapterLibrary, name: str) -> dict[str, object]:
    facts = _facts(library, name)
    weights = file_sha256(library.files(name).folder / file_names(name)[1])
    wanted = ("rank", "alpha", "layers", "family", "images", "spread_mean", "spread_p95", "licence", "note")
    return {"weights": weights[:12], **{key: facts[key] for key in wanted}}


def _unlike(of: str, what: str, ours: object, theirs: object) -> Iterator[tuple[str, str, str, str]]:
    if ours != theirs:
        first, second = ("" if value is None else str(value) for value in (ours, theirs))
        yield of, what.replace("_", " "), first, second


def _settings(config: Any) -> dict[str, object]:
    return {} if config is None else dataclasses.asdict(config)


def _gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs)) if ours.shape == theirs.shape else float("inf")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
