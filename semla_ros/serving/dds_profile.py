"""The Fast DDS profile for large images: when the shipped one is used, and whether the machine has room for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from semla_ros.errors import ConfigError
from semla_ros.resources import share_folder

VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # until Jazzy, from Kilted on
# What else says how Fast DDS is to transport: variables, and files that it reads from the working directory.
_OWN_VARIABLES = (*VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS")
_OWN_FILES = ("DEFAULT_FASTRTPS_PROFILES.xml", "DEFAULT_FASTDDS_PROFILES.xml")
_SPREAD = 1.05  # of a segment's file over what it holds: 70,255,136 bytes for 64 MiB with Fast DDS 2.14
NONE = "none"


def profile_variables(environment: Mapping[str, str], choice: str = "") -> dict[str, str]:
    """Environment variables that let Fast DDS use a profile.

    Args:
        environment: What the process would have without them.
        choice: Path of a profile; `none`; empty = what the environment says, and the shipped one where it says nothing.

    Returns:
        The variables to add; none where the environment is to stay as it is.

    Raises:
        ConfigError: The file that was chosen is not there.
    """
    if choice == NONE:
        return {}
    if choice and not Path(choice).is_file():
        raise ConfigError(f"dds_profile must be the path of a Fast DDS profile, '{NONE}' or empty, got '{choice}'")
    says_itself = any(map(environment.get, _OWN_VARIABLES)) or any(Path(name).is_file() for name in _OWN_FILES)
    path = choice or ("" if says_itself else str(share_folder() / "config" / "fastdds.xml"))
    return dict.fromkeys(VARIABLES, path) if path else {}


def shared_memory_problem(environment: Mapping[str, str], folder: str = "/dev/shm") -> str:
    """What to do where a process with this environment would get no shared memory; empty where it would.

    Args:
        environment: Names a profile, or none; then one in the working directory counts.
        folder: Where shared memory is.
    """
    path = next(filter(None, map(environment.get, VARIABLES)), "") or next(filter(os.path.isfile, _OWN_FILES), "")
    try:
        sizes = [int(item.text or 0) for item in ElementTree.parse(path).iter() if item.tag.endswith("segment_size")]
        status = os.statvfs(folder)
    except (OSError, ValueError, ElementTree.ParseError):
        return ""
    free = status.f_bavail * status.f_frsize
    if not sizes or free > max(sizes) * _SPREAD:
        return ""
    return (
        f"{folder} has {free >> 20} MiB free, and the Fast DDS profile {path} asks for {max(sizes) >> 20} MiB in each "
        "process: large images do not fit into shared memory and may be lost. Give the container more with "
        "`docker run --shm-size 512m` (or `--ipc host`), the machine with `mount -o remount,size=512M /dev/shm`"
    )
