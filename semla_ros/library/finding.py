"""Which folder is meant by the name of an adapter library."""

from __future__ import annotations

from pathlib import Path

from semla_ros.config import SemlaConfig
from semla_ros.hub.published import is_hub_name
from semla_ros.resources import model_library


def find_library(name: str | Path = "", *, model: str = SemlaConfig.model, model_dir: str = "") -> Path:
    """Folder of an adapter library.

    Args:
        name: A path, the id of a model for its own library, or `hf://owner/repo`, which is downloaded where it is not
            on this machine; empty = that of `model`.
        model: Id or path.
        model_dir: Where models are looked for first.

    Returns:
        The folder, which may not exist where a path was given or nothing.

    Raises:
        FetchError: It cannot be downloaded, or holds no adapters.
    """
    if name == "":
        return model_library(model, model_dir)
    if not is_hub_name(name):
        path = Path(name).expanduser()
        own = model_library(path.name, model_dir)
        return own if len(path.parts) == 1 and not path.exists() and own.is_dir() else path
    # Here: a robot whose library lies on its disk does without.
    from semla_ros.hub.downloads import hub_folder
    from semla_ros.library.fetching import library_below

    return library_below(hub_folder(name))
