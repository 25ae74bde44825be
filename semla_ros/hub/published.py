"""What others have published on the hub, which names mean something there, and where it lies on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PublishedItem:
    """Something that others have published.

    Attributes:
        id: Name, and folder that it is put into.
        repository: On the hub.
        files: Paths in the repository.
        kind: Of the repository: "model" or "space".
        summary: One line for tables.
        library_of: The file is a zip archive of adapter folders for this model; empty where it is none.
    """

    id: str
    repository: str
    files: tuple[str, ...]
    kind: str = "model"
    summary: str = ""
    library_of: str = ""


# Where the authors' own pages point to. Their pages state no digests.
PUBLISHED = {
    item.id: item
    for item in (
        PublishedItem(
            id="catseg-b",
            repository="hamacojr/CAT-Seg-weights",
            kind="space",
            files=("model_base.pth",),
            summary="CAT-Seg, CLIP ViT-B/16",
        ),
        PublishedItem(
            id="catseg-l",
            repository="hamacojr/CAT-Seg-weights",
            kind="space",
            files=("model_large.pth",),
            summary="CAT-Seg, CLIP ViT-L/14@336: the base model of the published adapters",
        ),
        PublishedItem(
            id="semla-adapters",
            repository="rezaqorbani/SemLA",
            files=("loradb.zip",),
            summary="SemLA adapters for 20 domains, for catseg-l",
            library_of="catseg-l",
        ),
        PublishedItem(
            id="ViT-L-14-openai",
            repository="timm/vit_large_patch14_clip_224.openai",
            files=("open_clip_model.safetensors",),
            summary="OpenAI CLIP ViT-L/14: the scene encoder of the published adapters",
        ),
    )
}


def is_hub_name(name: str | Path) -> bool:
    """Whether a name means something on the hub, rather than a path."""
    return str(name).startswith("hf:/")


def own_assets(*below: str) -> Path:
    """A folder of this package's own in the hub's cache; may not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE, "semla_ros", *below)


def cached_file(item: PublishedItem) -> Path | None:
    """An item's first file in the hub's cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(item.repository, item.files[0], repo_type=item.kind)
    return Path(found) if isinstance(found, str) else None
