"""Where the files that ship with the package are: models, adapter libraries, configuration, launch files.

And where engines that this machine has made are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from semla_ros.errors import ConfigError, known_names
from semla_ros.hub.published import PUBLISHED, cached_file, is_hub_name, own_assets

_PACKAGE = Path(__file__).resolve().parent
PUBLISHED_ENCODER = "ViT-L-14/openai"  # made the published centroids
PUBLISHED_MODELS = ("catseg-b", "catseg-l")  # that 'semla fetch' downloads


def share_folder() -> Path:
    """The folder with `models/ adapters/ config/ launch/`: the checkout, or `share/semla_ros` where installed."""
    if (_PACKAGE.parent / "package.xml").is_file():
        return _PACKAGE.parent
    prefixes = [Path(item) for item in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if item]
    prefixes += [*_PACKAGE.parents, Path(sys.prefix)]
    for prefix in prefixes:
        if (prefix / "share" / "semla_ros" / "package.xml").is_file():
            return prefix / "share" / "semla_ros"
    raise ConfigError("the share folder of semla_ros was not found; install the package or source its workspace")


def model_folders(model_dir: str = "") -> list[Path]:
    """Where models are looked for: `model_dir`, then `$SEMLA_MODEL_DIR`, then the share folder."""
    named = [Path(item).expanduser() for item in (model_dir, os.environ.get("SEMLA_MODEL_DIR", "")) if item]
    return [*named, share_folder() / "models"]


def find_model(name: str, model_dir: str = "") -> Path:
    """Find a model's folder or file.

    Args:
        name: Model id ("semla-tiny"), a path, or `hf://owner/repo`, which is downloaded where it is not here.
        model_dir: Looked in first; then the other `model_folders`, then the Hugging Face cache.

    Returns:
        An existing folder or checkpoint file.

    Raises:
        ConfigError: Nothing of that name is there; the message lists the places and how to get the published models.
        FetchError: It cannot be downloaded.
    """
    if is_hub_name(name):
        from semla_ros.hub.downloads import hub_folder

        return hub_folder(name)
    direct = Path(name).expanduser()
    if direct.exists() and (direct.is_absolute() or len(direct.parts) > 1 or direct.suffix):
        return direct
    folders = model_folders(model_dir)
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    if name in PUBLISHED_MODELS and (cached := cached_file(PUBLISHED[name])):
        return cached
    places = ", ".join(str(folder) for folder in folders)
    if name in PUBLISHED_MODELS:
        hint = f"nor in the Hugging Face cache; 'semla fetch {name}' downloads it"
    else:
        there = {item.name for folder in folders if folder.is_dir() for item in folder.iterdir() if item.is_dir()}
        hint = known_names(name, sorted({*there, *PUBLISHED_MODELS}))
    raise ConfigError(f"model '{name}' was not found in {places}; {hint}")


def engine_folder() -> Path:
    """Where engines are kept: `$SEMLA_ENGINE_DIR`, or `semla_ros/engines` in the user's cache folder; may not exist."""
    if chosen := os.environ.get("SEMLA_ENGINE_DIR", ""):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"
    return Path(base).expanduser() / "semla_ros" / "engines"


def model_library(model: str, model_dir: str = "") -> Path:
    """The adapter library that belongs to a model of this id (may not exist).

    Below `adapters/`: of the `model_folders` that were named, of the share folder, and of what `semla fetch` keeps in
    the Hugging Face cache.
    """
    name = Path(model).name
    shipped = share_folder() / "adapters" / name
    named = [folder / "adapters" / name for folder in model_folders(model_dir)[:-1]]
    if found := next((folder for folder in (*named, shipped) if folder.is_dir()), None):
        return found
    fetched = own_assets("adapters", name)
    return fetched if fetched.is_dir() else shipped
