"""Where the files that ship with the package are: models, adapter libraries, configuration, launch files.

And where engines that this machine has made are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from semla_ros.errors import ConfigError, known_names

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


def find_model(name: str, model_dir: str = "") -> Path:
    """Find a model's folder or file.

    Args:
        name: Model id ("semla-tiny") or a path.
        model_dir: Looked in first; then `$SEMLA_MODEL_DIR`, then the share folder.

    Returns:
        An existing folder or checkpoint file.

    Raises:
        ConfigError: Nothing of that name is there; the message lists the places and how to get the published models.
    """
    direct = Path(name).expanduser()
    if direct.exists() and (direct.is_absolute() or len(direct.parts) > 1 or direct.suffix):
        return direct
    folders = [Path(item).expanduser() for item in (model_dir, os.environ.get("SEMLA_MODEL_DIR", "")) if item]
    folders.append(share_folder() / "models")
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    places = ", ".join(str(folder) for folder in folders)
    if name in PUBLISHED_MODELS:
        hint = f"'semla fetch {name}' downloads it"
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


def shipped_library(model: str) -> Path:
    """The adapter library that ships beside a model of this id (may not exist)."""
    return share_folder() / "adapters" / Path(model).name
