"""The most memory that the process has held; for reports at the end of a run."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_resident_bytes() -> int:
    """The most physical memory that this process has held, in bytes; the kernel's own high-water mark.

    `getrusage` counts what the parent held before this program was started, too: it serves where there is no /proc.
    """
    try:
        for line in _STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError):
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
