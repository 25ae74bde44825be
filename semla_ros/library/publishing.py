"""Put an adapter library on the Hugging Face hub, with a card, from where `hf://owner/repo` finds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from semla_ros.errors import FetchError, LibraryError, counted, first_line
from semla_ros.library.adapter_files import file_names
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.importing import ALONG
from semla_ros.library.manifest import BASE_STATISTICS_NAME, MANIFEST_NAME

CARD_NAME = "README.md"  # as the hub calls it
_TAGS = ["semla", "lora", "semantic-segmentation", "open-vocabulary", "domain-adaptation"]


@dataclass(frozen=True)
class Publication:
    """What is sent to the hub.

    Attributes:
        repository: "owner/repo".
        files: Path in the repository -> file, the card apart.
        card: `README.md` with the front matter by which the hub finds models.
        adapters: Their names.
    """

    repository: str
    files: Mapping[str, Path]
    card: str
    adapters: tuple[str, ...]


def publication(folder: Path, repository: str) -> Publication:
    """Check a library whole, and say what would be sent.

    A `README.md` of the library's own goes along as it is where it begins with front matter; else below one.

    Raises:
        LibraryError: The repository is no "owner/repo"; an adapter cannot be used; or the library does not say what it
            is for.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise LibraryError(f"'{repository}' is no repository; it is written owner/repo")
    library = AdapterLibrary.load(folder)
    for problem in library.problems.values():
        raise LibraryError(f"{folder} is not published: {problem}")
    manifest = library.manifest
    if not manifest.base.id or not manifest.encoder.id or library.without_digest:
        raise LibraryError(
            f"{folder}: others must know its base model, its scene encoder and its digests; 'semla library import "
            f"{folder} --base-id ID --encoder ID' writes them"
        )
    paths = [MANIFEST_NAME, BASE_STATISTICS_NAME, "LICENSE"]
    for name in library.names:
        paths += [f"{name}/{file}" for file in (*file_names(name), *ALONG)]
    files = {path: folder / path for path in paths if (folder / path).is_file()}
    return Publication(repository, files, _card(library, repository), library.names)


def push(publication: Publication, *, is_private: bool = False, endpoint: str | None = None) -> str:
    """Send it as one commit; the repository is made where it is missing.

    Returns:
        Address of the commit.

    Raises:
        FetchError: The hub does not take it; nothing of it is there then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    hub, repository = HfApi(endpoint=endpoint, library_name="semla_ros"), publication.repository
    operations = [CommitOperationAdd(path, file) for path, file in publication.files.items()]
    operations.append(CommitOperationAdd(CARD_NAME, publication.card.encode()))
    try:
        hub.create_repo(repository, private=is_private, exist_ok=True)
        message = counted(len(publication.adapters), "adapter")
        return str(hub.create_commit(repository, operations, commit_message=message).commit_url)
    except Exception as error:  # the hub's transport library, and with it the errors, changes between releases
        raise FetchError(
            f"{repository} was not published: {first_line(error)}; 'hf auth login' or HF_TOKEN must allow to write"
        ) from None


def _card(library: AdapterLibrary, repository: str) -> str:
    from huggingface_hub import ModelCardData

    own = library.folder / CARD_NAME
    body = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else _body(library, repository)
    if body.startswith("---\n"):
        return body
    licences = {library.entry(name).licence for name in library.names}
    licence = next(iter(licences)).lower() if len(licences) == 1 else ""
    data = ModelCardData(
        library_name="semla_ros",
        pipeline_tag="image-segmentation",
        license=licence or "other",
        tags=_TAGS,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _body(library: AdapterLibrary, repository: str) -> str:
    manifest = library.manifest
    lines = [
        f"# {repository.partition('/')[2]}",
        "",
        *([manifest.note, ""] if manifest.note else []),
        f"LoRA adapters for `{manifest.base.id}`, fused by the scene that the camera sees. "
        f"The centroids are of `{manifest.encoder.id}`."
        + (f" Made for {manifest.domain} images." if manifest.domain else ""),
        "",
        "```bash",
        f"semla segment photo.jpg --model {manifest.base.id} --library hf://{repository}",
        "```",
        "",
        "| adapter | family | rank | images | 95 % within | licence |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for name in library.names:
        entry, settings = library.entry(name), library.files(name).settings
        spread = "" if entry.spread_p95 is None else f"{entry.spread_p95:.3g}"
        cells = (name, entry.family, settings.rank, entry.images or "", spread, entry.licence)
        lines.append(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
