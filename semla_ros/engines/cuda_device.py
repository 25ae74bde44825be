"""Which GPU a runtime works on: libraries beside torch take the one that is current in the calling thread."""

from __future__ import annotations

import contextlib

import torch


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within it a CUDA device is the current one; of any other device there is none."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def make_current(index: int) -> None:
    """A GPU is the current one of this thread from here on."""
    torch.cuda.set_device(index)
    torch.cuda.synchronize(index)  # makes its context now, which is what other copies of the CUDA runtime look at
