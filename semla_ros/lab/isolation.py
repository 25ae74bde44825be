"""A ROS 2 graph of its own on this machine: nothing else on the network sees the demo, nor the demo anything else."""

from __future__ import annotations

import os
import random
import socket
import sys
from pathlib import Path

from semla_ros.errors import SemlaError
from semla_ros.serving.dds_profile import profile_variables

HIGHEST_DOMAIN = 101  # above it DDS ports overlap the range that Linux hands out to outgoing connections


def participant_port(domain: int, participant: int = 0) -> int:
    """UDP port on which a participant of a domain listens for discovery (DDS-RTPS 2.5, 9.6.1.1)."""
    return 7400 + 250 * domain + 10 + 2 * participant


def is_free(domain: int) -> bool:
    """Whether no process of this machine has joined the DDS domain as its first participant."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", participant_port(domain)))
        except OSError:
            return False
    return True


def free_domain() -> int:
    """A random domain id (1..101) that nothing on this machine uses.

    Raises:
        SemlaError: All are in use.
    """
    candidates = list(range(1, HIGHEST_DOMAIN + 1))
    random.shuffle(candidates)
    for domain in candidates:
        if is_free(domain):
            return domain
    raise SemlaError(f"no DDS domain of 1 to {HIGHEST_DOMAIN} is free on this machine; end other ROS 2 programs")


def isolated_environment(domain: int) -> dict[str, str]:
    """Environment variables for the demo's processes.

    Args:
        domain: DDS domain id.

    Returns:
        This process's environment with the domain, discovery on this machine only, and the shipped Fast DDS profile
        (large messages through shared memory) unless the user has set one.
    """
    environment = dict(os.environ)
    environment["ROS_DOMAIN_ID"] = str(domain)
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    environment.pop("ROS_LOCALHOST_ONLY", None)  # the older switch would override the range
    environment.pop("ROS_STATIC_PEERS", None)
    environment["PYTHONUNBUFFERED"] = "1"  # so that a log is complete when its process ends abruptly
    environment |= profile_variables(environment)
    if (Path(sys.prefix) / "share" / "ament_index").is_dir():
        # ROS 2 from wheels: the virtual environment is the install prefix.
        paths = [sys.prefix, *filter(None, environment.get("AMENT_PREFIX_PATH", "").split(os.pathsep))]
        environment["AMENT_PREFIX_PATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment
